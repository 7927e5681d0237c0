"""APOLLO's step of float32 matrices on the CPU as one kernel, ``apollo_kernel.cpp``, built by the machine's C++ compiler.

A matrix is read, given its scales and updated before the next one is looked at, so that its gradient comes from memory once; the
code torch generates instead makes each pass over several matrices. ``rayrec.optim.apollo_update`` is the reference.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayrec.optim import cpu_kernels
from rayrec.optim.apollo_update import UpdateSettings
from rayrec.optim.cpu_kernels import Kernel
from rayrec.optim.random_projection import project, project_stack

_SOURCE = Path(__file__).with_suffix(".cpp")


class _Settings(ctypes.Structure):
    _fields_ = (
        ("weight1", ctypes.c_float),
        ("beta2", ctypes.c_float),
        ("weight2", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("norm_growth", ctypes.c_float),
        ("one_scale", ctypes.c_int32),
    )


def cpu_kernel() -> Kernel | None:
    """``apollo_step`` of the C++ source; None where it cannot be built (``rayrec.optim.cpu_kernels.cpu_kernel``)."""
    arguments = (*[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 10, _Settings, ctypes.c_int32)
    return cpu_kernels.cpu_kernel(_SOURCE, "apollo_step", arguments)


def is_for_kernel(params: Sequence[Tensor], exp_avg: Tensor) -> bool:
    """Whether the kernel takes such parameters: float32 as their moments, on the CPU, rows one after another."""
    return exp_avg.device.type == "cpu" and all(
        t.dtype == torch.float32 and t.is_contiguous() for t in (*params, exp_avg)
    )


def update_by_kernel(
    kernel: Kernel,
    params: list[Tensor],  # of one shape, all together k matrices; updated in place
    gradients: list[Tensor],  # same shapes
    projection: Tensor,  # (r, min(m, n))
    exp_avg: Tensor,  # (k, *low), updated in place
    exp_avg_sq: Tensor,  # (k, *low), updated in place
    norms: Tensor,  # (k,) remembered norms, updated in place
    sizes: Tensor,  # (k,)
    decay: Tensor | None,  # () learning rate times weight decay
    *,
    shape: tuple[int, int],  # (m, n)
    stacked: bool,  # small matrices: their products in one call
    settings: UpdateSettings,
) -> None:
    """``update_stacked`` and ``update_in_place`` by the kernel, and the products of a projection of several rows by torch."""
    count, rank, channels = len(norms), len(projection), max(shape)
    gradients = [gradient.contiguous() for gradient in gradients]
    matrices = count // len(params)
    if rank == 1:
        products = exp_avg.new_empty(count, channels)
        lows, single = _addresses(products.unbind()), projection.data_ptr()
    elif stacked:
        products = project_stack(torch.stack(gradients).view(count, *shape), projection).contiguous()
        lows, single = _addresses(products.unbind()), None
    else:
        views = gradients
        if gradients[0].shape != shape:
            views = [matrix for gradient in gradients for matrix in gradient.view(matrices, *shape).unbind()]
        parts = [project(view, projection).contiguous() for view in views]
        lows, single = _addresses(parts), None
    scratch = exp_avg.new_empty(count, 3, channels)
    kernel(
        count, *shape, rank, _addresses(params, matrices), _addresses(gradients, matrices), single, lows,
        exp_avg.data_ptr(), exp_avg_sq.data_ptr(), norms.data_ptr(), sizes.data_ptr(),
        None if decay is None else decay.data_ptr(), scratch.data_ptr(),
        _Settings(
            1.0 - settings.beta1, settings.beta2, 1.0 - settings.beta2, settings.eps, settings.norm_growth or 0.0,
            settings.scale_type == "tensor",
        ),
        torch.get_num_threads(),
    )  # fmt: skip


def _addresses(tensors: Sequence[Tensor], parts: int = 1) -> Any:
    """Where each tensor, in so many equal parts, starts, as an array of C."""
    starts = [t.data_ptr() for t in tensors]
    if parts > 1:
        step = tensors[0].nbytes // parts
        starts = [start + i * step for start in starts for i in range(parts)]
    return (ctypes.c_void_p * len(starts))(*starts)
