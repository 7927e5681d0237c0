"""Any retriever on the five axes of the preference benchmark, those that are blind to preferences included; and the star plot.

Axis 2 is judged by m@k: the share of rows whose target is among the first k under the wish and not under its opposite.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrec.data.preferences.benchmark import Benchmark
from rayrec.data.preferences.pools import AXES, Axis, Pool, Split
from rayrec.data.preferences.streams import JudgedPool
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.data.sequences.interactions import Interactions
from rayrec.data.sequences.streams import SequenceStreamConfig
from rayrec.families.retriever.task import RetrievalTask
from rayrec.metrics.ranking import PARTS, RankingMetrics, target_ranks
from rayrec.retrieval.searching import Method, Searcher
from rayrec.typed_json import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ranks = Callable[[HistoryBatch], Tensor]  # (B,) of the targets
CUTOFFS = (5, 10)
NAMES: Mapping[Axis, str] = {
    "recommendation": "preference-based\nrecommendation", "sentiment": "sentiment\nfollowing", "fine": "fine-grained\nsteering",
    "coarse": "coarse-grained\nsteering", "consolidation": "history\nconsolidation",
}  # fmt: skip


@dataclass(frozen=True)
class AxisResult:
    """rows: of the pool. metrics: recall@k and ndcg@k, or m@k (axis 2); None where the pool is empty.

    left_out: the metrics without each 64th of the pool's rows, the same rows for all models.
    """

    axis: Axis
    rows: int
    metrics: Mapping[str, float | None]
    left_out: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def shown(self) -> float | None:
        """What the star plot draws."""
        return self.metrics["m@10" if self.axis == "sentiment" else "recall@10"]


def judge_axes(
    benchmark: Benchmark, interactions: Interactions, ranks: Ranks, features: Tensor | None, length: int, *,
    split: Split = "test", batch_size: int = 256, tokens: NDArray[np.int64] | None = None,
) -> tuple[AxisResult, ...]:  # fmt: skip
    """features: (T, ...) of the benchmark's texts as ``ranks`` reads them; None for what is blind to preferences.

    tokens: (U,) of the users, for models that read them.
    """
    stream = SequenceStreamConfig(evaluation_batch_size=batch_size)

    def ranked(pool: Pool) -> Tensor:
        batches = JudgedPool(interactions, pool, features, stream, length=length, tokens=tokens).epoch_batches()
        found = [ranks(batch) for batch in batches]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    results = []
    for axis in AXES:
        pool = benchmark.pools[axis, split]
        wished = ranked(pool)
        if axis == "sentiment":
            opposed = ranked(replace(pool, preferences=pool.negatives))
            metrics = {f"m@{k}": followed(wished, opposed, k) for k in CUTOFFS}
            rest = {f"m@{k}": followed_left_out(wished, opposed, k) for k in CUTOFFS} if len(pool) > 1 else {}
        else:
            running = RankingMetrics(CUTOFFS)
            running.update(wished)
            metrics = {k: v for k, v in running.compute()["all"].as_numbers().items() if k not in ("count", "mrr")}
            rest = {k: v for k, v in running.left_out().get("all", {}).items() if k in metrics}
        results.append(AxisResult(axis, len(pool), metrics, rest))
    return tuple(results)


def followed(wished: Tensor, opposed: Tensor, k: int) -> float | None:
    """m@k: mean (hit under the wish and no hit under its opposite) of ranks (R,); None of no rows."""
    return ((wished <= k) & ~(opposed <= k)).double().mean().item() if len(wished) else None


def followed_left_out(wished: Tensor, opposed: Tensor, k: int) -> tuple[float, ...]:
    """m@k without each 64th of the rows."""
    hits = ((wished <= k) & ~(opposed <= k)).double()
    part = torch.arange(len(hits)) % PARTS
    sums, counts = torch.bincount(part, hits, minlength=PARTS), torch.bincount(part, minlength=PARTS)
    return tuple(((hits.sum() - sums) / (len(hits) - counts)).tolist())


def ranks_of(task: RetrievalTask, searcher: Searcher[Any], method: Method, beams: int | None = None) -> Ranks:
    """Of a trained retriever."""
    searcher.model.eval()
    return lambda batch: task.ranks(searcher, batch, method, beams)


def popularity_ranks(counts: Tensor) -> Ranks:
    """Most frequent in training first; counts: (N + 1,), row 0 padding."""
    scores = counts.double()
    scores[0] = -math.inf
    return lambda batch: target_ranks(scores.expand(len(batch), -1), batch.target)


def nearest_ranks(items: NDArray[np.float32]) -> Ranks:
    """The text encoder alone, untrained: items nearest to the preference. items: (N, E) of the same encoder."""
    vectors = torch.nn.functional.normalize(torch.from_numpy(items), dim=1)

    def ranks(batch: HistoryBatch) -> Tensor:
        assert batch.preference is not None
        return target_ranks(batch.preference @ vectors.T, batch.target - 1)

    return ranks


def star_plot(results: Mapping[str, Sequence[AxisResult]]) -> "Figure":
    """One polygon a model. Each axis is scaled by the best model on it, whose value stands at its end."""
    from matplotlib.figure import Figure  # a second of imports

    if not results:
        raise ConfigError("a star plot needs at least one model")
    values = {name: [one.shown for one in found] for name, found in results.items()}
    best = [max((v[i] or 0.0 for v in values.values()), default=0.0) for i in range(len(AXES))]
    angles = [2 * math.pi * i / len(AXES) for i in range(len(AXES))]
    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    panel = figure.add_subplot(projection="polar")
    panel.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
    panel.set_theta_direction(-1)  # type: ignore[attr-defined]
    for name, found in values.items():
        lengths = [(v or 0.0) / b if b > 0 else 0.0 for v, b in zip(found, best, strict=True)]
        panel.plot([*angles, angles[0]], [*lengths, lengths[0]], "o-", label=name, linewidth=1.5, markersize=3.5)
        panel.fill([*angles, angles[0]], [*lengths, lengths[0]], alpha=0.06)
    labels = [
        f"{NAMES[axis]}\n({'m@10' if axis == 'sentiment' else 'R@10'} {b:.3f})"
        for axis, b in zip(AXES, best, strict=True)
    ]
    panel.set_xticks(angles, labels, fontsize=8)
    panel.tick_params(pad=26)
    panel.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "", "", ""])
    panel.set_ylim(0, 1.05)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure
