"""Rows per second of a ranker's training step beside DeepCTR-Torch and FuxiCTR: python -m benchmarks.ranker_training

One architecture: 26 categorical and 13 dense features, dim 16, three full-matrix cross layers beside a 256-128 tower, one task
(with DeepCTR-Torch also a linear part, which its model always has), batches of 4,096 rows in memory, Adam. Ours is timed inside
``run_training``, the worker loop that every training job runs: its stream hands out a few batches, then a peer's steps, in turn.
So ours also clips gradients and keeps training metrics; its embedding tables are trained by row-wise Adagrad.

Tables: "small" has 1,000 ids a field; "criteo" has the field sizes of Criteo's Kaggle log, hashed to at most 100,000 ids a field.

Peers, from PyPI:
pip install --constraint requirements.lock "rayrec[bench]", or --editable ".[bench]" in a checkout.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.ranker_peers import PeerShape, Step, deepctr_torch_step, fuxictr_step
from rayrec.batch import Batch
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.data.log.streams import StreamPosition
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.loop import LoopConfig, run_training
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
    """rounds: blocks of ``steps`` steps of each side, in turn. precision: of ours, as in LoopConfig; the peers have none."""

    rounds: int = 9
    steps: int = 3
    batch_size: int = 4096
    threads: int = 2
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(command.threads)
    tables = {"small": (1_000,) * 26, "criteo": tuple(min(s, LARGEST_FIELD) for s in CRITEO_FIELD_SIZES)}
    peers: dict[str, tuple[bool, Callable[[PeerShape, list[Batch]], Step]]] = {
        "deepctr_torch": (True, deepctr_torch_step),
        "fuxictr": (False, fuxictr_step),
    }
    ratios: dict[str, dict[str, float]] = {}
    print(f"batch {command.batch_size:,}, {command.threads} threads, precision {command.precision}; rows/s")
    print(f"{'tables':<10}{'ids':>12}{'peer':>16}{'its rows/s':>14}{'ours':>12}{'ours over it':>14}")
    for name, sizes in tables.items():
        shape = PeerShape(sizes, DENSE, 16, 3, (256, 128))
        batches = _random_batches(shape, command.batch_size)
        for peer, (wide, make_step) in peers.items():
            ours, theirs = _in_turn(command, shape, batches, wide, make_step(shape, batches))
            ratios.setdefault(name, {})[f"over_{peer}"] = round(theirs / ours, 3)
            speeds = command.batch_size / theirs, command.batch_size / ours
            print(f"{name:<10}{sum(sizes):>12,}{peer:>16}{speeds[0]:>14,.0f}{speeds[1]:>12,.0f}{theirs / ours:>14.2f}")
    print(json.dumps(ratios[HEADLINE] | {"by_tables": ratios}))


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


def _in_turn(command: Command, shape: PeerShape, batches: list[Batch], wide: bool, peer: Step) -> tuple[float, float]:
    """Median seconds of a step, ours and the peer's."""
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
    task = RankingTask(schema, RankingConfig(architecture))
    stream = _TurnTaking(batches, peer, command.rounds, command.steps)
    data = TrainingData(lambda start, epochs: stream, lambda split, epochs: _OneBatch(batches[0]), ("train", "valid"))
    worker = Worker(options=RunOptions(threads=command.threads, reader="in_process"))
    loop = LoopConfig(epochs=1, precision=command.precision)
    run_training(task, data, loop, OptimizerConfig(weight_decay=0.0), _NoCheckpoints(), worker=worker)
    return statistics.median(stream.ours), statistics.median(stream.theirs)


class _TurnTaking:
    """A training stream whose epoch is ``rounds`` turns: some batches to the loop that reads it, some steps of the peer.

    ours, theirs: seconds of a step, a mean for each round behind the first, which warms up.
    """

    def __init__(self, batches: list[Batch], peer: Step, rounds: int, steps: int) -> None:
        self.batches, self.peer, self.rounds, self.steps = batches, peer, rounds, steps
        self.steps_per_epoch = (rounds + 1) * steps
        self.position = StreamPosition()
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def epoch_batches(self) -> Iterator[tuple[Batch, None]]:
        for turn in range(self.rounds + 1):
            started = time.perf_counter()
            for i in range(self.steps):
                done = turn * self.steps + i + 1
                self.position = StreamPosition(*divmod(done, self.steps_per_epoch))
                yield self.batches[done % len(self.batches)], None
            between = time.perf_counter()
            for i in range(self.steps):
                self.peer((turn * self.steps + i) % len(self.batches))
            if turn:
                self.ours.append((between - started) / self.steps)
                self.theirs.append((time.perf_counter() - between) / self.steps)

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
