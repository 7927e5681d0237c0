"""Rows per second of a ranker's training step beside DeepCTR-Torch and FuxiCTR: python -m benchmarks.ranker_training

One architecture: 26 categorical and 13 dense features, dim 16, three full-matrix cross layers beside a 256-128 tower, one task
(with DeepCTR-Torch also a linear part, which its model always has), batches of 4,096 rows in memory, Adam. Ours is timed inside
``run_training``, the worker loop that every training job runs: its stream hands out a few batches, then a peer's steps, in turn.
So ours also clips gradients and keeps training metrics; its embedding tables are trained by row-wise Adagrad.

Our share: the matrix products of our step, of the same shapes and strides and into memory that is there, timed alone in turn with
both sides, over our whole step.

Tables: "small" has 1,000 ids a field; "criteo" has the field sizes of Criteo's Kaggle log, hashed to at most 100,000 ids a field.

Peers, from PyPI:
pip install --constraint requirements.lock "rayrec[bench]", or --editable ".[bench]" in a checkout.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.matrix_products import MatrixProducts, recorded
from benchmarks.ranker_peers import PeerShape, Step, deepctr_torch_step, fuxictr_step
from rayrec.batch import Batch
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.data.log.streams import StreamPosition
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig, build_optimizer
from rayrec.training.loop import LoopConfig, run_training
from rayrec.training.precision import Precision
from rayrec.training.worker import RunOptions, TrainingData, Worker

CRITEO_FIELD_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652, 2173, 4,
    7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
LARGEST_FIELD = 100_000
HEADLINE = "criteo"
DENSE = 13
IN_MEMORY = 8  # different batches


@dataclass(frozen=True)
class Command:
    """rounds: blocks of ``steps`` steps of each side, in turn. precision: of ours, as in LoopConfig. peer_precision: theirs, by
    torch's autocast, which they do not use themselves.
    compile_update: of ours, as in RunOptions. tables: which of them.

    cpu_time: time the process's CPU in place of the clock, for a machine that does other work too; one thread then.
    """

    rounds: int = 9
    steps: int = 3
    batch_size: int = 4096
    threads: int = 2
    precision: Precision = "auto"
    peer_precision: Literal["float32", "bfloat16"] = "float32"
    cpu_time: bool = False
    compile_update: bool = False
    tables: tuple[Literal["criteo", "small"], ...] = ("small", "criteo")

    def __post_init__(self) -> None:
        if self.cpu_time and self.threads != 1:
            raise ValueError("CPU time is a step's time with one thread only: --threads 1")


@dataclass(frozen=True)
class Times:
    """Seconds of a step of each round: ours, of its matrix products alone, and the peer's."""

    ours: list[float]
    products: list[float]
    peer: list[float]

    def over_ours(self, others: list[float]) -> float:
        """Median of the rounds' ratios: within a round a machine's clock changes less than from one to the next."""
        return statistics.median(other / own for other, own in zip(others, self.ours, strict=True))


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(command.threads)
    sizes_of = {"small": (1_000,) * 26, "criteo": tuple(min(s, LARGEST_FIELD) for s in CRITEO_FIELD_SIZES)}
    peers: dict[str, tuple[bool, Callable[[PeerShape, list[Batch], bool], Step]]] = {
        "deepctr_torch": (True, deepctr_torch_step),
        "fuxictr": (False, fuxictr_step),
    }
    ratios: dict[str, dict[str, float]] = {}
    clock = "CPU time" if command.cpu_time else "wall time"
    print(
        f"batch {command.batch_size:,}, {command.threads} threads, precision {command.precision}, "
        f"peers {command.peer_precision}, {clock}",
        end="",
    )
    print(f"{', compiled update' if command.compile_update else ''}; rows/s")
    print(f"{'tables':<8}{'ids':>10}{'peer':>15}{'its rows/s':>12}{'ours':>9}{'over it':>9}", end="")
    print(f"{'products':>10}{'our share':>11}{'GFLOP/s':>9}")
    for name in command.tables:
        sizes = sizes_of[name]
        shape = PeerShape(sizes, DENSE, 16, 3, (256, 128))
        batches = _random_batches(shape, command.batch_size)
        for peer, (wide, make_step) in peers.items():
            task = _task(shape, wide)
            products = _products(task, batches[0], command.precision == "bfloat16")
            times = _in_turn(
                command, task, batches, products, make_step(shape, batches, command.peer_precision == "bfloat16")
            )
            over, share = times.over_ours(times.peer), times.over_ours(times.products)
            found = ratios.setdefault(name, {})
            found |= {f"over_{peer}": round(over, 3), f"products_share_beside_{peer}": round(share, 3)}
            sides = (times.peer, times.ours, times.products)
            theirs, ours, alone = (command.batch_size / statistics.median(seconds) for seconds in sides)
            print(
                f"{name:<8}{sum(sizes):>10,}{peer:>15}{theirs:>12,.0f}{ours:>9,.0f}{over:>9.2f}{alone:>10,.0f}{share:>11.2f}"
                f"{products.flops * alone / command.batch_size / 1e9:>9.0f}"
            )
    print(json.dumps(ratios.get(HEADLINE, {}) | {"by_tables": ratios}))


