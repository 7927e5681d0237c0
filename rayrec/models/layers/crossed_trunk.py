"""What a ranker's heads share, a full-matrix cross network and a trunk, as one node of autograd's.

Apart they cost a training step many passes over matrices as large as its input: results are put side by side, each has a
gradient of its own, and these are split, padded and added up again. Here each part writes to its place in one result, and going
back adds to one gradient in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrec.models.layers.interaction import cross, cross_back
from rayrec.models.layers.padded_linear import padded as next_width
from rayrec.models.layers.padded_linear import with_bias


@dataclass(frozen=True)
class CrossedTrunk:
    """How the parts lie together. x (B, P + H): the input with the columns of ``with_padding``, then H logits of a wide part,
    H = 0 without one. h (B, D): the cross network's output and the trunk's of x (parallel), or only the trunk's of the cross
    network's output, then the wide part's logits with those of numbers added.

    width: of the input, N <= P = padded. dense: its columns of numbers, of which the wide part has a linear model; None = it has
    none.
    """

    width: int
    padded: int
    dense: slice | None
    parallel: bool

    def __call__(
        self, x: Tensor, crosses: Sequence[nn.Linear], trunk: Sequence[nn.Linear], wide_dense: nn.Linear | None
    ) -> Tensor:
        """h of x, of the layers' parameters."""
        given = [p for layers in (crosses, trunk) for p in (*(x.weight for x in layers), *(x.bias for x in layers))]
        h: Tensor = _Function.apply(
            x, self, 2 * len(crosses), *given, None if wide_dense is None else wide_dense.weight
        )
        return h


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: CrossedTrunk, crosses: int, *parameters: Tensor | None) -> Tensor:
        ctx.parts = parts
        *given, wide_dense = parameters
        weights, biases = _halves(given[:crosses])
        layers, shifts = _halves(given[crosses:])
        x0, n, behind = x[:, : parts.padded], parts.width if parts.parallel else 0, x.shape[1] - parts.padded
        h = x.new_empty(len(x), n + len(layers[-1]) + behind)
        crossed, used, inputs, projected = cross(x0, weights, biases, out=h[:, :n] if parts.parallel else None)
        # ReLU's outputs are what going back needs of it
        hidden = [x0 if parts.parallel else crossed]
        padded = with_bias(layers[0], shifts[0], parts.padded) if parts.padded > parts.width else layers[0]
        for i, (weight, bias) in enumerate(zip(layers, shifts, strict=True)):
            whole = padded is not weight and i == 0
            out = hidden[-1] @ padded.t() if whole else torch.addmm(bias, hidden[-1], weight.t())
            last = i == len(layers) - 1
            hidden.append(torch.clamp_min(out, 0.0, out=h[:, n : n + len(weight)]) if last else out.relu_())
        wide = h[:, n + len(layers[-1]) :]
        if parts.dense is not None and wide_dense is not None:
            torch.addmm(x[:, parts.padded :], x[:, parts.dense], wide_dense.t(), out=wide)
        else:
            wide.copy_(x[:, parts.padded :])
        ctx.counts = len(weights), len(layers)
        ctx.save_for_backward(x, h, *used, *inputs, *projected, padded, *layers[1:], *hidden[:-1], wide_dense)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, (crosses, deep) = ctx.parts, ctx.counts
        x, h, *saved, wide_dense = ctx.saved_tensors
        used, inputs, projected = (saved[i * crosses : (i + 1) * crosses] for i in range(3))
        layers, hidden = saved[3 * crosses : 3 * crosses + deep], saved[3 * crosses + deep :]
        n, padded = parts.width, parts.padded
        start = n if parts.parallel else 0
        end = h.shape[1] - (x.shape[1] - padded)
        # rows start where a table's would, so that a lookup's gradient is summed where it lies
        at_x = x.new_empty(len(x), next_width(x.shape[1]))[:, : x.shape[1]]
        at_x0 = at_x[:, :padded]
        at_crossed = x.new_empty(len(x), padded)
        if parts.parallel:
            at_crossed[:, :n] = gradient[:, :n]
            at_crossed[:, n:] = 0.0
        at, outputs = gradient[:, start:end], [*hidden[1:], h[:, start:end]]
        at_layers, at_shifts = [], []
        for i in reversed(range(deep)):
            at = torch.ops.aten.threshold_backward(at, outputs[i], 0)
            at_weight = at.t() @ hidden[i]
            whole = i == 0 and padded > n
            at_shifts.append(at_weight[:, n] if whole else at.sum(0))
            at_layers.append(at_weight[:, :n] if whole else at_weight)
            if i:
                at = at @ layers[i]
        if parts.parallel:
            at_weights, at_biases = cross_back(at_crossed, used, inputs, projected, n, out=at_x0)
            at_x0.addmm_(at, layers[0])
        else:
            torch.mm(at, layers[0], out=at_crossed)
            at_weights, at_biases = cross_back(at_crossed, used, inputs, projected, n, out=at_x0)
        at_wide, at_wide_dense = gradient[:, end:], None
        at_x[:, padded:] = at_wide
        if wide_dense is not None:
            at_x[:, parts.dense].addmm_(at_wide, wide_dense)
            at_wide_dense = at_wide.t() @ x[:, parts.dense]
        own = (*at_weights, *at_biases, *reversed(at_layers), *reversed(at_shifts))
        return (at_x, None, None, *own, at_wide_dense)


def _halves(parameters: Sequence[Any]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Weights and biases."""
    half = len(parameters) // 2
    return parameters[:half], parameters[half:]
