"""Step time of LSPR and SCR over plain training: python -m benchmarks.perturbation

A trunk-heavy ranker of two tasks on random data; each step is forward, losses, backward and optimizer. By the share of rows
that get a perturbed copy: two forward and backward passes of the trunk (2.0) are the limit where all do. Noise on numbers and
embedding vectors needs no second lookup; "ids" also drops and swaps categories, which does.
"""

import json
from dataclasses import dataclass, replace

import torch
import tyro

from benchmarks.trunk_heavy import random_batch, ratios_in_turn, training_step, trunk_heavy_task
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.tasks.ranking import RankingConfig


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
    ratios, times = ratios_in_turn(steps, dict.fromkeys(steps, command.rounds), command.device)
    print(
        f"batch {command.batch_size:,}, {command.threads} threads, {command.device}; plain step {times['plain']:.3f} s"
    )
    print(f"{'method':<10}" + "".join(f"{f'rows {fraction:g}':>12}" for fraction in command.fractions))
    over = {name: {str(f): round(ratios[f"{name} {f}"], 4) for f in command.fractions} for name in METHODS}
    for name, row in over.items():
        print(f"{name:<10}" + "".join(f"{value:>12.3f}" for value in row.values()))
    print(json.dumps({f"{name}_over_plain": row for name, row in over.items()}))


if __name__ == "__main__":
    main()
