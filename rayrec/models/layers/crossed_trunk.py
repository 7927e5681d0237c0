"""What a ranker's heads share, a full-matrix cross network and a trunk, as one node of autograd's.

Apart they cost a training step many passes over matrices as large as its input: results are put side by side, each has a
gradient of its own, and these are split, padded and added up again. Here each part writes to its place in one result, and going
back adds to one gradient in place. In bfloat16, too: a product's sums are then float32's, what lies between products is rounded.
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
        """h of x, of the layers' parameters. Under autocast in its dtype, what adds up over the cross layers too; a wide part's
        logits, which lose by that, are then left to the caller: neither columns of x nor ``wide_dense``."""
        given = [p for layers in (crosses, trunk) for p in (*(x.weight for x in layers), *(x.bias for x in layers))]
        of_wide, device = None if wide_dense is None else wide_dense.weight, x.device.type
        if torch.is_autocast_enabled(device):
            assert x.shape[1] == self.padded
            assert of_wide is None
            kind = torch.get_autocast_dtype(device)
            x, given = x.to(kind), [p.to(kind) for p in given]
        with torch.autocast(device, enabled=False):
            h: Tensor = _CrossedTrunk.apply(x, self, 2 * len(crosses), *given, of_wide)
        return h


class _CrossedTrunk(torch.autograd.Function):
    """One product makes all that x0 goes into: ``gate`` = W x0 + b + 1 of the first cross layer, whose output is x0 * gate, and
    beside it the first layer of a parallel trunk. In bfloat16 the gate is W x0 + b, and the output x0 * gate + x0: rounded beside
    a 1, a gate costs h up to half as much again as its own rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: CrossedTrunk, crosses: int, *parameters: Tensor | None) -> Tensor:
        *given, wide_dense = parameters
        weights, biases = _halves(given[:crosses])
        layers, shifts = _halves(given[crosses:])
        x0, n, padded, parallel = x[:, : parts.padded], parts.width, parts.padded, parts.parallel
        start = n if parallel else 0  # of the trunk's output
        end = start + len(layers[-1])
        h = x.new_empty(len(x), end + x.shape[1] - padded)

        first, shift = _first(parts, weights[0], biases[0], layers[0], shifts[0])
        product = x0 @ first.t() if shift is None else torch.addmm(shift, x0, first.t())
        gate, crossed_to = product[:, :padded], h[:, :n] if parallel else None
        if len(weights) == 1 and crossed_to is not None:
            crossed, used = _gated(x0[:, :n], gate[:, :n], out=crossed_to), [list[Tensor]()] * 3
        else:
            crossed, *used = cross(_gated(x0, gate), x0, weights[1:], biases[1:], out=crossed_to)

        # what going back needs of ReLU is its output
        if parallel:
            hidden, own = [x0, product[:, padded:]], first[padded:]
        else:
            own = with_bias(layers[0], shifts[0], padded) if padded > n else layers[0]
            hidden = [crossed, torch.addmm(shifts[0], crossed, own.t()) if padded == n else crossed @ own.t()]
        for weight, bias in zip(layers[1:], shifts[1:], strict=True):
            hidden[-1].relu_()
            hidden.append(torch.addmm(bias, hidden[-1], weight.t()))
        torch.clamp_min(hidden.pop(), 0.0, out=h[:, start:end])

        if parts.dense is not None and wide_dense is not None:
            torch.addmm(x[:, padded:], x[:, parts.dense], wide_dense.t(), out=h[:, end:])
        else:
            h[:, end:] = x[:, padded:]
        ctx.parts, ctx.counts = parts, (len(weights), len(layers))
        saved = [tensor for tensors in used for tensor in tensors]
        ctx.save_for_backward(x, h, first, product, *saved, own, *layers[1:], *hidden, wide_dense)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, (crosses, deep) = ctx.parts, ctx.counts
        x, h, first, product, *saved, wide_dense = ctx.saved_tensors
        after = crosses - 1  # cross layers behind the first one
        used, inputs, projected = (saved[i * after : (i + 1) * after] for i in range(3))
        layers, hidden = saved[3 * after : 3 * after + deep], saved[3 * after + deep :]
        n, padded, parallel = parts.width, parts.padded, parts.parallel
        start, end = n if parallel else 0, h.shape[1] - (x.shape[1] - padded)
        # rows start where a table's would, so that a lookup's gradient is summed where it lies
        at_x = x.new_empty(len(x), next_width(x.shape[1]))[:, : x.shape[1]]
        x0, at_x0 = x[:, :padded], at_x[:, :padded]
        at_product = torch.empty_like(product)

        at, outputs = gradient[:, start:end], [*hidden[1:], h[:, start:end]]
        at_layers, at_shifts = [], []
        for i in reversed(range(deep)):
            if i == 0 and parallel:
                torch.ops.aten.threshold_backward.grad_input(at, outputs[0], 0, grad_input=at_product[:, padded:])
                break
            at = torch.ops.aten.threshold_backward(at, outputs[i], 0)
            at_weight = at.t() @ hidden[i]
            whole = i == 0 and padded > n
            at_shifts.append(at_weight[:, n] if whole else at.sum(0))
            at_layers.append(at_weight[:, :n] if whole else at_weight)
            if i:
                at = at @ layers[i]

        at_crossed = x.new_empty(len(x), padded)
        if parallel:
            at_crossed[:, :n] = gradient[:, :n]
            at_crossed[:, n:] = 0.0
        else:
            torch.mm(at, layers[0], out=at_crossed)
        at_weights, at_biases = cross_back(at_crossed, x0, used, inputs, projected, n, out=at_x0)
        gate, one = product[:, :padded], _gate_holds_one(x0.dtype)
        if after:
            at_x0.addcmul_(at_crossed, gate)
            if not one:
                at_x0 += at_crossed
        elif one:
            torch.mul(at_crossed, gate, out=at_x0)
        else:
            torch.addcmul(at_crossed, at_crossed, gate, out=at_x0)
        torch.mul(at_crossed, x0, out=at_product[:, :padded])
        at_first = at_product.t() @ x0
        at_shift = at_first[:, n] if padded > n else at_product.sum(0)
        at_x0.addmm_(at_product, first)
        if parallel:
            at_layers.append(at_first[padded:, :n])
            at_shifts.append(at_shift[padded:])

        at_wide, at_wide_dense = gradient[:, end:], None
        at_x[:, padded:] = at_wide
        if wide_dense is not None:
            at_x[:, parts.dense].addmm_(at_wide, wide_dense)
            at_wide_dense = at_wide.t() @ x[:, parts.dense]
        of_cross = at_first[:n, :n], *at_weights, at_shift[:n], *at_biases
        return (at_x, None, None, *of_cross, *reversed(at_layers), *reversed(at_shifts), at_wide_dense)


