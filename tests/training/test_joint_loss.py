"""One rule for every loss: a mean over the terms of an update, on whatever workers and in whatever batches they lie.

Balancers are the exception: their weights are made of one batch's gradients, so what they give an update is the mean over its
batches of what each gets, with losses that are parts of the update's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from rayrec.batch import Batch
from rayrec.data.log import Log
from rayrec.data.log.streams import StreamPosition
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.families.language_model.task import LanguageModellingTask
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.families.retriever.task import RetrievalConfig, RetrievalTask
from rayrec.methods.balancing.fixed import Fixed
from rayrec.methods.balancing.mgda import Mgda
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.liger import LigerConfig
from rayrec.models.llama import LlamaConfig, LlamaShape
from rayrec.models.ranker import RankerArchitecture
from rayrec.models.sasrec import SASRecConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.optim import OptimizerConfig
from rayrec.retrieval.semantic_ids import resolve_collisions
from rayrec.training.checkpoint import best_weights
from rayrec.training.loop import LoopConfig, run_training
from rayrec.training.reporters import FolderReporter
from rayrec.training.task import Task
from rayrec.training.worker import TrainingData, Worker
from tests.tasks.test_ranking_distillation import batch_of

SHARES = (slice(0, 1), slice(1, 6), slice(6, 8), slice(8, 12))
"""Rows of the four batches of one update: two workers with two each, of unlike sizes."""
T5 = T5Config(dim=12, feed_forward=16, heads=2, head_dim=6, encoder_layers=1, decoder_layers=1, dropout=0.0)
LIGER = LigerConfig(
    T5, projection=(8,), projection_dropout=0.0, input_dropout=0.0, max_length=6, repeat_bias=True, dense_weight=0.7
)
SASREC = SASRecConfig(dim=8, layers=1, max_length=6, dropout=0.0, repeat_bias=True)
RETRIEVERS = {
    "sasrec by position": RetrievalConfig("sasrec", SASREC),
    "sasrec by window": RetrievalConfig("sasrec", replace(SASREC, weighting="window")),
    "tiger": RetrievalConfig("tiger", tiger=TigerConfig(T5, max_length=6)),
    "tiger of users": RetrievalConfig("tiger", tiger=TigerConfig(T5, max_length=6, user_tokens=3)),
    "dense": RetrievalConfig("dense", liger=LIGER),
    "liger": RetrievalConfig("liger", liger=LIGER),
}


DRAWS_ALIKE: dict[str, Any] = {"dense_noise": 0.0, "embedding_noise": 0.0, "feature_dropout": 1.0}  # in whatever batch
RANKERS: dict[str, dict[str, Any]] = {
    "ranker": {},
    "ranker by propensities": {"inverse_propensity": InversePropensity("propensity")},
    "distillation": {"distillation": DistillationConfig(0.5, 2.0, confidence=1.0, tasks=("buy",))},
    "distillation on its own heads": {"distillation": DistillationConfig(1.0, 1.0, head="auxiliary", temperature=2.0)},
    "negatives": {"distillation": DistillationConfig(0.0, 1.0, target="negative", tasks=("click",))},
    "lspr": {"perturbation": PerturbationConfig("lspr", 0.4, **DRAWS_ALIKE)},
    "scr": {"perturbation": PerturbationConfig("scr", 2.0, **DRAWS_ALIKE)},
    "scr on unlabeled rows": {"perturbation": PerturbationConfig("scr", 2.0, unlabeled=True, **DRAWS_ALIKE)},
    "fixed shares": {"balancing": Fixed(shares=(0.2, 0.7))},
    "all at once": {
        "distillation": DistillationConfig(0.5, 2.0),
        "perturbation": PerturbationConfig("scr", 2.0, unlabeled=True, **DRAWS_ALIKE),
        "inverse_propensity": InversePropensity("propensity"),
        "balancing": Fixed(shares=(0.2, 0.7)),
    },
}


@dataclass(frozen=True)
class Slices:
    """A batch that can be cut by rows; more: the unlabeled one beside it, of 24 rows, of which each labeled row has two."""

    whole: Any
    more: Batch | None = None

    def pair(self, rows: slice) -> tuple[Any, Batch | None]:
        return self[rows], None if self.more is None else self.more[slice(2 * rows.start, 2 * rows.stop)]

    def __getitem__(self, rows: slice) -> Any:
        if isinstance(self.whole, HistoryBatch):
            user = None if self.whole.user is None else self.whole.user[rows]
            return HistoryBatch(self.whole.history[rows], self.whole.target[rows], user=user)
        return self.whole[rows]


def catalogue() -> Catalogue:
    """20 items, of which 5 were never seen."""
    generator = torch.Generator().manual_seed(0)
    ids = resolve_collisions(torch.randint(0, 3, (20, 2), generator=generator), 3)
    seen = torch.ones(21, dtype=torch.bool)
    seen[[0, 2, 5, 9, 13, 20]] = False
    text = torch.randn(21, 5, generator=generator)
    return Catalogue(20, seen, torch.arange(21), ItemFeatures(ids.item_tokens(), ids.num_tokens, text, seen))


def histories(windows: bool) -> HistoryBatch:
    """12 rows of 1 to 6 items, the short ones first."""
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(1, 21, (12, 7), generator=generator)
    items[torch.arange(7) < (6 - torch.arange(12) // 2).clamp_min(1).unsqueeze(1) - 1] = 0
    inputs, targets = items[:, :-1], items[:, 1:]
    if not windows:
        return HistoryBatch(inputs, targets[:, -1])
    return HistoryBatch(inputs, targets.masked_fill(inputs == 0, 0))


def case(name: str, small_log: Path) -> tuple[Task[Any, Any], Slices]:
    if name in RETRIEVERS:
        config = RETRIEVERS[name]
        batch = histories(config.architecture.reads_windows)
        if config.architecture.user_tokens:
            batch = replace(batch, user=torch.arange(12) % 4)
        return RetrievalTask(catalogue(), config), Slices(batch)
    if name == "language model":
        tokens = torch.randint(0, 30, (12, 9), generator=torch.Generator().manual_seed(2))
        empty = torch.zeros(12, 0)
        return (
            LanguageModellingTask(LlamaConfig(30, LlamaShape(hidden=16, intermediate=16, layers=1, heads=2))),
            Slices(Batch(empty, empty.long(), empty, (tokens,))),
        )
    batch = batch_of(small_log, 12)
    batch.labels[:6, 1] = torch.nan  # a task that two of the batches do not observe
    batch = replace(batch, weights=torch.linspace(0.1, 2.0, 12))
    batch.extras["propensity"] = torch.linspace(0.2, 1.0, 12, dtype=torch.float64)
    more = batch_of(small_log, 24, seed=1)
    more.extras["teacher_buy"][:9] = torch.nan
    more = replace(more, labels=torch.full_like(more.labels, torch.nan), weights=torch.linspace(2.0, 0.1, 24))
    small = RankerArchitecture(embedding_dim=2, trunk=(4,), tower=(4,), dropout=0.0)
    config = RankingConfig(small, task_weights={"buy": 0.3}, **RANKERS[name])
    return RankingTask(Log.open(small_log).schema, config), Slices(batch, more)


def gradients(task: Task[Any, Any], batches: list[Any], sizes: Tensor | None) -> dict[str, Tensor]:
    """Mean over the pairs of batches, as accumulation and DistributedDataParallel take it."""
    torch.manual_seed(0)
    model = task.build()
    for batch, more in batches:
        (task.loss(model, batch, more, sizes).total / len(batches)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*RETRIEVERS, *RANKERS, "language model"])
def test_two_workers_with_two_ragged_batches_each_learn_what_one_learns_from_the_joint_batch(
    small_log: Path, name: str
) -> None:
    task, batch = case(name, small_log)
    parts, whole = [batch.pair(rows) for rows in SHARES], batch.pair(slice(0, 12))
    model = task.build()
    each = torch.stack([task.sizes(model, *part) for part in parts]).double()
    torch.testing.assert_close(each.sum(0), task.sizes(model, *whole).double(), rtol=1e-5, atol=1e-6)
    assert (each[0] != each[1]).any()
    joint = gradients(task, [whole], None)
    shared = gradients(task, parts, each.mean(0))
    assert shared.keys() == joint.keys()
    for parameter, wanted in joint.items():
        torch.testing.assert_close(shared[parameter], wanted, rtol=1e-4, atol=1e-6, msg=parameter)
    apart = gradients(task, parts, None)
    unlike = [n for n, g in apart.items() if not torch.allclose(g, joint[n], rtol=1e-3, atol=1e-6)]
    assert unlike  # a mean of the batches' own means is another loss


def test_a_balancer_weighs_each_batch_of_an_update_by_its_own_gradients(small_log: Path) -> None:
    """MGDA over two batches: each one's trunk gradient is the min-norm point between its tasks' gradients, then their mean."""
    _, batch = case("ranker", small_log)
    small = RankerArchitecture(embedding_dim=2, trunk=(4,), tower=(4,), dropout=0.0)
    schema, parts = Log.open(small_log).schema, [batch.pair(slice(6, 8)), batch.pair(slice(8, 12))]
    plain = RankingTask(schema, RankingConfig(small))
    model = plain.build()
    sizes = torch.stack([plain.sizes(model, *part) for part in parts]).double().mean(0)
    weight = "trunk.0.weight"
    expected = []
    for part, more in parts:
        by_task = []
        for task in ("click", "buy"):
            alone = RankingTask(
                schema, RankingConfig(small, task_weights={t: float(t == task) for t in ("click", "buy")})
            )
            by_task.append(gradients(alone, [(part, more)], sizes))
        first, second = (torch.cat([g.flatten() for n, g in one.items() if "tower" not in n]) for one in by_task)
        share = ((second - first) @ second / (first - second).square().sum()).clamp(0.0, 1.0)
        expected.append(share * by_task[0][weight] + (1 - share) * by_task[1][weight])
    balanced = RankingTask(schema, RankingConfig(small, balancing=Mgda(level="parameters")))
    found = gradients(balanced, parts, sizes)[weight]
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2, rtol=1e-4, atol=1e-6)


class TwoUpdates:
    """Streams of a worker: two updates of ``accumulate`` batches, the rows of SHARES; one row to judge."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches
        self.steps_per_epoch = len(batches)
        self.position = StreamPosition()

    def epoch_batches(self) -> Iterator[Any]:
        for step, batch in enumerate(self._batches, 1):
            self.position = StreamPosition(0, step) if step < len(self._batches) else StreamPosition(1, 0)
            yield batch, None

    def close(self) -> None: ...


