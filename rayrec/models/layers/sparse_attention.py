"""Sparse poly-attention: code j sees a window of tokens around content j, every content's first token, and random others.

SPAR's user history summarizing (arXiv 2402.10555). Tokens lie in a grid: one text in front (``lead`` slots), then ``contents``
texts of ``slots`` slots each. Windows are slices of the input and are never copied; first and random tokens are gathered once for
a block of codes, which share their random tokens (choice). Nothing of size codes x tokens is ever made, forward or backward, so
that memory goes with attended tokens.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rayrec.models.layers.poly_attention import PolyAttention, masked_softmax

_TOGETHER = 4  # codes whose windows are read as one slice


@dataclass(frozen=True)
class SparsePattern:
    """Which tokens each code sees, in the grid of the longest possible input, so that a shorter one sees the same of what it has.

    contents: most of them, and as many codes. slots: of one content. lead: of the text in front. window: tokens around a code's
    content. random_share: of the tokens outside of a block's windows that are no first token. block: codes that share them.
    """

    contents: int
    slots: int
    lead: int
    window: int
    random_share: float = 0.1
    block: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.contents, self.slots, self.window, self.block) < 1 or self.lead < 0:
            raise ValueError("contents, slots, window and block must be at least 1, lead at least 0")
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share must lie in [0, 1], not {self.random_share}")


@dataclass(frozen=True)
class Window:
    """seen: (c, high - low) bool: what of the input's places low..high - 1 is in the windows of codes first..first + c - 1."""

    first: int
    low: int
    high: int
    seen: Tensor


@dataclass(frozen=True)
class BlockMask:
    """Of b codes from ``first`` on. windows: of all of them, a few codes each. tokens: (A,) int64 places of the first and random
    tokens. seen: (b, A) bool, which of them each code sees beside its window."""

    first: int
    windows: tuple[Window, ...]
    tokens: Tensor
    seen: Tensor

    @property
    def codes(self) -> slice:
        return slice(self.first, self.first + len(self.seen))


