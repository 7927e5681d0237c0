"""APOLLO against AdamW (fused, foreach) and apollo-torch: optimizer state and step time on two parameter lists, 2 threads.

    python -m benchmarks.apollo

t5:     48 matrices 512 x 512, 12 of 2048 x 512, 12 of 512 x 2048, 30 vectors of 512 (37.8 M parameters).
ranker: 320 small matrices of a multi-task ranker's layers and 320 vectors.

APOLLO's rank is a quarter of the smaller dimension, Mini's is 1; "compiled" is what ``--running.compile-update`` runs here, the
CPU's kernel (``rayrec.optim.apollo_kernel``), and "mini generated" what torch.compile makes of the eager update. "products" are
those of APOLLO's projections and nothing else, by ``project`` and by ``torch.mm``, one call a matrix. "read and subtract" is what
Mini cannot do without, in torch's calls: a norm of each gradient and its scaled subtraction. All step the same parameters with
the same gradients, without weight decay, in turn within each round; the table shows medians over the rounds. APOLLO is compared
with the faster products.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from benchmarks.apollo_torch_peer import load_apollo_torch
from rayrec.optim.apollo import Apollo, Compiler
from rayrec.optim.compiling import compiled_or_plain
from rayrec.optim.random_projection import draw_projection, project

T5 = [(512, 512)] * 48 + [(2048, 512)] * 12 + [(512, 2048)] * 12 + [(512,)] * 30
RANKER = [(64, 64)] * 120 + [(128, 64)] * 80 + [(64, 128)] * 80 + [(256, 128)] * 40 + [(64,)] * 200 + [(128,)] * 120
LISTS = {"t5": T5, "ranker": RANKER}
LEARNING_RATE = 1e-6  # the parameters must not drift away while they are timed


@dataclass(frozen=True)
class Options:
    """rounds: timed steps of each optimizer. threads: intra-op threads.

    cpu_time: time the calling thread's CPU time instead of the wall clock, for busy machines; only with one thread.
    generated: Mini by torch.compile too, a minute or two of compiling.
    """

    rounds: int = 25
    warmup: int = 4
    threads: int = 2
    cpu_time: bool = False
    generated: bool = False

    def __post_init__(self) -> None:
        if self.cpu_time and self.threads != 1:
            raise ValueError("cpu_time sees the calling thread only: use --threads 1")


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor in the live state, stored or cached projections included; a step counter counts as 8."""
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                total += value.nbytes
            elif isinstance(getattr(value, "ortho_matrix", None), Tensor):  # apollo-torch's projector object
                total += value.ortho_matrix.nbytes
            else:
                total += 8
    return total + (optimizer.projections.bytes if isinstance(optimizer, Apollo) else 0)


def optimizers(
    parameters: list[nn.Parameter], *, generated: bool = False
) -> dict[str, Callable[[], torch.optim.Optimizer]]:
    """How to build each optimizer over the same parameters."""
    matrices = [p for p in parameters if p.dim() == 2]
    vectors = [p for p in parameters if p.dim() != 2]
    peer = load_apollo_torch()[0].AdamW
    ranks = {"apollo": None, "mini": 1}
    kinds: dict[str, Any] = {
        "apollo": {"scale_type": "channel", "scale": 1.0},
        "mini": {"scale_type": "tensor", "scale": 128.0},
    }

    def ours(name: str, compiler: Compiler | None = None, *, cpu_kernel: bool = False) -> torch.optim.Optimizer:
        own = {"params": matrices, "rank": ranks[name] or 0.25, **kinds[name]}
        groups = [own, {"params": vectors, "kind": "adamw"}]
        return Apollo(groups, lr=LEARNING_RATE, compiler=compiler, cpu_kernel=cpu_kernel)

    def official(name: str) -> torch.optim.Optimizer:
        by_rank: dict[int, list[nn.Parameter]] = {}
        for p in matrices:
            by_rank.setdefault(ranks[name] or min(p.shape) // 4, []).append(p)
        fixed = {"proj": "random", "proj_type": "std", "update_proj_gap": 200}
        groups = [{"params": p, "rank": rank, **fixed, **kinds[name]} for rank, p in by_rank.items()]
        return peer([*groups, {"params": vectors}], lr=LEARNING_RATE)

    built: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adamw fused": lambda: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        "adamw foreach": lambda: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, foreach=True),
        "apollo": lambda: ours("apollo"),
        "mini": lambda: ours("mini"),
        "apollo compiled": lambda: ours("apollo", cpu_kernel=True),
        "mini compiled": lambda: ours("mini", cpu_kernel=True),
        "apollo-torch apollo": lambda: official("apollo"),
        "apollo-torch mini": lambda: official("mini"),
    }
    return built | ({"mini generated": lambda: ours("mini", compiled_or_plain)} if generated else {})


