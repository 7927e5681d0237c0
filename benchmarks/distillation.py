"""Step time of UKDSL over supervised training: python -m benchmarks.distillation

A trunk-heavy ranker of two tasks on random data, teacher scores precomputed; each step is forward, losses, backward and
optimizer. With r unlabeled rows per labeled row the limit is 1 + r, what as many labeled rows would cost.
"""

import json
from dataclasses import dataclass, replace

import torch
import tyro

from benchmarks.trunk_heavy import measure_in_turn, random_batch, training_step, trunk_heavy_task
from rayrec.batch import Batch
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.distillation import DistillationConfig


@dataclass(frozen=True)
class Command:
    """ratios: unlabeled rows per labeled row."""

    ratios: tuple[int, ...] = (1, 4)
    tasks: int = 2
    batch_size: int = 2048
    rounds: int = 7
    threads: int = 2
    device: str = "cpu"
    bf16: bool = False


HEADS = {
    "step": DistillationConfig(unlabeled_weight=1.0),
    "auxiliary_step": DistillationConfig(unlabeled_weight=1.0, head="auxiliary"),
}


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(command.threads)
    batch = random_batch(command.batch_size, command.tasks).to(command.device)
    steps = {"plain": training_step(trunk_heavy_task(command.tasks, RankingConfig()), batch, bf16=command.bf16)}
    for name, distillation in HEADS.items():
        for ratio in command.ratios:
            task = trunk_heavy_task(command.tasks, RankingConfig(distillation=distillation))
            unlabeled = _scored_batch(ratio * command.batch_size, command.tasks, task.unlabeled_extras()).to(
                command.device
            )
            steps[f"{name} {ratio}"] = training_step(task, batch, bf16=command.bf16, unlabeled=unlabeled)
    measured = measure_in_turn(steps, dict.fromkeys(steps, command.rounds), command.device)
    plain = measured["plain"].seconds
    print(f"batch {command.batch_size:,}, {command.threads} threads, {command.device}; supervised step {plain:.3f} s")
    print(f"{'head':<16}{'clock':>6}" + "".join(f"{f'ratio {ratio}':>12}" for ratio in command.ratios))
    report: dict[str, dict[str, float]] = {}
    for name in HEADS:
        rows = {str(ratio): measured[f"{name} {ratio}"] for ratio in command.ratios}
        print(f"{name:<16}{'wall':>6}" + "".join(f"{row.ratio:>12.3f}" for row in rows.values()))
        print(f"{'':<16}{'cpu':>6}" + "".join(f"{row.cpu_ratio:>12.3f}" for row in rows.values()))
        report[f"{name}_over_supervised"] = {ratio: round(row.ratio, 4) for ratio, row in rows.items()}
        report[f"{name}_cpu_over_supervised"] = {ratio: round(row.cpu_ratio, 4) for ratio, row in rows.items()}
    print(json.dumps(report))


def _scored_batch(rows: int, tasks: int, columns: tuple[str, ...]) -> Batch:
    """Unlabeled rows with a teacher's scores in ``columns``."""
    batch = random_batch(rows, tasks)
    scores = {name: torch.linspace(0.01, 0.99, rows, dtype=torch.float64) for name in columns}
    return replace(batch, labels=torch.full_like(batch.labels, torch.nan), extras=scores)


if __name__ == "__main__":
    main()
