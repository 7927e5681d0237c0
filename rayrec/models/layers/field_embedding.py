"""One embedding table for all fields of a log: a single lookup instead of one per feature."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from rayrec.models.layers.row_lookup import LookedUp


class FieldEmbedding(nn.Module):
    """Rows of all categorical fields and of sequence features in one table, each field at its own offset.

    sizes: ids of each categorical field, 0 = missing included. sequence_sizes: likewise for sequence features.
    sequence_shares: for each sequence the categorical field whose rows it uses, or None for rows of its own.
    std: standard deviation of the normal initialization.

    ``table.sparse`` may be switched on by the optimizer: gradients then touch only the looked-up rows.
    """

    offsets: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        sequence_sizes: Sequence[int] = (),
        sequence_shares: Sequence[int | None] = (),
        std: float = 0.01,
    ) -> None:
        super().__init__()
        own = [size for size, shares in zip(sequence_sizes, sequence_shares, strict=True) if shares is None]
        starts = [0]
        for size in (*sizes, *own):
            starts.append(starts[-1] + size)
        self.dim = dim
        self.num_fields = len(sizes)
        self.register_buffer("offsets", torch.tensor(starts[: len(sizes)], dtype=torch.int64), persistent=False)
        own_starts = iter(starts[len(sizes) : -1])
        self.sequence_offsets = tuple(starts[s] if s is not None else next(own_starts) for s in sequence_shares)
        self.table = nn.Embedding(max(starts[-1], 1), dim)
        nn.init.normal_(self.table.weight, std=std)

    @property
    def width(self) -> int:
        """Columns of ``forward``: (fields + sequences) * dim."""
        return (self.num_fields + len(self.sequence_offsets)) * self.dim

    def forward(self, categorical: Tensor, sequences: Sequence[Tensor]) -> Tensor:
        """Ids (B, F) int64 and one (B, L_i) int64 per sequence, 0 = padding, to (B, width): each field's row, then the mean
        row of each sequence (zeros for an empty one)."""
        return torch.cat(self.parts(self.ids(categorical), sequences), dim=1)

    def ids(self, categorical: Tensor) -> LookedUp:
        """Where the fields' rows lie, for ``parts`` and ``total`` of all tables of these fields."""
        return LookedUp(categorical + self.offsets)

    def parts(self, fields: LookedUp, sequences: Sequence[Tensor]) -> list[Tensor]:
        """What ``forward`` puts side by side: (B, fields * dim), then (B, dim) of each sequence."""
        return [fields.rows(self.table).flatten(1), *(self._pool(ids, i, "mean") for i, ids in enumerate(sequences))]

    def total(self, fields: LookedUp, sequences: Sequence[Tensor]) -> Tensor:
        """The same rows summed over fields and sequences: (B, dim)."""
        summed = fields.sums(self.table)
        for i, ids in enumerate(sequences):
            summed = summed + self._pool(ids, i, "mean")
        return summed

    def _pool(self, ids: Tensor, sequence: int, mode: str) -> Tensor:
        offset = self.sequence_offsets[sequence]
        return embedding_bag(ids + offset, self.table.weight, mode=mode, sparse=self.table.sparse, padding_idx=offset)
