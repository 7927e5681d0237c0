"""How parameters are given to APOLLO: which are projected, which are left to AdamW or row-wise Adagrad, and at which rank."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rayrec.optim.apollo_update import ScaleType

GroupKind = Literal["apollo", "adamw", "rowwise_adagrad"]

HEADS = ("head", "heads", "lm_head", "classifier")


def apollo_param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    rank: int | float = 0.25,
    scale_type: ScaleType = "channel",
    scale: float | None = None,
    projection_period: int = 200,
    norm_growth: float | None = 1.01,
    seed: int = 0,
    embeddings: Literal["adamw", "rowwise_adagrad"] = "adamw",
    embedding_lr: float | None = None,
    embedding_weight_decay: float = 0.0,
    heads: Collection[str] = HEADS,
    smallest_dimension: int = 8,
) -> list[dict[str, Any]]:
    """Groups of all parameters of ``model`` that require gradients, for ``Apollo(groups, lr=...)``.

    In this order, empty groups left out:

    1. ``apollo``: matrices, and convolutions flattened to (out, in * kernel).
    2. ``apollo`` with ``batch_dims=1``: other 3-D parameters (k, m, n), stacks of k matrices, as per-task towers have them.
    3. ``adamw``: parameters of modules called one of ``heads`` anywhere in their dotted name; matrices whose smaller
       dimension is below ``smallest_dimension``, where a projection saves nothing.
    4. ``adamw`` without weight decay: vectors and scalars (biases, norms), and stacks (k, 1, n) of them.
    5. ``adamw`` or ``rowwise_adagrad``, as ``embeddings`` says: embedding tables. A weight tied to an ``nn.Embedding`` counts
       as a table. Only row-wise Adagrad takes sparse gradients (``nn.Embedding(sparse=True)``).

    rank: an integer is cut to the smaller dimension of each matrix; a float is a share of it.
    embedding_lr: learning rate of tables; None = that of the rest. embedding_weight_decay: decoupled decay of all rows
    (AdamW), or L2 on the rows that get a gradient (row-wise Adagrad).
    scale: None = the paper's, 1 for "channel" and 128 for "tensor".
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, _ConvNd)}
    flat: dict[int, list[Tensor]] = {}  # by rank
    batched: dict[int, list[Tensor]] = {}
    table_params: list[Tensor] = []
    plain: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            table_params.append(parameter)
            continue
        batch_dims = 1 if parameter.dim() == 3 and id(parameter) not in convolutions else 0
        if parameter.dim() < 2 or (batch_dims and parameter.shape[1] == 1):
            vectors.append(parameter)
            continue
        _, rows, columns = matrix_shape(parameter.shape, batch_dims)
        if set(name.split(".")) & set(heads) or min(rows, columns) < smallest_dimension:
            plain.append(parameter)
        else:
            own_rank = rank if isinstance(rank, float) else min(rank, rows, columns)
            (batched if batch_dims else flat).setdefault(matrix_rank(own_rank, rows, columns), []).append(parameter)
    if scale is None:
        scale = 1.0 if scale_type == "channel" else 128.0
    common = {
        "kind": "apollo", "weight_decay": weight_decay, "scale_type": scale_type, "scale": scale,
        "projection_period": projection_period, "norm_growth": norm_growth, "seed": seed,
    }  # fmt: skip
    groups = [{"params": p, "rank": r, "batch_dims": 0, **common} for r, p in sorted(flat.items())]
    groups += [{"params": p, "rank": r, "batch_dims": 1, **common} for r, p in sorted(batched.items())]
    groups += [
        {"params": plain, "kind": "adamw", "weight_decay": weight_decay, "eps": 1e-8},
        {"params": vectors, "kind": "adamw", "weight_decay": 0.0, "eps": 1e-8},
        {"params": table_params, "kind": embeddings, "weight_decay": embedding_weight_decay, "eps": 1e-8},
    ]
    if embedding_lr is not None:
        groups[-1]["lr"] = embedding_lr
    return [group for group in groups if group["params"]]


def check_group(group: dict[str, Any]) -> None:
    """Raises ValueError, naming setting and shape, when a group's settings are wrong or do not fit its parameters."""
    kind = group["kind"]
    if kind not in get_args(GroupKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(GroupKind))}, not {kind!r}")
    for name in ("lr", "eps", "weight_decay"):
        if isinstance(group[name], Tensor) or not group[name] >= 0:
            raise ValueError(f"{name} must be a number of at least 0, not {group[name]}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), not {group['betas']}")
    for parameter in group["params"]:
        if hasattr(parameter, "placements"):
            raise ValueError("APOLLO needs whole parameters, not shards (DTensor): use DistributedDataParallel")
        if kind == "rowwise_adagrad" and parameter.dim() != 2:
            raise ValueError(f"row-wise Adagrad takes (rows, dim) tables, not shape {tuple(parameter.shape)}")
    if kind != "apollo":
        return
    if group["scale_type"] not in get_args(ScaleType):
        raise ValueError(f"scale_type must be channel or tensor, not {group['scale_type']!r}")
    if not group["scale"] > 0:
        raise ValueError(f"scale must be above 0, not {group['scale']}")
    if group["projection_period"] < 1:
        raise ValueError(f"projection_period must be at least 1 step, not {group['projection_period']}")
    if group["norm_growth"] is not None and not group["norm_growth"] >= 1:
        raise ValueError(f"norm_growth must be at least 1, or None, not {group['norm_growth']}")
    for parameter in group["params"]:
        _, rows, columns = matrix_shape(parameter.shape, group["batch_dims"])
        matrix_rank(group["rank"], rows, columns)


def matrix_shape(shape: Sequence[int], batch_dims: int = 0) -> tuple[int, int, int]:
    """How a parameter's shape is seen: (matrices, rows, columns), columns being all dimensions after the first flattened."""
    if len(shape) < 2 + batch_dims:
        hint = "apollo_param_groups puts vectors into an adamw group"
        raise ValueError(
            f"an apollo group needs at least {2 + batch_dims} dimensions, not shape {tuple(shape)}; {hint}"
        )
    return math.prod(shape[:batch_dims]), shape[batch_dims], math.prod(shape[batch_dims + 1 :])


def matrix_rank(rank: int | float, rows: int, columns: int) -> int:
    """A rank, or a share of the smaller dimension (at least 1), as a rank. Raises ValueError when it does not fit."""
    smaller = min(rows, columns)
    if isinstance(rank, float):
        if not 0.0 < rank <= 1.0:
            raise ValueError(f"a rank given as a share must lie in (0, 1], not {rank}")
        return max(1, round(rank * smaller))
    if not 1 <= rank <= smaller:
        raise ValueError(
            f"rank must lie between 1 and {smaller}, the smaller dimension of a {rows} x {columns} matrix, not {rank}"
        )
    return rank