def _first(
    parts: CrossedTrunk, weight: Tensor, bias: Tensor, layer: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The matrix (P + M, P) of the product that x0 goes into, M = 0 unless the trunk is parallel, and its bias, None where the
    matrix holds it."""
    n, padded = parts.width, parts.padded
    rows, one = len(layer) if parts.parallel else 0, 1.0 if _gate_holds_one(weight.dtype) else 0.0
    if padded == n:
        if not rows:
            return weight, bias + one
        return torch.cat([weight, layer]), torch.cat([bias + one, shift])
    whole = weight.new_zeros(padded + rows, padded)
    whole[:n, :n] = weight
    whole[:n, n] = bias
    whole[:padded, n] += one
    if rows:
        whole[padded:, :n] = layer
        whole[padded:, n] = shift
    return whole, None


def _gate_holds_one(dtype: torch.dtype) -> bool:
    """Whether the first cross layer's "+ x0" lies in its gate."""
    return dtype != torch.bfloat16


def _gated(x0: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    return torch.mul(x0, gate, out=out) if _gate_holds_one(x0.dtype) else torch.addcmul(x0, x0, gate, out=out)


def _halves(parameters: Sequence[Any]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Weights and biases."""
    half = len(parameters) // 2
    return parameters[:half], parameters[half:]
