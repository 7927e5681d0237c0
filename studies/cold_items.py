"""Cold items: python -m studies.cold_items --base E.json --embeddings M --folder F

Each draw takes a share of the items out of training and of the tokenizer, so that their targets are cold; trained on the rest:
the dense retriever and LIGER as they are, and with neighbours, whose dense score never forgets what the text alone knows; each
also blended with the untrained text once it is trained; and the depth retriever, with embeddings of its items or their texts in
their place. Beside them stand the untrained neighbours by text. An arm of a draw is trained once and its ranks kept in the
folder. The tables pool the draws; intervals for cold targets are over items, for the others over users.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import tyro
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from rayrec.data.sequences import leave_one_out, read_sequences, write_sequences
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.data.sequences.held_out import without_items
from rayrec.data.sequences.item_embeddings import read_embeddings
from rayrec.errors import told
from rayrec.families.retriever.blending import fit_blend, fit_bonus
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.item_scores import Scores, scored_ranks, text_neighbours
from rayrec.families.retriever.score_ranking import best_decay
from rayrec.families.retriever.semantic_id_files import write_semantic_ids
from rayrec.families.retriever.task import HistoryItems, RetrievalConfig
from rayrec.families.table import read_experiment
from rayrec.files import whole_file
from rayrec.kept_options import hold_to_options, options_of
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.searching import Method
from rayrec.retrieval.semantic_tokenizer import fit_tokenizer, recommended_tokenizer
from rayrec.runs.seeding import with_seed
from rayrec.training.experiment import train_here
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError, to_plain

Arm = Literal["dense", "liger", "dense-neighbours", "liger-neighbours", "depth", "depth-text"]
PROTOCOLS: tuple[HistoryItems, ...] = ("ranked", "excluded")
UNTRAINED = "neighbours by text, untrained"
Ranks = Mapping[str, NDArray[np.int64]]
"""user (row of the base's sequences, ascending), target, cold (0 or 1), rank (of absent ones: the largest int64), each (E,)."""


@dataclass(frozen=True)
class ColdItems:
    """Options of the study."""

    base: Path
    """JSON of a retriever experiment, whose sequences and semantic IDs are replaced by those of each draw."""
    embeddings: Path
    """Of jobs.embed_items."""
    folder: Path
    """Where draws, models and ranks are kept; a stopped study goes on."""
    draws: int = 5
    """Of held-out items; each also seeds its trainings."""
    share: float = 0.1
    """Of the items that training sees."""
    arms: tuple[Arm, ...] = ("dense", "liger", "dense-neighbours", "liger-neighbours")
    """What is trained; depth and depth-text with a dense head when the base gives it a weight."""
    neighbours: int = 128
    """Principal dimensions of the arms with neighbours."""
    budget: float = 0.05
    """Of the recall of seen items that the blended ones may give up on validation for unseen ones."""
    status: bool = False
    """Train nothing, print what is there."""


def run(command: ColdItems) -> dict[str, dict[int, Ranks]]:
    """By method and protocol the ranks of each draw that is done.

    Raises ConfigError when the folder holds those of other options.
    """
    base = read_experiment(command.base.read_bytes(), str(command.base))
    if not isinstance(base, RetrieverExperiment):
        raise ConfigError(f"{command.base}: not of a retriever")
    if base.split.method != "leave_one_out":
        raise ConfigError(
            f"{command.base}: split.method must be leave_one_out, by which items are held out, not temporal"
        )
    users = read_sequences(base.sequences).users
    options = options_of(command, but=("base", "folder", "draws", "arms", "status"))
    hold_to_options(command.folder / "options.json", {**options, "base": to_plain(base.absolute())}, "draw-*/*")
    found: dict[str, dict[int, Ranks]] = {}
    for draw in range(command.draws):
        drawn = _drawn(command, base, users, draw)
        for arm in (None, *command.arms):
            file = command.folder / f"draw-{draw}" / f"{arm or 'untrained'}.npz"
            if not file.is_file() and not command.status:
                ranks = (
                    _untrained(command, drawn) if arm is None else _trained(command, drawn, arm, file.with_suffix(""))
                )
                columns = {f"{way}/{name}": column for way, one in ranks.items() for name, column in one.items()}
                with whole_file(file) as unfinished, unfinished.open("wb") as stream:
                    np.savez_compressed(stream, allow_pickle=False, **columns)
                print(f"draw {draw}, {arm or UNTRAINED}: done", flush=True)
            if file.is_file():
                for way, one in _read(file).items():
                    found.setdefault(way, {})[draw] = one
    for protocol in PROTOCOLS:
        print(*table(found, protocol), "", sep="\n")
    return found


def _read(file: Path) -> dict[str, Ranks]:
    """Raises ConfigError for a file of an earlier version, which knew users by the draw's rows."""
    ways: dict[str, dict[str, NDArray[np.int64]]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for name in stored.files:
            way, _, column = name.rpartition("/")
            ways.setdefault(way, {})[column] = stored[name]
    if any((np.diff(one["user"]) <= 0).any() for one in ways.values()):
        raise ConfigError(f"{file}: made by an earlier version; remove it, or choose another folder")
    return dict(ways)


@dataclass(frozen=True)
class _Drawn:
    """The experiment on a draw. users: (U,) int64 rows of the base's sequences that its users have: other draws drop others."""

    experiment: RetrieverExperiment
    users: NDArray[np.int64]


def _drawn(command: ColdItems, base: RetrieverExperiment, users: pa.Array, draw: int) -> _Drawn:
    """Sequences and semantic IDs of a draw are made where they are not there. users: names of the base's."""
    folder = command.folder / f"draw-{draw}"
    sequences, ids = folder / "sequences", folder / "ids"
    if not sequences.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_sequences(sequences, without_items(read_sequences(base.sequences), command.share, draw))
    data = read_sequences(sequences)
    if not ids.is_dir():
        embeddings, record = read_embeddings(command.embeddings, data.items)
        seen = torch.from_numpy(leave_one_out(data.interactions).seen[1:])
        made = fit_tokenizer(torch.from_numpy(embeddings), recommended_tokenizer(), seen=seen)
        write_semantic_ids(ids, made, record.encoder, data.items.fingerprint, base.split)
    seeded = with_seed(replace(base, sequences=sequences, semantic_ids=ids), draw)
    assert isinstance(seeded, RetrieverExperiment)
    return _Drawn(seeded.absolute(), pc.index_in(data.users, users).to_numpy().astype(np.int64))


def _untrained(command: ColdItems, drawn: _Drawn) -> dict[str, Ranks]:
    """The texts' neighbours, and with the bonus that the blended ones get, by the same rule."""
    experiment = replace(drawn.experiment, retrieval=replace(drawn.experiment.retrieval, model="dense"))
    task, depth, found = experiment.task(), experiment.retrieval.list_depth, {}
    features, unseen = task.catalogue.features, (~task.catalogue.seen).float()
    assert features is not None
    batches = experiment.data(Worker()).open_evaluation("valid", 1).epoch_batches
    for protocol in PROTOCOLS:
        scores = text_neighbours(features.text, best_decay(experiment, features.text, history=protocol))
        bonus = fit_bonus(task, partial(_of_batch, scores), batches, command.budget, history=protocol)
        for way, lift in ((UNTRAINED, 0.0 * unseen), (f"{UNTRAINED} + bonus", bonus * unseen)):
            ranked = partial(_by_scores, scores=scores, lift=lift, depth=depth, history=protocol)
            found[f"{way}/{protocol}"] = _ranks(experiment, drawn.users, ranked)
    return found


def _of_batch(scores: Scores, batch: HistoryBatch) -> Tensor:
    return scores(batch.history)


def _by_scores(batch: HistoryBatch, *, scores: Scores, lift: Tensor, depth: int, history: HistoryItems) -> Tensor:
    return scored_ranks(scores(batch.history) + lift, batch, depth, history)


def _trained(command: ColdItems, drawn: _Drawn, arm: Arm, folder: Path) -> dict[str, Ranks]:
    """By method and protocol; training goes on from its last checkpoint."""
    retrieval = _retrieval(drawn.experiment.retrieval, arm, command.neighbours)
    experiment = replace(drawn.experiment, retrieval=retrieval)
    if not (folder / "bundle").is_dir():
        reporter = FolderReporter(folder / "checkpoints")
        train_here(experiment, reporter, say=lambda text: print(f"{folder.parent.name} {arm}: {text}", flush=True))
        checkpoint = reporter.latest()
        assert checkpoint is not None
        experiment.save_bundle(checkpoint, folder / "bundle")
    task, found = experiment.task(), {}
    trained = load_retriever(folder / "bundle").model

    def judge(
        model: Retriever[Any], name: str, protocols: Sequence[HistoryItems], methods: Sequence[Method] | None = None
    ) -> None:
        searcher = task.searcher(model)
        for method in (m for m in methods or searcher.methods if m in searcher.methods):
            for protocol in protocols:
                ranked = partial(task.ranks, searcher, method=method, history=protocol)
                way = name if searcher.methods == ("dense",) else f"{name}, {method}"
                found[f"{way}/{protocol}"] = _ranks(experiment, drawn.users, ranked)

    judge(trained, arm, PROTOCOLS)
    if experiment.retrieval.model == "depth":
        return found  # its dense head takes no blend
    validation = experiment.data(Worker()).open_evaluation("valid", 1).epoch_batches
    liger = replace(experiment.retrieval.liger, unseen_budget=command.budget)
    blended = replace(experiment, retrieval=replace(experiment.retrieval, liger=liger)).task()
    model = blended.build()
    model.load_state_dict({**trained.state_dict(), "blend": torch.zeros(3)})
    assert model.blended is not None
    for protocol in PROTOCOLS:
        both = fit_blend(blended, model, validation, history=protocol)
        assert both is not None
        judge(model, f"{arm} + text + bonus", (protocol,), ("dense", "hybrid"))
        model.blended.blend_with(replace(both, unseen=0.0))
        judge(model, f"{arm} + text", (protocol,), ("dense",))
        alone = fit_blend(blended, model, validation, history=protocol, shares=(0.0,))
        judge(model, f"{arm} + bonus", (protocol,), ("dense",))
        print(f"{folder.parent.name} {arm}, {protocol}: {both}, bonus alone {alone}", flush=True)
    return found


def _retrieval(base: RetrievalConfig, arm: Arm, neighbours: int) -> RetrievalConfig:
    if arm in ("depth", "depth-text"):
        text = arm == "depth-text"
        return replace(base, model="depth", depth=replace(base.depth, item_embeddings=not text, text_input=text))
    liger = replace(base.liger, unseen_budget=None)
    if arm.endswith("neighbours"):
        liger = replace(liger, neighbours=neighbours)
    return replace(base, model="dense" if arm.startswith("dense") else "liger", liger=liger)


def _ranks(
    experiment: RetrieverExperiment, users: NDArray[np.int64], ranked: Callable[[HistoryBatch], Tensor]
) -> Ranks:
    seen, columns = experiment.task().catalogue.seen, []
    for batch in experiment.data(Worker()).open_evaluation("test", 1).epoch_batches():
        assert batch.row is not None
        columns.append(torch.stack([batch.row, batch.target, (~seen[batch.target]).long(), ranked(batch).long()]))
    row, *others = torch.cat(columns, 1).numpy()
    order = np.argsort(
        users[row]
    )  # batches are of histories of like lengths, which a model may cut otherwise than another
    return dict(zip(("user", "target", "cold", "rank"), (found[order] for found in (users[row], *others)), strict=True))


def table(found: Mapping[str, Mapping[int, Ranks]], protocol: HistoryItems) -> list[str]:
    """Markdown of the methods judged by ``protocol``; differences are paired by user, each of whom has one target."""
    lines = [
        f"| history {protocol} | draws | cold targets | cold R@10 | less untrained | in-set R@10 | less untrained |",
        "| --- " * 7 + "|",
    ]
    base = found[f"{UNTRAINED}/{protocol}"]
    for way, draws in found.items():
        name, _, judged = way.rpartition("/")
        if judged != protocol:
            continue
        cells = []
        for cold, cluster in ((1, "target"), (0, "user")):
            groups = [_of(one, cold, cluster) for one in draws.values()]
            cells.append(_interval([_hits(one, cold) for one in draws.values()], groups))
            less = [_hits(one, cold) - _hits(base[draw], cold) for draw, one in draws.items()]
            cells.append(_interval(less, groups) if name != UNTRAINED else "")
        count = sum(int((one["cold"] == 1).sum()) for one in draws.values())
        lines.append(f"| {name} | {len(draws)} | {count} | {' | '.join(cells)} |")
    return lines


def _of(ranks: Ranks, cold: int, column: str) -> NDArray[np.int64]:
    return ranks[column][ranks["cold"] == cold]


def _hits(ranks: Ranks, cold: int, depth: int = 10) -> NDArray[np.float64]:
    return (_of(ranks, cold, "rank") <= depth).astype(np.float64)


def _interval(values: Sequence[NDArray[np.float64]], clusters: Sequence[NDArray[np.int64]]) -> str:
    mean, low, high = clustered_mean(np.concatenate(values), np.concatenate(clusters))
    return f"{mean:.4f} ({low:.4f} to {high:.4f})"


def clustered_mean(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean of (n,) values and its 95 % interval when those of a cluster (n,) hang together, whatever way.

    Variance sum over clusters of (sum of the cluster's residuals)^2 / n^2 * C / (C - 1) (Liang and Zeger 1986), t with C - 1
    degrees of freedom.
    """
    mean = float(values.mean())
    _, place = np.unique(clusters, return_inverse=True)
    sums = np.bincount(place, values - mean)
    count = len(sums)
    error = float(np.sqrt((sums**2).sum() * count / max(count - 1, 1))) / len(values)
    reach = float(stdtrit(count - 1, 0.975)) * error if count > 1 else float("inf")
    return mean, mean - reach, mean + reach


def main() -> None:
    with told():
        run(tyro.cli(ColdItems, description=__doc__))


if __name__ == "__main__":
    main()