class OneRow(TwoUpdates):
    def epoch_batches(self) -> Iterator[Any]:
        yield HistoryBatch(torch.tensor([[3, 4]]), torch.tensor([1]))


class Pairs(TwoUpdates):
    """Batches with their unlabeled ones."""

    def epoch_batches(self) -> Iterator[Any]:
        for pair, _ in super().epoch_batches():
            yield pair


class Labeled(TwoUpdates):
    def epoch_batches(self) -> Iterator[Any]:
        yield from (batch for batch, _ in self._batches)


def train(shares: tuple[slice, ...], worker: Worker, accumulate: int, folder: Path) -> None:
    batch = Slices(histories(windows=True))
    stream = TwoUpdates([batch[rows] for rows in shares] * 2)
    loop = LoopConfig(epochs=1, accumulate_batches=accumulate, patience=None, keep="last")
    rate = OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2)
    task = RetrievalTask(catalogue(), RETRIEVERS["sasrec by position"])
    data: TrainingData[HistoryBatch] = TrainingData(lambda *_: stream, lambda *_: OneRow([]), ("train", "valid"))
    run_training(task, data, loop, rate, FolderReporter(folder), worker=worker)


def weights(folder: Path) -> dict[str, Tensor]:
    latest = FolderReporter(folder).latest()
    assert latest is not None
    return best_weights(latest)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    train(SHARES[2 * rank : 2 * rank + 2], Worker(rank, 2), 2, Path(folder) / str(rank))
    dist.destroy_process_group()


