"""One embedding table for all fields of a log: a single lookup instead of one per feature."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag


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
        table = self.table
        fields = embedding(categorical + self.offsets, table.weight, sparse=table.sparse).flatten(1)  # (B, F * dim)
        return torch.cat([fields, *(self._pool(ids, i, "mean") for i, ids in enumerate(sequences))], dim=1)

    def total(self, categorical: Tensor, sequences: Sequence[Tensor]) -> Tensor:
        """The same rows summed over fields and sequences: (B, dim)."""
        table = self.table
        summed = table.weight.new_zeros(len(categorical), self.dim)
        if self.num_fields:  # a bag of no ids is an error in torch
            summed = embedding_bag(categorical + self.offsets, table.weight, mode="sum", sparse=table.sparse)
        for i, ids in enumerate(sequences):
            summed = summed + self._pool(ids, i, "mean")
        return summed

    def _pool(self, ids: Tensor, sequence: int, mode: str) -> Tensor:
        offset = self.sequence_offsets[sequence]
        return embedding_bag(ids + offset, self.table.weight, mode=mode, sparse=self.table.sparse, padding_idx=offset)
