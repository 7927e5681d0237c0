"""The matrix products of a step, recorded as they are made, to be timed without anything else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_FACTORS: Mapping[Any, int] = {  # where a product's two factors stand among its arguments
    _aten.mm.default: 0,
    _aten.mm.out: 0,
    _aten.bmm.default: 0,
    _aten.bmm.out: 0,
    _aten.addmm.default: 1,
    _aten.addmm.out: 1,
    _aten.addmm_.default: 1,
    _aten.baddbmm.default: 1,
}


class MatrixProducts:
    """What ``recorded`` saw. ``flops``: twice the multiplications."""

    def __init__(self, factors: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._operands = [(a, b, torch.empty(*a.shape[:-1], b.shape[-1], dtype=a.dtype)) for a, b in factors]
        self.flops = sum(2 * a.numel() * b.shape[-1] for a, b, _ in self._operands)

    def run(self) -> None:
        """Each product once, in order, into memory of its own: nothing is added, copied or allocated."""
        for a, b, out in self._operands:
            (torch.bmm if a.dim() == 3 else torch.mm)(a, b, out=out)


def recorded(step: Callable[[], None]) -> MatrixProducts:
    """The products of matrices, those of a backward pass included, that ``step`` makes, of other numbers but the same shapes,
    strides and dtypes. A bias or sum that a product is added to counts as none of its work."""
    recorder = _Recorder()
    with recorder:
        step()
    return MatrixProducts(recorder.factors)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.factors: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORS:
            first = _FACTORS[func]
            self.factors.append((_like(args[first]), _like(args[first + 1])))
        return func(*args, **(kwargs or {}))


def _like(x: Tensor) -> Tensor:
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return torch.randn(span).to(x.dtype).as_strided(x.shape, x.stride())
