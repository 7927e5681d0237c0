"""What content rankers read: texts as padded token ids, users as rows of texts, impressions as rows of users and texts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """tokens: (N, L) int64. real: (N, L) bool, False at padding, which is always behind a text.

    keys: (N,) int64 names under which a frozen encoder may keep a text's states; 0 = keep nothing.
    """

    tokens: Tensor
    real: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Texts":
        move = {n: getattr(self, n).to(device, non_blocking=non_blocking) for n in ("tokens", "real", "keys")}
        return replace(self, **move)


@dataclass(frozen=True)
class ContentBatch:
    """B impressions of U histories over N texts, each of which stands here once.

    contents: N texts. histories: (U, H) int64, 1 + row of ``contents``, newest first; 0 at padding.
    interests, summaries: U texts, without tokens where there is none: an input of SPAR, a training target of EmbSum.
    users: (B,) int64 row of ``histories``. candidates: (B, C) int64, 1 + row of ``contents``; 0 at padding.
    labels: (B, C) int64, 1 engaged, 0 not, -1 padding; for training the one positive comes first.
    owners: (U,) int64, whose histories these are, by row of the log's users: by them judged users are grouped.
    """

    contents: Texts
    histories: Tensor
    interests: Texts
    summaries: Texts
    users: Tensor
    candidates: Tensor
    labels: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ContentBatch":
        names = ("contents", "histories", "interests", "summaries", "users", "candidates", "labels", "owners")
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in names})


def pad_texts(rows: "list[list[int]]", keys: "list[int] | None" = None) -> Texts:
    """Texts of lists of ids; at least one slot wide."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64).view(
        len(rows), longest
    )
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    real = torch.arange(longest) < lengths.unsqueeze(1)
    return Texts(tokens, real, torch.tensor(keys or [0] * len(rows), dtype=torch.int64))
