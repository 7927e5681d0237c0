"""Softmax cross-entropy over a catalogue of items without keeping its logits, whole or sampled.

The full loss of T positions over V items needs T * V logits; autograd would hold several copies of them. ``full_softmax_loss``
goes through the positions in chunks and computes the gradients right behind the probabilities, so memory is one chunk, and on
CPUs with bf16 units (autocast) a step takes about a quarter of the plain fp32 one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

_CHUNK = 512  # positions a chunk: 512 x 12,000 float32 logits are 25 MB


def full_softmax_loss(
    states: Tensor, items: Tensor, targets: Tensor, first_item: int = 1,
    *, shifted: Tensor | None = None, shift: Tensor | None = None, weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy () of logits states @ items.T: states (T, D), items (V, D), targets (T,) int64.

    Items below ``first_item`` (padding) are no candidates. Under autocast the products run in its dtype.
    shifted: (T, R) int64 items whose logits get ``shift`` () on top, each at most once a row; 0 (padding) fills the rows up.
    weights: (T,) of the positions, in a weighted mean; None = all 1.
    Raises ValueError when one of the two is missing, or 0 is no padding.
    """
    if (shifted is None) != (shift is None) or (shifted is not None and first_item < 1):
        raise ValueError("shifted and shift belong together, and need first_item to be at least 1")
    loss: Tensor = _FullSoftmax.apply(states, items, targets, first_item, shifted, shift, weights)
    return loss


def once_each(history: Tensor) -> Tensor:
    """Histories (B, L) with 0 in place of items that stand further left already: rows that ``shifted`` may be."""
    same = history.unsqueeze(2) == history.unsqueeze(1)  # (B, L, L)
    return history.masked_fill(same.tril(-1).any(2), 0)


def shifted_scores(scores: Tensor, shifted: Tensor, shift: Tensor) -> Tensor:
    """Scores (B, V) of items, with ``shift`` () on top of those of ``shifted`` (B, R), each once a row but for 0, padding."""
    return scores.scatter(1, shifted, scores.gather(1, shifted) + shift)


def sampled_softmax_loss(
    states: Tensor, items: Tensor, targets: Tensor, sampled: Tensor, log_sampling: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy () over each target and ``sampled`` (S,) items, drawn with replacement.

    log_sampling: (V,) log-probability q of an item to be drawn. Each sampled logit is lowered by log(S * q), which makes the
    sampled partition sum an unbiased estimate of the full one (Bengio and Senecal 2008); the target enters with its own
    logit, and samples that equal it are left out for that row. weights: as in the full loss.
    """
    positive = (states * items[targets]).sum(1, keepdim=True).float()  # (T, 1)
    correction = log_sampling[sampled] + torch.log(torch.tensor(float(len(sampled)), device=states.device))
    negative = (states @ items[sampled].T).float() - correction  # (T, S)
    negative = negative.masked_fill(sampled.unsqueeze(0) == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat([positive, negative], dim=1)
    first = torch.zeros(len(targets), dtype=torch.long, device=states.device)
    if weights is None:
        return cross_entropy(logits, first)
    return (weights * cross_entropy(logits, first, reduction="none")).sum() / weights.sum()


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, items: Tensor, targets: Tensor, first_item: int,
        shifted: Tensor | None, shift: Tensor | None, weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        device = states.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        with torch.autocast(device, enabled=False):
            states_cast, items_cast = states.to(kind), items.to(kind)
            wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1] or ctx.needs_input_grad[5]
            losses = states.new_zeros((), dtype=torch.float64 if kind == torch.float64 else torch.float32)
            states_gradient = torch.empty_like(states_cast) if wants else None
            items_gradient = torch.zeros_like(items, dtype=losses.dtype) if wants else None
            shift_gradient = losses.clone() if shift is not None else None
            # Written again by each chunk: fresh memory of this size comes from the kernel page by page, a fifth of the time.
            kept = [
                torch.empty(min(_CHUNK, len(states)), len(items), dtype=kind, device=states.device) for _ in range(2)
            ]
            for start in range(0, len(states), _CHUNK):
                chunk, target = states_cast[start : start + _CHUNK], targets[start : start + _CHUNK]
                rows = torch.arange(len(chunk), device=chunk.device)
                logits = torch.mm(chunk, items_cast.T, out=kept[0][: len(chunk)])  # (C, V)
                if shifted is not None and shift is not None:
                    own = shifted[start : start + _CHUNK]
                    logits.scatter_(1, own, logits.gather(1, own) + shift.to(kind))
                if first_item:
                    logits[:, :first_item] = -torch.inf
                probabilities = torch.softmax(logits, 1, out=kept[1][: len(chunk)])
                each = probabilities[rows, target].to(losses.dtype).clamp_min(1e-30).log()
                weight = None if weights is None else weights[start : start + _CHUNK]
                losses -= each.sum() if weight is None else (weight * each).sum()
                if states_gradient is not None and items_gradient is not None:
                    probabilities[rows, target] -= 1  # now d loss / d logits
                    if weight is not None:
                        probabilities *= weight.to(kind).unsqueeze(1)
                    states_gradient[start : start + _CHUNK] = probabilities @ items_cast
                    items_gradient += probabilities.T @ chunk
                    if shifted is not None and shift_gradient is not None:
                        shift_gradient += probabilities.gather(1, own).sum()  # padding has probability 0
        count = max(len(states), 1) if weights is None else weights.sum().clamp_min(1e-12)
        ctx.count = count
        ctx.kinds = states.dtype, items.dtype
        ctx.shift_kind = None if shift is None else shift.dtype
        if wants:
            ctx.save_for_backward(states_gradient, items_gradient, shift_gradient)
        return losses / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, Tensor | None, None]:
        states_gradient, items_gradient, shift_gradient = ctx.saved_tensors
        factor = gradient / ctx.count
        states_kind, items_kind = ctx.kinds
        of_shift = None if shift_gradient is None else (shift_gradient * factor).to(ctx.shift_kind)
        return (
            states_gradient.to(states_kind) * factor, (items_gradient * factor).to(items_kind), None, None, None, of_shift,
            None,
        )  # fmt: skip
