"""Sparse poly-attention: code j sees a window of tokens around content j, every content's first token, and random others.

SPAR's user history summarizing (arXiv 2402.10555). Tokens lie in a grid: one text in front (``lead`` slots), then ``contents``
texts of ``slots`` slots each. Codes work in blocks: a block gathers the tokens that any of its codes sees, once, and masks what a
single code does not see; the random tokens are the block's (choice). Nothing of size codes x tokens is ever made, forward or
backward, so that memory goes with attended tokens.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rayrec.models.layers.poly_attention import PolyAttention, masked_softmax


@dataclass(frozen=True)
class SparsePattern:
    """Which tokens each code sees, in the grid of the longest possible input, so that a shorter one sees the same of what it has.

    contents: most of them, and as many codes. slots: of one content. lead: of the text in front. window: tokens around a code's
    content. random_share: of the tokens outside of a block's window that are no first token. block: codes that gather together.
    """

    contents: int
    slots: int
    lead: int
    window: int
    random_share: float = 0.1
    block: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.contents, self.slots, self.window, self.block) < 1 or self.lead < 0:
            raise ValueError("contents, slots, window and block must be at least 1, lead at least 0")
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share must lie in [0, 1], not {self.random_share}")


@dataclass(frozen=True)
class BlockMask:
    """tokens: (A,) int64 places in the grid that the codes first..first + b see. seen: (b, A) bool, by code."""

    first: int
    tokens: Tensor
    seen: Tensor


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
        seen = (window | first | chosen)[: contents - start] & inside
        tokens = seen.any(0).nonzero().squeeze(1)
        masks.append(BlockMask(start, here[tokens], seen[:, tokens].contiguous()))
    return tuple(masks)


def dense_mask(masks: tuple[BlockMask, ...], tokens: int) -> Tensor:
    """(codes, tokens) bool of what block masks say, for comparison with dense attention."""
    rows = []
    for mask in masks:
        row = torch.zeros(len(mask.seen), tokens, dtype=torch.bool)
        row[:, mask.tokens] = mask.seen
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
        states = torch.cat([lead, grid.flatten(1, 2)], 1)
        real = torch.cat([lead_real, grid_real.flatten(1)], 1)
        masks = self.masks(grid.shape[1], grid.shape[2], lead.shape[1])
        mixed: Tensor = _BlockAttention.apply(states, self.keys(states), self.codes, real, masks)
        return mixed


class _BlockAttention(torch.autograd.Function):
    """Gathers are made again in the backward pass: beside the inputs only the weights of attended tokens are kept."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, keys: Tensor, codes: Tensor, real: Tensor, masks: tuple[BlockMask, ...]
    ) -> Tensor:
        parts, weights = [], []
        keys, codes = keys.to(states.dtype), codes.to(states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            for mask in masks:
                tokens, seen = mask.tokens.to(states.device), mask.seen.to(states.device)
                own = codes[mask.first : mask.first + len(seen)]
                scores = own @ keys.index_select(1, tokens).transpose(1, 2)  # (B, b, A)
                weight = masked_softmax(scores, seen & real.index_select(1, tokens).unsqueeze(1))
                weights.append(weight)
                parts.append(weight @ states.index_select(1, tokens))
        ctx.save_for_backward(states, keys, codes, *weights)
        ctx.masks = masks
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        states, keys, codes, *weights = ctx.saved_tensors
        d_states, d_keys, d_codes = torch.zeros_like(states), torch.zeros_like(keys), torch.zeros_like(codes)
        for mask, weight in zip(ctx.masks, weights, strict=True):
            tokens = mask.tokens.to(states.device)
            rows = slice(mask.first, mask.first + weight.shape[1])
            d_out = gradient[:, rows]  # (B, b, d)
            d_states.index_add_(1, tokens, weight.transpose(1, 2) @ d_out)
            d_weight = d_out @ states.index_select(1, tokens).transpose(1, 2)
            d_scores = weight * (d_weight - (d_weight * weight).sum(-1, keepdim=True))
            d_keys.index_add_(1, tokens, d_scores.transpose(1, 2) @ codes[rows])
            d_codes[rows] = (d_scores @ keys.index_select(1, tokens)).sum(0)
        return d_states, d_keys, d_codes, None, None
