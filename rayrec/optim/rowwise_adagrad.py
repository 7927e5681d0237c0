"""Row-wise Adagrad for embedding tables: one accumulator a row, and only rows with a gradient are touched.

Source: Naumov et al. 2019 (DLRM), as in FBGEMM's EXACT_ROWWISE_ADAGRAD: G_i <- G_i + mean_j g_ij^2,
w_i <- w_i - lr * g_i / (sqrt(G_i) + eps).
"""

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from rayrec.optim.cpu_kernels import Kernel, cpu_kernel
from rayrec.optim.eager import EagerOptimizer
from rayrec.optim.sparse_rows import merge_rows

_SOURCE = Path(__file__).with_suffix(".cpp")
_CHEAP_TO_LOOK_AT = ("cpu",)  # devices where finding the rows with a gradient makes no one wait


class RowwiseAdagrad(EagerOptimizer):
    """For 2-D parameters (V, d) with sparse or dense gradients; a row whose gradient is all zero stays as it is.

    weight_decay: L2 added to the gradient of rows that have one, so its strength on a row grows with how often it is seen.
    State: (V,) float32 a table. by_kernel: contiguous float32 tables on the CPU are updated by a kernel that a C++ compiler (CXX,
    else g++) builds in a second at the first step, eagerly where that fails. Raises ValueError for parameters that are not 2-D.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        by_kernel: bool = False,
    ) -> None:
        if lr < 0 or weight_decay < 0 or eps <= 0:
            raise ValueError("row-wise Adagrad needs lr >= 0, weight_decay >= 0 and eps > 0")
        self.by_kernel = by_kernel
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps})
        for group in self.param_groups:
            for table in group["params"]:
                if table.dim() != 2:
                    raise ValueError(f"row-wise Adagrad takes (rows, dim) tables, not shape {tuple(table.shape)}")
                self.state[table]["sum"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    rowwise_adagrad_update(
                        table,
                        self.state[table]["sum"],
                        lr=group["lr"],
                        weight_decay=group["weight_decay"],
                        eps=group["eps"],
                        by_kernel=self.by_kernel,
                    )
        return loss


def rowwise_adagrad_update(
    table: Tensor,  # (V, d) with a gradient, updated in place
    sums: Tensor,  # (V,) float32 accumulators, updated in place
    *,
    lr: float,
    weight_decay: float,
    eps: float,
    by_kernel: bool = False,
) -> None:
    """One step of one table from its gradient; by_kernel: as of ``RowwiseAdagrad``.

    Reads nothing on the host when the gradient is dense and not on a CPU."""
    assert table.grad is not None
    if not table.grad.is_sparse and table.device.type not in _CHEAP_TO_LOOK_AT:
        _update_all(table, sums, table.grad.float(), lr, weight_decay, eps)
        return
    rows, gradient = _touched(table.grad)
    gradient = gradient.float()
    if by_kernel and _is_for_kernel(table) and _is_for_kernel(sums) and (kernel := _kernel()) is not None:
        rows, gradient = rows.contiguous(), gradient.contiguous()
        places = (tensor.data_ptr() for tensor in (rows, gradient, table, sums))
        kernel(*gradient.shape, *places, lr, weight_decay, eps, torch.get_num_threads())
        return
    if weight_decay:
        decayed = table.index_select(0, rows)
        still = (gradient[:, 0] == 0.0).nonzero().squeeze(1)  # those looked up without a gradient: few begin with 0
        decayed[still[~gradient[still].any(1)]] = 0.0
        gradient = gradient.add(decayed, alpha=weight_decay)
    accumulated = sums.index_select(0, rows).add_(gradient.square().mean(1))
    sums.index_copy_(0, rows, accumulated)
    steps = gradient * (-lr / (accumulated.sqrt() + eps)).unsqueeze(1)
    table.index_add_(0, rows, steps.to(table.dtype))


def _update_all(table: Tensor, sums: Tensor, gradient: Tensor, lr: float, weight_decay: float, eps: float) -> None:
    """The same from a dense gradient (V, d): rows without one get a step of zero, so none has to be looked for."""
    if weight_decay:
        gradient = gradient + table * (weight_decay * gradient.any(1, keepdim=True))
    sums += gradient.square().mean(1)
    table.sub_(gradient * (lr / (sums.sqrt() + eps)).unsqueeze(1))


def _is_for_kernel(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _kernel() -> Kernel | None:
    sizes, places, settings = [ctypes.c_int64] * 2, [ctypes.c_void_p] * 4, [ctypes.c_float] * 3
    return cpu_kernel(_SOURCE, "rowwise_adagrad_step", (*sizes, *places, *settings, ctypes.c_int32))


def _touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (n,) of the rows with a gradient, each once, and their gradients (n, d)."""
    if gradient.is_sparse:
        merged = merge_rows(gradient)
        return merged._indices()[0], merged._values()
    rows = gradient.any(1).nonzero().squeeze(1)
    return rows, gradient[rows]
