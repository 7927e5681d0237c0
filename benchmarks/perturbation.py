"""Step time of LSPR and SCR over plain training: python -m benchmarks.perturbation

A trunk-heavy ranker of two tasks on random data; each step is forward, losses, backward and optimizer. By the share of rows
that get a perturbed copy: two forward and backward passes of the trunk (2.0) are the limit where all do. Noise on numbers and
embedding vectors needs no second lookup; "ids" also drops and swaps categories, which does.
"""

import json
from dataclasses import dataclass, replace

import torch
import tyro

from benchmarks.trunk_heavy import measure_in_turn, random_batch, training_step, trunk_heavy_task
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.perturbation import PerturbationConfig


@dataclass(frozen=True)
class Command:
    """fractions: shares of rows that get a perturbed copy."""

    fractions: tuple[float, ...] = (1.0, 0.25)
    tasks: int = 2
    batch_size: int = 4096
    rounds: int = 15
    threads: int = 2
    device: str = "cpu"
    bf16: bool = False


METHODS = {
    "lspr": PerturbationConfig("lspr", 0.5),
    "scr": PerturbationConfig("scr", 1.0),
    "lspr_ids": PerturbationConfig("lspr", 0.5, feature_dropout=0.05, category_swap=0.05),
}


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(command.threads)
    batch = random_batch(command.batch_size, command.tasks).to(command.device)
    configs: dict[str, PerturbationConfig | None] = {"plain": None}
    for name, config in METHODS.items():
        configs |= {f"{name} {fraction}": replace(config, row_fraction=fraction) for fraction in command.fractions}
    steps = {
        name: training_step(
            trunk_heavy_task(command.tasks, RankingConfig(perturbation=config)), batch, bf16=command.bf16
        )
        for name, config in configs.items()
    }
    measured = measure_in_turn(steps, dict.fromkeys(steps, command.rounds), command.device)
    print(
        f"batch {command.batch_size:,}, {command.threads} threads, {command.device}; plain step {measured['plain'].seconds:.3f} s"
    )
    print(f"{'method':<10}{'clock':>6}" + "".join(f"{f'rows {fraction:g}':>12}" for fraction in command.fractions))
    report: dict[str, dict[str, float]] = {}
    for name in METHODS:
        rows = [measured[f"{name} {fraction}"] for fraction in command.fractions]
        print(f"{name:<10}{'wall':>6}" + "".join(f"{row.ratio:>12.3f}" for row in rows))
        print(f"{'':<10}{'cpu':>6}" + "".join(f"{row.cpu_ratio:>12.3f}" for row in rows))
        fractions = [str(fraction) for fraction in command.fractions]
        report[f"{name}_over_plain"] = {f: round(row.ratio, 4) for f, row in zip(fractions, rows, strict=True)}
        report[f"{name}_cpu_over_plain"] = {f: round(row.cpu_ratio, 4) for f, row in zip(fractions, rows, strict=True)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
