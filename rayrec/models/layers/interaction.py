"""Explicit feature interactions: the cross network of DCN-v2 and the dot products of DLRM."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
    return torch.addmm(bias, x, weight.t()) if len(bias) == x.shape[1] else x @ _with_bias(weight, bias, x.shape[1]).t()


def _with_bias(weight: Tensor, bias: Tensor, width: int) -> Tensor:
    """(P, P) of W (N, N), N < P: the bias in the column that meets the ones of ``with_padding``, zeros elsewhere."""
    n = len(bias)
    whole = weight.new_zeros(width, width)
    whole[:n, :n] = weight
    whole[:n, n] = bias
    return whole


class _FullCross(torch.autograd.Function):
    """All full-matrix layers at once: x0 (B, P), weights (N, N), then biases (N,), N <= P. Backward adds into its results where
    autograd would write each term to memory of its own."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        weights, biases = parameters[:layers], parameters[layers:]
        inputs, projected, used = [], [], []
        x = x0
        for weight, bias in zip(weights, biases, strict=True):
            inputs.append(x)
            used.append(weight if len(bias) == x.shape[1] else _with_bias(weight, bias, x.shape[1]))
            projected.append(torch.addmm(bias, x, weight.t()) if used[-1] is weight else x @ used[-1].t())
            x = torch.addcmul(x, x0, projected[-1])
        ctx.save_for_backward(*used, *inputs, *projected)
        ctx.width = len(biases[0])
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        layers = len(ctx.saved_tensors) // 3
        weights, inputs, projected = (ctx.saved_tensors[i * layers : (i + 1) * layers] for i in range(3))
        x0 = inputs[0]
        at_weights, at_biases = [], []
        at_x0, at_projected = gradient * projected[-1], torch.empty_like(x0)
        at_x = gradient  # the gradient at a layer's output, then at its input
        for i in reversed(range(layers)):
            torch.mul(at_x, x0, out=at_projected)
            if i < layers - 1:
                at_x0.addcmul_(at_x, projected[i])
            at_weight, n = at_projected.t() @ inputs[i], ctx.width
            at_weights.append(at_weight[:n, :n])
            at_biases.append(at_weight[:n, n] if len(at_weight) > n else at_projected.sum(0))
            # autograd's own gradient is not written to; addmm would copy the others too
            add = torch.addmm if at_x is gradient else torch.Tensor.addmm_
            at_x = add(at_x, at_projected, weights[i])
        return (at_x0.add_(at_x), *reversed(at_weights), *reversed(at_biases))


class DotInteraction(nn.Module):
    """Dot products of all pairs of K vectors (Naumov et al. 2019, DLRM): (B, K, d) to (B, K (K - 1) / 2)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        products = torch.bmm(vectors, vectors.transpose(1, 2))  # (B, K, K)
        return products[:, self.rows, self.columns]