def test_the_loop_ends_with_the_same_weights_however_an_update_is_cut_into_batches(tmp_path: Path) -> None:
    train((slice(0, 12),), Worker(), 1, tmp_path / "one")
    train(SHARES, Worker(), 4, tmp_path / "four")
    four = weights(tmp_path / "four")
    for name, wanted in weights(tmp_path / "one").items():
        torch.testing.assert_close(four[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_the_loop_that_accumulates_pairs_trains_methods_as_on_the_joint_batch(small_log: Path, tmp_path: Path) -> None:
    """Unlabeled batches count in the sizes of an update too."""
    found = []
    for shares in ((slice(0, 12),), SHARES):
        task, batch = case("all at once", small_log)
        stream, judged = Pairs([batch.pair(rows) for rows in shares] * 2), Labeled([batch.pair(slice(0, 12))])
        loop = LoopConfig(epochs=1, accumulate_batches=len(shares), patience=None, keep="last")
        rate = OptimizerConfig(learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2)
        folder = tmp_path / str(len(shares))
        data: TrainingData[Any] = TrainingData(lambda *_, s=stream: s, lambda *_, j=judged: j, ("train", "valid"))
        run_training(task, data, loop, rate, FolderReporter(folder))
        found.append(weights(folder))
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_the_loop_of_two_workers_that_accumulate_ends_with_the_weights_of_one(tmp_path: Path) -> None:
    spawn(_worker, (str(tmp_path),), nprocs=2)
    train((slice(0, 12),), Worker(), 1, tmp_path / "one")
    two = weights(tmp_path / "0")
    for name, wanted in weights(tmp_path / "one").items():
        torch.testing.assert_close(two[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_every_position_counts_the_same_whatever_the_length_of_its_window() -> None:
    """A window of one target beside one of six: by position it is a seventh of the loss, by window the half."""
    batch = histories(windows=True)
    short, long = Slices(batch)[slice(0, 1)], Slices(batch)[slice(11, 12)]
    assert [int((one.history > 0).sum()) for one in (short, long)] == [1, 6]
    pair = HistoryBatch(torch.cat([short.history, long.history]), torch.cat([short.target, long.target]))
    for name, share in (("sasrec by position", 1 / 7), ("sasrec by window", 1 / 2)):
        task = RetrievalTask(catalogue(), RETRIEVERS[name])
        model: nn.Module = task.build()
        alone = [task.loss(model, one).total for one in (short, long)]
        torch.testing.assert_close(task.loss(model, pair).total, share * alone[0] + (1 - share) * alone[1])
