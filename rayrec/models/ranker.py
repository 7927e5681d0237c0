"""The multi-task ranker: one fused embedding table, an explicit interaction, a shared trunk, a tower per task.

    x = embed(batch)             (B, N)   looked-up rows, vectors of numbers, normalized numbers
    h = represent_embedded(x)    (B, D)   the shared representation; every shared parameter lies before it
    z = heads(h)                 (B, H)   logits; every parameter behind h belongs to one head

H counts the T tasks and, behind them, the auxiliary heads that some training methods use; ``forward`` gives the tasks' logits.
``h`` holds the trunk's output and, behind it, what only some tasks read: with a mixture of experts the gate logits, and the
wide part's logit of each task. So methods that balance tasks at ``h`` see all that tasks share.

Sources: DCN V2 (Wang et al. 2021), DLRM (Naumov et al. 2019), MMoE (Ma et al. 2018), wide and deep (Cheng et al. 2016).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrec.batch import Batch
from rayrec.models.layers.binned_numbers import BinnedNumbers
from rayrec.models.layers.crossed_trunk import CrossedTrunk
from rayrec.models.layers.dense_input import DenseInput
from rayrec.models.layers.feed_forward import feed_forward
from rayrec.models.layers.field_embedding import FieldEmbedding
from rayrec.models.layers.interaction import CrossNetwork, DotInteraction
from rayrec.models.layers.padded_linear import padded, padding, with_padding
from rayrec.models.layers.task_stack import StackedFeedForward


@dataclass(frozen=True)
class RankerInputs:
    """What goes in, in the order of a batch's columns; made from a fitted schema by the ranker family's ``ranker_inputs``.

    dense_mean, dense_std: after log1p where dense_log1p. dense_missing: features that get a missing-indicator column.
    categorical_sizes, sequence_sizes: number of ids, 0 included. sequence_shares: index of the categorical field whose
    embedding rows a sequence uses, or None.
    dense_quantiles: of each dense feature, after log1p, see ``DenseStatistics``; empty = not known of all.
    auxiliary_heads: logits behind those of the tasks, for training only (a teacher's soft labels): ``heads`` gives them, the
    model's output does not.
    """

    dense_mean: tuple[float, ...]
    dense_std: tuple[float, ...]
    dense_log1p: tuple[bool, ...]
    dense_missing: tuple[bool, ...]
    categorical_sizes: tuple[int, ...]
    sequence_sizes: tuple[int, ...]
    sequence_shares: tuple[int | None, ...]
    num_tasks: int
    auxiliary_heads: int = 0
    dense_quantiles: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class RankerArchitecture:
    """How it is made."""

    embedding_dim: int = 16
    """Length of the vector of an id, and of a number with bins."""
    dense_bins: int = 0
    """Each number has a vector as well, linear within each of so many bins of equally many rows; at most 64, 0 = only the number
    itself. For logs whose numbers carry much of the signal."""
    interaction: Literal["cross", "dot", "none"] = "cross"
    """Either "cross" (DCN V2), "dot" (DLRM) or "none"."""
    cross_layers: int = 2
    """Depth of the cross network."""
    cross_rank: int | None = None
    """Rank of low-rank cross matrices; None = full."""
    structure: Literal["stacked", "parallel"] = "stacked"
    """Whether "stacked" feeds the interaction's output to the trunk; "parallel" puts both side by side."""
    trunk: tuple[int, ...] = (256, 128)
    """Sizes of the shared layers."""
    experts: int = 0
    """0 = shared bottom; more = MMoE with that many experts."""
    expert: tuple[int, ...] = (64,)
    """Sizes of each expert's layers."""
    tower: tuple[int, ...] = (64,)
    """Sizes of each task's own layers before its logit."""
    wide: bool = True
    """Add a linear model on all features to each task's logit."""
    dropout: float = 0.0
    """Dropout after trunk, expert and tower layers."""
    embedding_dropout: float = 0.0
    """Dropout on the looked-up rows and numbers."""

    def __post_init__(self) -> None:
        cross_rank = 1 if self.cross_rank is None else self.cross_rank
        sizes = (self.embedding_dim, *self.trunk, *self.expert, *self.tower, cross_rank)
        if min(sizes) < 1:
            raise ValueError("embedding_dim, cross_rank and all layer sizes must be at least 1")
        if min(self.cross_layers, self.experts, self.dense_bins) < 0:
            raise ValueError("cross_layers, experts and dense_bins must be at least 0")
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.experts and not self.expert:
            raise ValueError("experts need at least one layer size in expert")


class Ranker(nn.Module):
    """See the module. ``embedding_columns``, ``dense_columns``, ``wide_columns``: where the parts of x lie; the first two are its
    ``features_width`` columns, padding lies behind them and before the wide part's. With ``dense_bins`` the numbers' vectors are
    the last of the embedding columns, ``number_columns``. Raises ValueError when these are asked for and quantiles are not known.
    """

    def __init__(self, inputs: RankerInputs, architecture: RankerArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_tasks = inputs.num_tasks
        self.num_heads = inputs.num_tasks + inputs.auxiliary_heads
        self.embedding_dim = architecture.embedding_dim
        self.embedding = FieldEmbedding(
            inputs.categorical_sizes,
            architecture.embedding_dim,
            sequence_sizes=inputs.sequence_sizes,
            sequence_shares=inputs.sequence_shares,
        )
        self.dense_input = DenseInput(inputs.dense_mean, inputs.dense_std, inputs.dense_log1p, inputs.dense_missing)
        self.numbers: BinnedNumbers | None = None
        if architecture.dense_bins and inputs.dense_mean:
            if not inputs.dense_quantiles:
                raise ValueError("dense_bins need quantiles of every dense feature")
            self.numbers = BinnedNumbers(inputs.dense_quantiles, architecture.dense_bins, architecture.embedding_dim)
        vectors = self.embedding.width + (0 if self.numbers is None else self.numbers.width)
        width = vectors + self.dense_input.width
        self.embedding_columns, self.number_columns = slice(0, vectors), slice(self.embedding.width, vectors)
        self.dense_columns = slice(vectors, width)
        self.features_width = width
        self.wide_columns = slice(padded(width), padded(width) + (self.num_heads if architecture.wide else 0))
        self.wide: FieldEmbedding | None = None
        self.wide_dense: nn.Linear | None = None
        if architecture.wide:
            self.wide = FieldEmbedding(
                inputs.categorical_sizes,
                self.num_heads,
                sequence_sizes=inputs.sequence_sizes,
                sequence_shares=inputs.sequence_shares,
                std=0.0,
            )
            if self.dense_input.width:
                self.wide_dense = nn.Linear(self.dense_input.width, self.num_heads, bias=False)
                nn.init.zeros_(self.wide_dense.weight)
        self.embedding_dropout = nn.Dropout(architecture.embedding_dropout)
        self.interaction, interacted = self._build_interaction(width)
        parallel = architecture.structure == "parallel"
        self.trunk = feed_forward(width if parallel else interacted, architecture.trunk, architecture.dropout)
        trunk_width = architecture.trunk[-1] if architecture.trunk else (width if parallel else interacted)
        self.interacted_width, self.trunk_width = interacted, trunk_width
        shared = trunk_width + (interacted if parallel else 0)
        self.representation_width = shared  # D
        self.experts: StackedFeedForward | None = None
        self.gates: nn.Linear | None = None
        if architecture.experts:
            self.experts = StackedFeedForward(
                architecture.experts, shared, architecture.expert, dropout=architecture.dropout
            )
            self.gates = nn.Linear(shared, self.num_heads * architecture.experts)
            self.representation_width = architecture.experts * (architecture.expert[-1] + self.num_heads)
            shared = architecture.expert[-1]
        self.representation_width += self.num_heads if architecture.wide else 0
        self.towers = StackedFeedForward(
            self.num_heads, shared, architecture.tower, out=1, dropout=architecture.dropout
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, T) of the tasks, without those of the auxiliary heads."""
        return self.heads(self.represent(batch))[:, : self.num_tasks]

    def represent(self, batch: Batch) -> Tensor:
        """The shared representation h (B, D)."""
        return self.represent_embedded(self.embed(batch))

    def embed(self, batch: Batch) -> Tensor:
        """x (B, N): embedding rows, pooled sequences, vectors of numbers, normalized numbers, then the columns of
        ``with_padding``; with a wide part its H logits of the ids behind."""
        fields, values = self.embedding.ids(batch.categorical), self.dense_input.transformed(batch.dense)
        parts = self.embedding.parts(fields, batch.sequences)
        if self.numbers is not None:
            parts.append(self.numbers(self.dense_input.imputed(values)))
        dense = self.dense_input.normalized(values)
        parts += [dense, padding(len(dense), self.features_width, dense)]
        if self.wide is not None:
            parts.append(self.wide.total(fields, batch.sequences))
        return torch.cat(parts, dim=1)

    def moved_numbers(self, dense: Tensor, noise: Tensor) -> Tensor:
        """What noise (B, D), in standard deviations, on raw numbers (B, D) adds to their vectors, (B, V): ``number_columns``."""
        if self.numbers is None:
            return noise[:, :0]
        values = self.dense_input.imputed(self.dense_input.transformed(dense))
        return self.numbers.moved(values, values + noise / self.dense_input.scale)

    def represent_embedded(self, x: Tensor) -> Tensor:
        """h (B, D) of x (B, N) as ``embed`` gives it, perturbed or not."""
        if self._is_one_node(x):
            return self._represent_at_once(x)
        features, wide = self._parted(x)
        if self.training and self.architecture.embedding_dropout:
            features = with_padding(self.embedding_dropout(features[:, : self.features_width]))
        interacted = self._interact(features)
        if self.architecture.structure == "parallel":
            parts = [_leading(interacted, self.interacted_width), _leading(self.trunk(features), self.trunk_width)]
        else:
            parts = [_leading(self.trunk(interacted), self.trunk_width)]
        if self.experts is not None and self.gates is not None:
            h = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            parts = [self.experts(h).transpose(0, 1).flatten(1), self.gates(h)]  # of (E, B, De)
        if self.architecture.wide:
            parts.append(wide)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def heads(self, h: Tensor) -> Tensor:
        """Logits (B, H) of h (B, D), or of (H, B, D) where slot i feeds only head i. H: the tasks, then the auxiliary heads."""
        wide: Tensor | float = 0.0
        if self.architecture.wide and self.gates is None and h.dim() == 2:
            logits, wide = self.towers.beside(h)
            return logits.squeeze(-1).T + wide
        if self.architecture.wide:
            h, added = h.split([h.shape[-1] - self.num_heads, self.num_heads], dim=-1)
            wide = added if added.dim() == 2 else added.diagonal(dim1=0, dim2=2)  # (B, H)
        if self.gates is not None:
            h = self._mix(h)  # (H, B, De)
        return self.towers(h).squeeze(-1).T + wide

    def _is_one_node(self, x: Tensor) -> bool:
        """Whether ``CrossedTrunk`` gives h: where a gradient is wanted, and nothing but its layers lies between x and h. It takes
        their parameters and does not call them, nor hooks on them."""
        architecture, cross = self.architecture, self.interaction
        drops = self.training and (architecture.dropout > 0 or architecture.embedding_dropout > 0)
        autocast = torch.is_autocast_enabled(x.device.type)
        return (
            torch.is_grad_enabled()
            and isinstance(cross, CrossNetwork)
            and cross.rank is None
            and cross.width == self.features_width  # not laid out for inference
            and bool(architecture.trunk)
            and not architecture.experts
            and not drops
            and (not autocast or torch.get_autocast_dtype(x.device.type) == torch.bfloat16)
        )

    def _represent_at_once(self, x: Tensor) -> Tensor:
        assert isinstance(self.interaction, CrossNetwork)
        dense = None if self.wide_dense is None else self.dense_columns
        parts = CrossedTrunk(
            self.features_width, self.wide_columns.start, dense, self.architecture.structure == "parallel"
        )
        crosses, trunk = (
            [layer for layer in layers if isinstance(layer, nn.Linear)]
            for layers in (self.interaction.layers, self.trunk)
        )
        if not torch.is_autocast_enabled(x.device.type):
            return parts(x, crosses, trunk, self.wide_dense)
        features, wide = self._parted(x)
        h = parts(features, crosses, trunk, None)
        if not self.architecture.wide:
            return h
        beside: Tensor = _Beside.apply(h, wide)
        return beside

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The padded features and the wide part's logits, of ids and numbers, of x."""
        start, dense = self.wide_columns.start, self.dense_columns
        if self.wide_dense is None:
            return x.split([start, x.shape[1] - start], dim=1)  # unlike slices, one concatenation going back
        with torch.autocast(x.device.type, enabled=False):  # a logit in eight bits is off by up to .4 %
            parted: tuple[Tensor, Tensor] = _Parted.apply(x, self.wide_dense.weight, start, dense)
        return parted

    def _mix(self, h: Tensor) -> Tensor:
        """Each head's mixture of the experts: (B, E * De + H * E) or (H, B, ...) to (H, B, De)."""
        experts, size = self.architecture.experts, self.architecture.expert[-1]
        outputs, gates = h[..., : experts * size], h[..., experts * size :]
        gates = gates.unflatten(-1, (self.num_heads, experts)).softmax(-1)  # (..., B, H, E)
        gates = (
            gates.transpose(0, 1) if gates.dim() == 3 else gates.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        )  # (H, B, E)
        outputs = outputs.unflatten(-1, (experts, size))  # (..., B, E, De)
        return torch.einsum("hbe,bed->hbd" if outputs.dim() == 3 else "hbe,hbed->hbd", gates, outputs)

    def _build_interaction(self, width: int) -> tuple[nn.Module, int]:
        architecture = self.architecture
        if architecture.interaction == "cross" and architecture.cross_layers:
            return CrossNetwork(width, architecture.cross_layers, architecture.cross_rank), width
        if architecture.interaction == "dot":
            vectors = self.embedding_columns.stop // architecture.embedding_dim + bool(self.dense_input.width)
            if self.dense_input.width:
                self.dense_vector = nn.Sequential(
                    nn.Linear(self.dense_input.width, architecture.embedding_dim), nn.ReLU()
                )
            return DotInteraction(vectors), width + vectors * (vectors - 1) // 2
        return nn.Identity(), width

    def _interact(self, x: Tensor) -> Tensor:
        """Both (B, ...) in and out with the columns of ``with_padding`` behind."""
        if not isinstance(self.interaction, DotInteraction):
            interacted: Tensor = self.interaction(x)
            return interacted
        vectors = x[:, self.embedding_columns].unflatten(1, (-1, self.architecture.embedding_dim))  # (B, K, d)
        if self.dense_input.width:
            dense = self.dense_vector(x[:, self.dense_columns]).unsqueeze(1).to(vectors.dtype)
            vectors = torch.cat([vectors, dense], dim=1)
        inputs = x[:, : self.features_width]
        return with_padding(torch.cat([inputs, self.interaction(vectors).to(x.dtype)], dim=1))


class _Parted(torch.autograd.Function):
    """x (B, N), wide_dense's weight (H, D), where the wide part starts, where the D numbers lie, to x[:, :start] and
    x[:, start:] + x[:, dense] @ weight.T. Going back, one concatenation: slices would fill a gradient (B, N) each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, start: int, dense: slice) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x[:, dense], weight)
        ctx.dense = dense
        return x[:, :start], torch.addmm(x[:, start:], x[:, dense], weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_features: Tensor, at_wide: Tensor) -> tuple[Tensor, Tensor, None, None]:
        numbers, weight = ctx.saved_tensors
        at_x = torch.cat([at_features, at_wide], dim=1)
        at_x[:, ctx.dense].addmm_(at_wide, weight)
        return at_x, at_wide.t() @ numbers, None, None


class _Beside(torch.autograd.Function):
    """Columns of a lower precision and others, side by side in the others' dtype: one conversion of each, which a concatenation
    makes element by element."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, others: Tensor) -> Tensor:
        ctx.width, ctx.dtype = lower.shape[1], lower.dtype
        both = others.new_empty(len(lower), lower.shape[1] + others.shape[1])
        both[:, : ctx.width] = lower
        both[:, ctx.width :] = others
        return both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient[:, : ctx.width].to(ctx.dtype), gradient[:, ctx.width :]


def _leading(x: Tensor, width: int) -> Tensor:
    """x[:, :width], with one concatenation going back."""
    return x if x.shape[1] == width else x.split([width, x.shape[1] - width], dim=1)[0]