def bare_calls(parameters: list[nn.Parameter]) -> dict[str, Callable[[], None]]:
    """What a step cannot do without, as calls of torch and nothing else."""
    matrices = [p for p in parameters if p.dim() == 2]
    gradients = [p.grad for p in matrices if p.grad is not None]
    projections = {n: draw_projection(0, 0, n // 4, n) for n in {min(g.shape) for g in gradients}}

    def by_project() -> None:
        for gradient in gradients:
            project(gradient, projections[min(gradient.shape)])

    def by_mm() -> None:
        for gradient in gradients:
            projection = projections[min(gradient.shape)]
            _ = gradient @ projection.t() if gradient.shape[0] >= gradient.shape[1] else projection @ gradient

    def read_and_subtract() -> None:
        for parameter, gradient in zip(matrices, gradients, strict=True):
            torch.linalg.vector_norm(gradient)
            parameter.data.sub_(gradient, alpha=LEARNING_RATE)

    return {"products, project": by_project, "products, mm": by_mm, "read and subtract": read_and_subtract}


def measure(shapes: Sequence[tuple[int, ...]], options: Options) -> dict[str, tuple[float, int]]:
    """Median milliseconds of a step and bytes of state, by optimizer or bare calls."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    built = {name: build() for name, build in optimizers(parameters, generated=options.generated).items()}
    calls: dict[str, Callable[[], object]] = {name: optimizer.step for name, optimizer in built.items()}
    calls |= bare_calls(parameters)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(options.warmup + options.rounds):
        for name, call in calls.items():
            started = clock()
            call()
            if round_ >= options.warmup:
                times[name].append(1e3 * (clock() - started))
    state = {name: state_bytes(optimizer) for name, optimizer in built.items()}
    return {name: (statistics.median(values), state.get(name, 0)) for name, values in times.items()}


def ratios(measured: dict[str, tuple[float, int]]) -> dict[str, dict[str, float]]:
    """Ours over each peer, and over the bare calls that limit it."""
    own = [name for name in measured if name.split()[0] in ("apollo", "mini")]
    products = min(("products, project", "products, mm"), key=lambda name: measured[name][0])

    def over(index: int, peer: Callable[[str], str]) -> dict[str, float]:
        return {name: round(measured[name][index] / measured[peer(name)][index], 4) for name in own}

    return {
        "state_over_adamw": over(1, lambda name: "adamw fused"),
        "step_over_adamw_fused": over(0, lambda name: "adamw fused"),
        "step_over_adamw_foreach": over(0, lambda name: "adamw foreach"),
        "step_over_apollo_torch": over(0, lambda name: f"apollo-torch {name.split()[0]}"),
        "step_over_bare_calls": over(0, lambda name: products if name.startswith("apollo") else "read and subtract"),
    }


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    results = {}
    for name, shapes in LISTS.items():
        measured = measure(shapes, options)
        print(f"{name}: {len(shapes)} parameters")
        for optimizer, (milliseconds, bytes_) in measured.items():
            print(f"  {optimizer:<22}{milliseconds:>9.2f} ms a step{bytes_ / 1e6:>10.2f} MB of state", flush=True)
        results[name] = ratios(measured)
    print(json.dumps(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
