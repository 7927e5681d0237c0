"""The trunk-heavy ranker that training methods are timed on, and how steps of several methods take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from rayrec.batch import Batch
from rayrec.data.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig, build_optimizer
from rayrec.tasks.ranking import RankingConfig, RankingTask

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


def seconds(step: Step, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratios_in_turn(
    steps: Mapping[str, Step], rounds: Mapping[str, int], device: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Let the steps take turns and compare each with step "plain" of the same round.

    rounds: how often a step has its turn, by name. Returns by name the median ratio to "plain", and the median seconds.
    """
    for step in steps.values():
        step()  # warm up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(max(rounds.values())):
        for name in steps if turn % 2 == 0 else reversed(list(steps)):  # nobody always runs behind the same neighbour
            if turn < rounds[name]:
                times[name].append(seconds(steps[name], device))
    ratios = {
        name: statistics.median(t / p for t, p in zip(own, times["plain"], strict=False)) for name, own in times.items()
    }
    return ratios, {name: statistics.median(own) for name, own in times.items()}
