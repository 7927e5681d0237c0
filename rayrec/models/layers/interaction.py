"""Explicit feature interactions: the cross network of DCN-v2 and the dot products of DLRM."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrec.models.layers.padded_linear import with_bias


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (Wang et al. 2021, DCN V2, equation 1). (B, N) to (B, N).

    The input may have the columns of ``with_padding`` behind; the output then has the same ones.
    rank: W_l = U_l V_l^T with that inner dimension (equation 2), or None for full matrices.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()
        self.width, self.rank = width, rank
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        extra = x0.shape[1] - self.width
        if self.rank is None and not torch.is_autocast_enabled(x0.device.type):
            layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
            if not torch.is_grad_enabled():  # the same products, without a node of autograd's
                x = x0
                for weight, bias in zip(weights, biases, strict=True):
                    x = torch.addcmul(x, x0, _projected(x, weight, bias))
                return x
            crossed: Tensor = _FullCross.apply(x0, *weights, *biases)
            return crossed
        inputs = x0[:, : self.width]
        x = inputs
        for layer in self.layers:
            x = torch.addcmul(x, inputs, layer(x).to(x0.dtype))
        return torch.cat([x, x0[:, self.width :]], dim=1) if extra else x


def _projected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b (B, P) of x (B, P), W (N, N) and b (N,); columns of padding are mapped to 0."""
    p = x.shape[1]
    return torch.addmm(bias, x, weight.t()) if len(bias) == p else x @ with_bias(weight, bias, p, p).t()


def cross(
    x: Tensor, x0: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, out: Tensor | None = None
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Full-matrix layers one after another, from x (B, P): x0 (B, P) of a width N <= P, weights (N, N), biases (N,), to (B, P).
    Also the weights, inputs and projections that ``cross_back`` needs.

    out: where the first columns of the output go, (B, N); they are then all that is returned of it.
    """
    inputs, projected, used = [], [], []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(x)
        used.append(weight if len(bias) == x.shape[1] else with_bias(weight, bias, x.shape[1], x.shape[1]))
        projected.append(torch.addmm(bias, x, weight.t()) if used[-1] is weight else x @ used[-1].t())
        if out is not None and i == len(weights) - 1:
            n = out.shape[1]
            x = torch.addcmul(x[:, :n], x0[:, :n], projected[-1][:, :n], out=out)
        else:
            x = torch.addcmul(x, x0, projected[-1])
    return x, used, inputs, projected


def cross_back(
    at_x: Tensor,
    x0: Tensor,
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    projected: Sequence[Tensor],
    width: int,
    *,
    out: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of ``cross``'s weights and biases. at_x (B, P): that of its output, which becomes that of its x; out (B, P):
    where that of x0 goes, but for what x brings. Adds in place where autograd would write each term to memory of its own.

    weights, inputs, projected: as ``cross`` gave them; width: N.
    """
    at_weights, at_biases = [], []
    at_projected, last = torch.empty_like(at_x), len(weights) - 1
    for i in reversed(range(len(weights))):
        torch.mul(at_x, x0, out=at_projected)
        if i == last:
            torch.mul(at_x, projected[i], out=out)
        else:
            out.addcmul_(at_x, projected[i])
        at_weight = at_projected.t() @ inputs[i]
        at_weights.append(at_weight[:width, :width])
        at_biases.append(at_weight[:width, width] if len(at_weight) > width else at_projected.sum(0))
        at_x.addmm_(at_projected, weights[i])
    return at_weights[::-1], at_biases[::-1]


class _FullCross(torch.autograd.Function):
    """``cross`` of x0 (B, P), weights (N, N), then biases (N,)."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        x, *used = cross(x0, x0, parameters[:layers], parameters[layers:])
        ctx.save_for_backward(*(tensor for tensors in used for tensor in tensors))
        ctx.width = len(parameters[-1])
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        layers = len(ctx.saved_tensors) // 3
        weights, inputs, projected = (ctx.saved_tensors[i * layers : (i + 1) * layers] for i in range(3))
        at_x, at_x0 = gradient.clone(memory_format=torch.contiguous_format), torch.empty_like(inputs[0])
        at_weights, at_biases = cross_back(at_x, inputs[0], weights, inputs, projected, ctx.width, out=at_x0)
        return (at_x0.add_(at_x), *at_weights, *at_biases)


class DotInteraction(nn.Module):
    """Dot products of all pairs of K vectors (Naumov et al. 2019, DLRM): (B, K, d) to (B, K (K - 1) / 2)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1, device="cpu")
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        products = torch.bmm(vectors, vectors.transpose(1, 2))  # (B, K, K)
        return products[:, self.rows, self.columns]