@lru_cache(maxsize=64)
def block_masks(pattern: SparsePattern, contents: int, slots: int, lead: int) -> tuple[BlockMask, ...]:
    """The masks of an input of that shape, made once a shape. Raises ValueError for more than the pattern knows."""
    if contents > pattern.contents or slots > pattern.slots or lead > pattern.lead:
        raise ValueError(
            f"an input of {lead} + {contents} x {slots} slots; "
            f"the pattern has {pattern.lead} + {pattern.contents} x {pattern.slots}"
        )
    total = pattern.lead + pattern.contents * pattern.slots
    place = torch.arange(total)
    inner = (place - pattern.lead) % pattern.slots
    row = torch.where(place < pattern.lead, -1, (place - pattern.lead) // pattern.slots)
    inside = torch.where(row < 0, place < lead, (row < contents) & (inner < slots))  # of the whole grid, what is there
    here = torch.where(row < 0, place, lead + row * slots + inner)  # where it lies in the input
    first = (inner == 0) & (row >= 0) | (place == 0) & (pattern.lead > 0)
    random = torch.Generator().manual_seed(pattern.seed)
    masks = []
    for start in range(0, pattern.contents, pattern.block):
        codes = torch.arange(start, min(start + pattern.block, pattern.contents))
        middle = pattern.lead + codes * pattern.slots + pattern.slots // 2
        low = (middle - pattern.window // 2).unsqueeze(1)
        window = (place >= low) & (place < low + pattern.window)  # (b, total)
        others = ~window.any(0) & ~first
        chosen = others & (torch.rand(total, generator=random) < pattern.random_share)
        if start >= contents:
            continue
        window = window[: contents - start] & inside
        far = (first | chosen) & inside
        tokens = far.nonzero().squeeze(1)
        windows = tuple(
            _window(start + some, window[some : some + _TOGETHER], here) for some in range(0, len(window), _TOGETHER)
        )
        masks.append(BlockMask(start, windows, here[tokens], ~window[:, tokens]))
    return tuple(masks)


def _window(first: int, seen: Tensor, here: Tensor) -> Window:
    """seen: (c, tokens of the pattern's grid). here: where those lie in the input."""
    codes, places = seen.nonzero(as_tuple=True)
    places = here[places]
    low, high = (int(places.min()), int(places.max()) + 1) if len(places) else (0, 0)
    found = torch.zeros(len(seen), high - low, dtype=torch.bool)
    found[codes, places - low] = True
    return Window(first, low, high, found)


def dense_mask(masks: tuple[BlockMask, ...], tokens: int) -> Tensor:
    """(codes, tokens) bool of what block masks say, for comparison with dense attention."""
    rows = []
    for mask in masks:
        row = torch.zeros(len(mask.seen), tokens, dtype=torch.bool)
        row[:, mask.tokens] = mask.seen
        for window in mask.windows:
            first = window.first - mask.first
            row[first : first + len(window.seen), window.low : window.high] |= window.seen
        rows.append(row)
    return torch.cat(rows)


class SparsePolyAttention(PolyAttention):
    """One code a content; ``pattern`` says what each sees."""

    def __init__(self, dim: int, code_dim: int, pattern: SparsePattern) -> None:
        super().__init__(dim, pattern.contents, code_dim)
        self.pattern = pattern

    def masks(self, contents: int, slots: int, lead: int) -> tuple[BlockMask, ...]:
        return block_masks(self.pattern, contents, slots, lead)

    def summarize(self, lead: Tensor, lead_real: Tensor, grid: Tensor, grid_real: Tensor) -> Tensor:
        """(B, H, d), one row a content, of a text in front (B, I, d) and contents (B, H, L, d), each beside its mask."""
        states, real = grid.flatten(1, 2), grid_real.flatten(1)
        if lead.shape[1]:
            states, real = torch.cat([lead, states], 1), torch.cat([lead_real, real], 1)
        masks = self.masks(grid.shape[1], grid.shape[2], lead.shape[1])
        return attend(states, self.keys(states), self.codes, real, masks)


def attend(states: Tensor, keys: Tensor, codes: Tensor, real: Tensor, masks: tuple[BlockMask, ...]) -> Tensor:
    """(B, k, d): means of states (B, L, d) by softmax of codes (k, p) times keys (B, L, p), over what codes see of ``real``."""
    mixed: Tensor = _BlockAttention.apply(states, keys, codes, real, masks)
    return mixed


class _BlockAttention(torch.autograd.Function):
    """Gathers are made again in the backward pass: beside the inputs only the weights of attended tokens are kept."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, keys: Tensor, codes: Tensor, real: Tensor, masks: tuple[BlockMask, ...]
    ) -> Tensor:
        weights, keys, codes = [], keys.to(states.dtype), codes.to(states.dtype)
        found = states.new_empty(len(states), masks[-1].codes.stop, states.shape[2])
        with torch.autocast(states.device.type, enabled=False):
            for mask in masks:
                tokens = mask.tokens.to(states.device)
                far = _dots(codes[mask.codes], keys.index_select(1, tokens))  # (B, b, A)
                far_seen = mask.seen.to(states.device) & real.index_select(1, tokens).unsqueeze(1)
                far_weights = []
                for window in mask.windows:
                    near, local = slice(window.low, window.high), _local(window, mask)
                    scores = _dots(codes[_codes(window)], keys[:, near])  # (B, c, W)
                    seen = window.seen.to(states.device) & real[:, near].unsqueeze(1)
                    weight = masked_softmax(
                        torch.cat([scores, far[:, local]], 2), torch.cat([seen, far_seen[:, local]], 2)
                    )
                    weights.append(weight)
                    far_weights.append(weight[:, :, scores.shape[2] :])
                    torch.bmm(weight[:, :, : scores.shape[2]], states[:, near], out=found[:, _codes(window)])
                found[:, mask.codes] += torch.cat(far_weights, 1) @ states.index_select(1, tokens)
        ctx.save_for_backward(states, keys, codes, *weights)
        ctx.masks = masks
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        states, keys, codes, *weights = ctx.saved_tensors
        d_states, d_keys, d_codes = torch.zeros_like(states), torch.zeros_like(keys), torch.zeros_like(codes)
        kept = iter(weights)
        for mask in ctx.masks:
            tokens = mask.tokens.to(states.device)
            own = [next(kept) for _ in mask.windows]
            far_weight = torch.cat([w[:, :, v.high - v.low :] for w, v in zip(own, mask.windows, strict=True)], 1)
            d_far = gradient[:, mask.codes] @ states.index_select(1, tokens).transpose(1, 2)  # (B, b, A)
            d_states.index_add_(1, tokens, far_weight.transpose(1, 2) @ gradient[:, mask.codes])
            del far_weight
            for weight, window in zip(own, mask.windows, strict=True):
                near, rows, local = slice(window.low, window.high), _codes(window), _local(window, mask)
                width, d_out = window.high - window.low, gradient[:, rows]
                d_weight = torch.cat([d_out @ states[:, near].transpose(1, 2), d_far[:, local]], 2)
                d_scores = weight * (d_weight - (d_weight * weight).sum(-1, keepdim=True))
                d_far[:, local] = d_scores[:, :, width:]
                d_near = d_scores[:, :, :width]
                d_states[:, near].baddbmm_(weight[:, :, :width].transpose(1, 2), d_out)
                d_keys[:, near].baddbmm_(d_near.transpose(1, 2), _of_all(codes[rows], d_near))
                d_codes[rows] += torch.bmm(d_near, keys[:, near]).sum(0)
            d_codes[mask.codes] += torch.bmm(d_far, keys.index_select(1, tokens)).sum(0)
            d_keys.index_add_(1, tokens, torch.bmm(d_far.transpose(1, 2), _of_all(codes[mask.codes], d_far)))
        return d_states, d_keys, d_codes, None, None


def _of_all(codes: Tensor, rows: Tensor) -> Tensor:
    """(B, b, p) view of codes (b, p): a product with it copies nothing else, where one without it may."""
    return codes.expand(len(rows), -1, -1)


def _dots(codes: Tensor, keys: Tensor) -> Tensor:
    """(B, b, L) of codes (b, p) and keys (B, L, p)."""
    return torch.bmm(_of_all(codes, keys), keys.transpose(1, 2))


def _codes(window: Window) -> slice:
    return slice(window.first, window.first + len(window.seen))


def _local(window: Window, mask: BlockMask) -> slice:
    """Its codes within the block."""
    return slice(window.first - mask.first, window.first - mask.first + len(window.seen))
