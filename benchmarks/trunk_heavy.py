"""The trunk-heavy ranker that training methods are timed on, and how steps of several methods take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from rayrec.batch import Batch
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig, build_optimizer

Step = Callable[[], None]
DENSE, CATEGORICAL, IDS = 13, 26, 10_000
ARCHITECTURE = RankerArchitecture(cross_layers=3, trunk=(1024, 512, 128), tower=(64,))


def trunk_heavy_task(tasks: int, config: RankingConfig) -> RankingTask:
    """13 numbers, 26 categories of 10,000 ids; three full cross layers and a trunk of 1024-512-128: 5.8 million parameters."""
    numbers = [DenseFeature(f"number_{i}", statistics=DenseStatistics(0.0, 1.0, 0.0)) for i in range(DENSE)]
    categories = [CategoricalFeature(f"category_{i}", encoding="hash", buckets=IDS - 1) for i in range(CATEGORICAL)]
    labels = tuple(TaskLabel(f"task_{i}") for i in range(tasks))
    schema = LogSchema("trunk_heavy", (*numbers, *categories), labels)
    return RankingTask(schema, replace(config, architecture=ARCHITECTURE))


def random_batch(rows: int, tasks: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(rows, DENSE, generator=generator),
        torch.randint(0, IDS, (rows, CATEGORICAL), generator=generator),
        torch.randint(0, 2, (rows, tasks), generator=generator).float(),
    )


def training_step(task: RankingTask, batch: Batch, *, bf16: bool = False, unlabeled: Batch | None = None) -> Step:
    """A whole step on the batch's device: forward, loss, backward, optimizer."""
    device = batch.categorical.device
    torch.manual_seed(0)
    model = task.build().to(device)
    task.methods.to(device)
    optimizer = build_optimizer(model, OptimizerConfig())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total = task.loss(model, batch, unlabeled).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class Measured:
    """Medians over rounds: seconds of a step, and over step "plain" of the same round its wall-clock and its CPU time.

    The CPU time of all threads is what to look at on a machine that does other things too.
    """

    seconds: float
    ratio: float
    cpu_ratio: float


def measure_in_turn(steps: Mapping[str, Step], rounds: Mapping[str, int], device: str) -> dict[str, Measured]:
    """Let the steps take turns, each as often as ``rounds`` says, and compare each with step "plain" of the same round."""
    for step in steps.values():
        step()  # warm up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(max(rounds.values())):
        for name in steps if turn % 2 == 0 else reversed(list(steps)):  # nobody always runs behind the same neighbour
            if turn < rounds[name]:
                times[name].append(_timed(steps[name], device))
    measured = {}
    for name, own in times.items():
        ratios = [
            (wall / plain, cpu / plain_cpu)
            for (wall, cpu), (plain, plain_cpu) in zip(own, times["plain"], strict=False)
        ]
        measured[name] = Measured(
            statistics.median(wall for wall, _ in own),
            statistics.median(ratio for ratio, _ in ratios),
            statistics.median(ratio for _, ratio in ratios),
        )
    return measured


def _timed(step: Step, device: str) -> tuple[float, float]:
    """Seconds of one step: wall clock, CPU time of all threads."""
    if device != "cpu":
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - cpu
