"""Step time of gradient balancing over the plain weighted sum: python -m benchmarks.balancing

A trunk-heavy multi-task ranker on random data; each step is forward, losses, backward and optimizer. MultiBalance at the
representation, PCGrad and MGDA over all shared parameters, ours and TorchJD's, take turns in one process; the ratio of a step
to the plain step of the same round is taken, and the median over rounds reported.
"""

import json
from dataclasses import dataclass

import torch
import torchjd.aggregation
import torchjd.autojac
import tyro

from benchmarks.trunk_heavy import Measured, Step, measure_in_turn, random_batch, training_step, trunk_heavy_task
from rayrec.batch import Batch
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.balancing.mgda import Mgda
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.balancing.pcgrad import Pcgrad
from rayrec.methods.balancing.running_min_norm import RunningMinNorm
from rayrec.methods.means import masked_cross_entropy
from rayrec.optim import OptimizerConfig, build_optimizer


@dataclass(frozen=True)
class Command:
    """tasks: numbers of tasks. rounds: of the cheap methods; the T-fold ones take ``slow_rounds``, 0 = leave them out."""

    tasks: tuple[int, ...] = (2, 4, 8, 16)
    batch_size: int = 4096
    rounds: int = 15
    slow_rounds: int = 3
    threads: int = 2
    device: str = "cpu"
    bf16: bool = False


CHEAP = {
    "plain": None,
    "multibalance": Multibalance(),
    "running_min_norm": RunningMinNorm(),
    "running_min_norm_exact": RunningMinNorm(solver="exact"),
    "mgda_ub": Mgda(),
}
SLOW = {
    "pcgrad": Pcgrad(level="parameters"),
    "mgda": Mgda(level="parameters"),
}


def torchjd_step(
    command: Command, batch: Batch, tasks: int, aggregator: torchjd.aggregation.GramianWeightedAggregator
) -> Step:
    """TorchJD's multi-task backward pass: task by task (as ours), since embedding bags have no batching rule."""
    torch.manual_seed(0)
    model = trunk_heavy_task(tasks, RankingConfig()).build().to(command.device)
    optimizer = build_optimizer(model, OptimizerConfig(embeddings="adamw"))  # it needs dense gradients
    towers = list(model.towers.parameters())
    own = {id(p) for p in towers}
    shared = [p for p in model.parameters() if id(p) not in own]

    def step() -> None:
        with torch.autocast(command.device, torch.bfloat16, enabled=command.bf16):
            h = model.represent(batch)
            losses = masked_cross_entropy(model.heads(h).float(), batch.labels)
        optimizer.zero_grad()
        torchjd.autojac.mtl_backward(
            list(losses),
            h,
            tasks_params=[towers] * tasks,
            shared_params=shared,
            parallel_chunk_size=1,
            retain_graph=True,
        )
        torchjd.autojac.jac_to_grad(shared, aggregator)
        optimizer.step()

    return step


def measure(command: Command, tasks: int) -> dict[str, Measured]:
    """By method, "plain" among them."""
    batch = random_batch(command.batch_size, tasks).to(command.device)
    configs = CHEAP | (SLOW if command.slow_rounds else {})
    steps = {
        name: training_step(trunk_heavy_task(tasks, RankingConfig(balancing=config)), batch, bf16=command.bf16)
        for name, config in configs.items()
    }
    if command.slow_rounds:
        steps["pcgrad_torchjd"] = torchjd_step(command, batch, tasks, torchjd.aggregation.PCGrad())
        steps["mgda_torchjd"] = torchjd_step(command, batch, tasks, torchjd.aggregation.MGDA())
    rounds = {name: command.rounds if name in CHEAP else command.slow_rounds for name in steps}
    return measure_in_turn(steps, rounds, command.device)


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(command.threads)
    results: dict[int, dict[str, Measured]] = {}
    for tasks in command.tasks:
        results[tasks] = measure(command, tasks)
        names = [name for name in results[tasks] if name != "plain"]
        if len(results) == 1:
            print(
                f"batch {command.batch_size:,}, {command.threads} threads, {command.device}; times over the plain step's"
            )
            print("tasks  clock  plain s  " + "  ".join(f"{name:>18}" for name in names))
        row = results[tasks]
        print(f"{tasks:>5}   wall  {row['plain'].seconds:>7.3f}  " + "  ".join(f"{row[n].ratio:>18.3f}" for n in names))
        print(f"{'':>5}    cpu  {'':>7}  " + "  ".join(f"{row[n].cpu_ratio:>18.3f}" for n in names), flush=True)
    names = [name for name in next(iter(results.values())) if name != "plain"]
    over = {
        f"{name}_over_sum": {str(tasks): round(row[name].ratio, 4) for tasks, row in results.items()} for name in names
    }
    cpu = {
        f"{name}_cpu_over_sum": {str(tasks): round(row[name].cpu_ratio, 4) for tasks, row in results.items()}
        for name in names
    }
    print(json.dumps(over | cpu))


if __name__ == "__main__":
    main()
