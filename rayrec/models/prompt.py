"""``Instructions: {preference}. Items: {title} {title} ...`` in tokens, for a whole batch at once (Mender, arXiv 2412.08604).

Too long: the oldest items go, whole titles at a time; the preference stays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NONE = -1


@dataclass(frozen=True)
class PromptTokens:
    """before, between, after: token ids (n,) of what stands around preference and titles, special tokens included.

    titles: (N + 1, T) int64 ids, NONE behind each title's end; row 0 has none. pad: id of the padding token.
    longest: most tokens of a prompt.
    """

    before: Tensor
    between: Tensor
    after: Tensor
    titles: Tensor
    pad: int
    longest: int


class Prompt(nn.Module):
    """Holds the tokens as buffers."""

    before: Tensor
    between: Tensor
    after: Tensor
    titles: Tensor

    def __init__(self, tokens: PromptTokens) -> None:
        super().__init__()
        for name in ("before", "between", "after", "titles"):
            self.register_buffer(name, getattr(tokens, name).clone())
        self.pad, self.longest = tokens.pad, tokens.longest

    def forward(self, history: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, K) and which are real (B, K), of histories (B, L), left-padded, and preferences (B, P), NONE = no token."""
        rows = len(history)
        fixed = len(self.before) + len(self.between) + len(self.after)
        preference = preference[:, : max(self.longest - fixed, 0)]
        titles = self.titles[history]  # (B, L, T)
        lengths = (titles != NONE).sum(2)
        room = self.longest - fixed - (preference != NONE).sum(1, keepdim=True)
        from_newest = lengths.flip(1).cumsum(1).flip(1)
        titles = titles.masked_fill((from_newest > room).unsqueeze(2), NONE)
        around = [part.expand(rows, -1) for part in (self.before, self.between, self.after)]
        ids = torch.cat([around[0], preference, around[1], titles.flatten(1), around[2]], 1)
        real = ids != NONE
        order = (~real).long().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]  # gaps go to the end
        real = real.gather(1, order)
        return ids.gather(1, order).masked_fill(~real, self.pad), real
