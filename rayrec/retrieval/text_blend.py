"""A dense score beside what the untrained text knows, and a bonus for items that training never saw, in one inner product.

Training fits the seen items at the cost of the others: their texts come out where no target ever was. So what the text alone says
counts on top, and what training never saw is lifted by a constant (ours, in no paper).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class TextBlend:
    """score + text * cosine of an item's text and the history's + unseen where training did not see the item.

    decay: what an item of the history weighs beside the next newer one, 0 = the newest alone.
    """

    text: float
    decay: float
    unseen: float


class Blended(Protocol):
    """A retriever whose dense head takes a blend.

    item_text: (N + 1, E), row 0 of no item. unseen_budget: the share of the recall of seen items that the bonus may cost.
    """

    @property
    def item_text(self) -> Tensor: ...

    @property
    def unseen_budget(self) -> float: ...

    def blend_with(self, blend: TextBlend) -> None:
        """Score by it from now on; kept with the weights."""
        ...


def text_query(text: Tensor, history: Tensor, decay: Tensor | float) -> Tensor:
    """Unit vectors (B, E), zero for an empty history: the sum of the unit texts of the items of histories (B, L), each ``decay``
    times what the next newer one weighs. history: left-padded with 0. text: (N + 1, E)."""
    ages = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
    weights = torch.as_tensor(decay, device=history.device, dtype=torch.float32) ** ages  # 0 ** 0 is 1
    real = (history > 0).unsqueeze(2)
    vectors = normalize(text[history].float(), dim=2) * real
    return normalize((vectors * weights.unsqueeze(1)).sum(1), dim=1)
