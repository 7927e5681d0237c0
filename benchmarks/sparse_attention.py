"""Sparse against dense poly-attention over long histories: python -m benchmarks.sparse_attention.

Forward and backward of 60 codes, one a content, over 1k, 4k and 8k tokens, from states and keys that are given. Memory is summed
from torch's own allocation events: "peak" is the most that is held above the inputs; "working" the most in either pass above what
any attention must hold there: the output, and in the backward pass the gradients of all states and keys, which here are larger
than codes x tokens. Time is processor time, the median of repeats.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rayrec.models.layers.poly_attention import PolyAttention, masked_softmax
from rayrec.models.layers.sparse_attention import SparsePattern, SparsePolyAttention, attend, dense_mask

MIB = 2**20


@dataclass(frozen=True)
class Options:
    """tokens: of a history. codes: contents, and codes. users: histories at once. dim, code_dim: d and p.

    window, random_share, block: see SparsePattern; the paper's window and share.
    """

    tokens: tuple[int, ...] = (1024, 4096, 8192)
    codes: int = 60
    users: int = 4
    dim: int = 200
    code_dim: int = 128
    window: int = 512
    random_share: float = 0.1
    block: int = 20
    repeats: int = 7
    threads: int = 1


def measure(options: Options, tokens: int) -> dict[str, float]:
    """Of both memory in MiB and times in ms; share of the pairs that is attended."""
    torch.manual_seed(0)
    slots = -(-tokens // options.codes)
    pattern = SparsePattern(options.codes, slots, 0, options.window, options.random_share, options.block)
    sparse = SparsePolyAttention(options.dim, options.code_dim, pattern)
    dense = PolyAttention(options.dim, options.codes, options.code_dim)
    dense.load_state_dict(sparse.state_dict())
    grid = torch.randn(options.users, options.codes, slots, options.dim, requires_grad=True)
    real = torch.ones(options.users, options.codes, slots, dtype=torch.bool)
    states = grid.detach().flatten(1, 2).requires_grad_()
    keys = dense.keys(states).detach().requires_grad_()
    seen = real.flatten(1)
    masks = sparse.masks(options.codes, slots, 0)

    def dense_attention() -> Tensor:
        scores = dense.codes @ keys.transpose(1, 2)
        mixed: Tensor = masked_softmax(scores, seen.unsqueeze(1)) @ states
        return mixed

    found = {"attended": float(dense_mask(masks, options.codes * slots).float().mean())}
    runs: dict[str, Callable[[], Tensor]] = {
        "dense": dense_attention,
        "sparse": lambda: attend(states, keys, sparse.codes, seen, masks),
    }
    given = (states, keys, sparse.codes)
    returned = sum(one.nbytes for one in given)
    for name, run in runs.items():
        own = (states, keys, dense.codes if name == "dense" else sparse.codes)
        out = run()
        forward = peak_bytes(run) - out.nbytes
        both = peak_bytes(partial(_both, run, own))
        found[f"{name}_peak_mib"] = both / MIB
        found[f"{name}_working_mib"] = max(forward, both - returned) / MIB
        times = [_timed(run, own) for _ in range(options.repeats + 1)][1:]
        found[f"{name}_forward_ms"] = 1000 * median(first for first, _ in times)
        found[f"{name}_ms"] = 1000 * median(first + second for first, second in times)
    return found


def _both(run: Callable[[], Tensor], own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    out = run()
    return torch.autograd.grad(out, own, torch.ones_like(out))


def _timed(run: Callable[[], Tensor], own: tuple[Tensor, ...]) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    started = time.process_time()
    out = run()
    middle = time.process_time()
    torch.autograd.grad(out, own, torch.ones_like(out))
    return middle - started, time.process_time() - middle


def peak_bytes(run: Callable[[], object]) -> int:
    """The highest sum of torch's allocations that were not there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        kept = run()
    del kept
    held = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    rows = {tokens: measure(options, tokens) for tokens in options.tokens}
    print(f"{options.codes} codes, {options.users} histories, d {options.dim}, p {options.code_dim}, window {options.window}, "
          f"{options.random_share:.0%} of the others, {options.threads} threads; dense / sparse")  # fmt: skip
    columns = ("working_mib", "peak_mib", "forward_ms", "ms")
    print(f"{'tokens':>7}{'attended':>10}" + "".join(f"{column:>20}" for column in columns))
    for tokens, row in rows.items():
        cells = (f"{row[f'dense_{column}']:,.1f} / {row[f'sparse_{column}']:,.1f}" for column in columns)
        print(f"{tokens:>7}{row['attended']:>10.1%}" + "".join(f"{cell:>20}" for cell in cells))
    last = rows[max(rows)]
    names = {"memory": "working_mib", "time": "ms", "peak": "peak_mib", "forward_time": "forward_ms"}
    ratios = {f"{name}_ratio_8k": round(last[f"sparse_{key}"] / last[f"dense_{key}"], 4) for name, key in names.items()}
    print(json.dumps(ratios | {"by_tokens": rows}))


if __name__ == "__main__":
    main()