def _random_batches(shape: PeerShape, rows: int) -> list[Batch]:
    """Ids with a heavy head, as in logs; all known (id 0 is missing)."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(shape.field_sizes)
    batches = []
    for _ in range(IN_MEMORY):
        ids = (torch.rand(rows, len(sizes), generator=generator) ** 3 * (sizes - 1)).long() + 1
        labels = (torch.rand(rows, 1, generator=generator) < 0.25).float()
        batches.append(Batch(torch.randn(rows, shape.dense, generator=generator), ids.clamp_max(sizes - 1), labels))
    return batches


def _task(shape: PeerShape, wide: bool) -> RankingTask:
    schema = LogSchema(
        name="benchmark",
        features=(
            *(CategoricalFeature(f"c{i}", encoding="hash", buckets=s - 1) for i, s in enumerate(shape.field_sizes)),
            *(DenseFeature(f"d{i}", statistics=DenseStatistics(0.0, 1.0, 0.0)) for i in range(shape.dense)),
        ),
        tasks=(TaskLabel("click"),),
    )
    architecture = RankerArchitecture(
        embedding_dim=shape.embedding_dim,
        cross_layers=shape.cross_layers,
        structure="parallel",
        trunk=shape.tower,
        tower=(),
        wide=wide,
    )
    return RankingTask(schema, RankingConfig(architecture))


def _products(task: RankingTask, batch: Batch, bf16: bool) -> MatrixProducts:
    model = task.build()
    build_optimizer(model, OptimizerConfig())  # tables get sparse gradients, as in training

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task.loss(model, batch)
        loss.total.backward()

    return recorded(step)


def _in_turn(command: Command, task: RankingTask, batches: list[Batch], products: MatrixProducts, peer: Step) -> Times:
    stream = _TurnTaking(batches, command, (lambda i: products.run(), peer))
    data = TrainingData(lambda start, epochs: stream, lambda split, epochs: _OneBatch(batches[0]), ("train", "valid"))
    options = RunOptions(threads=command.threads, reader="in_process", compile_update=command.compile_update)
    worker = Worker(options=options)
    loop = LoopConfig(epochs=1, precision=command.precision)
    run_training(task, data, loop, OptimizerConfig(weight_decay=0.0), _NoCheckpoints(), worker=worker)
    return Times(*stream.seconds)


class _TurnTaking:
    """A training stream whose epoch is turns: some batches to the loop that reads it, then as many steps of each of ``others``.

    seconds: of a step of the loop, then of each other one, a mean for each round behind the first, which warms up.
    """

    def __init__(self, batches: list[Batch], command: Command, others: Sequence[Step]) -> None:
        self.batches, self.rounds, self.steps, self.others = batches, command.rounds, command.steps, others
        self.clock = time.process_time if command.cpu_time else time.perf_counter
        self.steps_per_epoch = (self.rounds + 1) * self.steps
        self.position = StreamPosition()
        self.seconds: list[list[float]] = [[] for _ in range(1 + len(others))]

    def epoch_batches(self) -> Iterator[tuple[Batch, None]]:
        for turn in range(self.rounds + 1):
            marks = [self.clock()]
            for i in range(self.steps):
                done = turn * self.steps + i + 1
                self.position = StreamPosition(*divmod(done, self.steps_per_epoch))
                yield self.batches[done % len(self.batches)], None
            marks.append(self.clock())
            for other in self.others:
                for i in range(self.steps):
                    other((turn * self.steps + i) % len(self.batches))
                marks.append(self.clock())
            if turn:
                for seconds, started, ended in zip(self.seconds, marks, marks[1:], strict=False):
                    seconds.append((ended - started) / self.steps)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class _OneBatch:
    batch: Batch

    def epoch_batches(self) -> Iterator[Batch]:
        yield self.batch

    def close(self) -> None:
        """Nothing is open."""


class _NoCheckpoints:
    def latest(self) -> Path | None:
        return None

    def report(self, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """Speed is all that is asked for."""


if __name__ == "__main__":
    main()
