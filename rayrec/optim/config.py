"""Which optimizer trains a model: one for matrices and vectors, and row-wise Adagrad or the same one for embedding tables."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from rayrec.optim.apollo import Apollo
from rayrec.optim.apollo_groups import apollo_param_groups
from rayrec.optim.compiling import compiled_or_plain
from rayrec.optim.eager import AdamW, Muon
from rayrec.optim.galore import Galore
from rayrec.optim.optimizer_chain import OptimizerChain
from rayrec.optim.rowwise_adagrad import RowwiseAdagrad
from rayrec.typed_json import ConfigError

OptimizerName = Literal["adamw", "apollo", "apollo_mini", "galore", "muon"]


@dataclass(frozen=True)
class ProjectionConfig:
    """How APOLLO, APOLLO-Mini and GaLore project gradients; AdamW ignores it."""

    rank: int | None = None
    """Rows of the projection, at most a matrix's smaller dimension; None = ``rank_share`` of that, and 1 for
    APOLLO-Mini."""
    rank_share: float = 0.25
    """Share of the smaller dimension that is the rank where none is given."""
    scale: float | None = None
    """None = the papers': 1 for APOLLO (the update times sqrt(scale)), 128 for Mini, 0.25 for GaLore (times scale)."""
    period: int = 200
    """Steps until the projection is renewed."""
    seed: int = 0
    """Where random projections come from."""
    norm_growth: float | None = 1.01
    """How much an update of APOLLO may grow in norm from one step to the next; None = without limit."""

    def __post_init__(self) -> None:
        for name in ("rank", "period"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"projection.{name} must be at least 1, not {value}")
        if not 0 < self.rank_share <= 1:
            raise ConfigError(f"projection.rank_share must lie in (0, 1], not {self.rank_share}")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ConfigError(f"projection.scale must be finite and above 0, not {self.scale}")
        if self.norm_growth is not None and not 1 <= self.norm_growth < math.inf:
            raise ConfigError(f"projection.norm_growth must be finite and at least 1, or None, not {self.norm_growth}")


@dataclass(frozen=True)
class MuonConfig:
    """How Muon steps; other optimizers ignore it. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon."""

    momentum: float = 0.95
    """Decay of the averaged gradient that is orthogonalized."""
    nesterov: bool = True
    """Orthogonalize (1 - momentum) gradient + momentum average in place of the average."""
    iterations: int = 5
    """Newton-Schulz iterations, at most 99."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """What a (rows, columns) matrix' rate is multiplied by: "match_rms_adamw" .2 sqrt(max(rows, columns)), so that an
    update is about as large as AdamW's and its rates and decay serve (Liu et al. 2025, arXiv 2502.16982); "original"
    sqrt(max(1, rows / columns)), whose rates are larger, .02 there."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"muon.momentum must lie in [0, 1), not {self.momentum}")
        if not 1 <= self.iterations <= 99:
            raise ConfigError(f"muon.iterations must lie between 1 and 99, not {self.iterations}")


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated; where it isn't AdamW that trains matrices, vectors, heads and narrow matrices are AdamW's."""

    optimizer: OptimizerName = "adamw"
    """What trains matrices."""
    learning_rate: float = 1e-3
    """Of all parameters but embedding tables."""
    matrix_learning_rate: float | None = None
    """Of matrices that are neither tables, heads (modules called head, heads, lm_head, classifier) nor narrower than 8: what
    ``optimizer`` trains (Muon takes no convolutions and stacks: they keep ``learning_rate``). None = ``learning_rate``."""
    weight_decay: float = 1e-5
    """Decoupled decay of all parameters but embedding tables and vectors."""
    beta1: float = 0.9
    """Decay of the first moment, embedding tables aside."""
    beta2: float = 0.999
    """Decay of the second moment, embedding tables aside."""
    embeddings: Literal["rowwise_adagrad", "adamw"] = "rowwise_adagrad"
    """How tables are updated: "rowwise_adagrad" touches only looked-up rows; "adamw" treats tables as AdamW does, with the
    embedding learning rate and weight decay."""
    embedding_learning_rate: float = 0.02
    """Of embedding tables."""
    embedding_weight_decay: float = 0.0
    """L2 on rows that get a gradient (row-wise Adagrad) or decoupled decay of all rows (AdamW)."""
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    """How APOLLO, APOLLO-Mini and GaLore project gradients."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """How Muon steps."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "matrix_learning_rate", "embedding_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be finite and above 0, not {value}")
        for name in ("weight_decay", "embedding_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), not {getattr(self, name)}")


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, compiled: bool = False) -> torch.optim.Optimizer:
    """One optimizer for all parameters of ``model`` that require gradients.

    With row-wise Adagrad the model's ``nn.Embedding`` tables are switched to sparse gradients, except on GPUs, where nccl
    cannot reduce them. compiled: APOLLO's updates are a kernel on the CPU (``Apollo(cpu_kernel=True)``) and compiled by torch
    (``compiled_or_plain``) for parameters that it does not take; so are row-wise Adagrad's, eager for what its kernel does not
    take; other optimizers ignore it.
    """
    if config.embeddings == "rowwise_adagrad":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = not module.weight.is_cuda
    if config.optimizer in ("apollo", "apollo_mini"):
        betas, compiler = (config.beta1, config.beta2), compiled_or_plain if compiled else None
        groups = _groups(model, config)
        return Apollo(groups, lr=config.learning_rate, betas=betas, compiler=compiler, cpu_kernel=compiled)
    return _build_chain(model, config, compiled)


def rate_share(parameter: nn.Parameter) -> float:
    """Of the learning rate with AdamW, tables aside; 1 unless its model gave it an attribute of this name."""
    return float(getattr(parameter, "rate_share", 1.0))


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Of ``apollo_param_groups``, where what ``config.optimizer`` trains is of kind "apollo"."""
    projection, mini = config.projection, config.optimizer == "apollo_mini"
    rank = (
        projection.rank if projection.rank is not None else 1 if mini else float(projection.rank_share)
    )  # the integer 1 would be a rank
    groups = apollo_param_groups(
        model,
        weight_decay=config.weight_decay,
        rank=rank,
        scale_type="tensor" if mini else "channel",
        scale=projection.scale,
        projection_period=projection.period,
        norm_growth=projection.norm_growth,
        seed=projection.seed,
        embeddings=config.embeddings,
        embedding_lr=config.embedding_learning_rate,
        embedding_weight_decay=config.embedding_weight_decay,
    )
    for group in groups:
        if group["kind"] == "apollo":
            group["lr"] = _matrix_rate(config)
    return groups


def _matrix_rate(config: OptimizerConfig) -> float:
    return config.learning_rate if config.matrix_learning_rate is None else config.matrix_learning_rate


def _build_chain(model: nn.Module, config: OptimizerConfig, compiled: bool) -> torch.optim.Optimizer:
    """AdamW, GaLore or Muon beside it, and row-wise Adagrad beside both, as far as there are parameters for each."""
    matrices: list[dict[str, Any]] = []  # GaLore's or Muon's
    adamw: list[dict[str, Any]] = []
    rowwise: list[dict[str, Any]] = []
    parts: list[torch.optim.Optimizer] = []
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        (table, *others) = _adamw_groups(model, config)
        adamw += others
        (rowwise if config.embeddings == "rowwise_adagrad" else adamw).append(table)
    else:
        for group in _groups(model, config):
            if group["kind"] == "apollo" and config.optimizer == "galore":
                matrices.append({name: group[name] for name in ("params", "lr", "weight_decay", "rank", "batch_dims")})
            elif group["kind"] == "apollo":  # torch's Muon refuses what has not two dimensions
                flat = [p for p in group["params"] if p.dim() == 2]
                matrices.append({"params": flat, "lr": group["lr"], "weight_decay": config.weight_decay})
                left = [p for p in group["params"] if p.dim() != 2]
                adamw.append({"params": left, "weight_decay": config.weight_decay})
            else:
                own = {name: value for name, value in group.items() if name not in ("kind", "eps")}
                (rowwise if group["kind"] == "rowwise_adagrad" else adamw).append(own)
    for groups in (matrices, adamw, rowwise):
        groups[:] = [group for group in groups if group["params"]]
    if matrices and config.optimizer == "galore":
        scale = 0.25 if config.projection.scale is None else config.projection.scale
        period = config.projection.period
        parts.append(Galore(matrices, lr=config.learning_rate, betas=betas, scale=scale, projection_period=period))
    elif matrices:
        parts.append(_muon(matrices, config.muon))
    if adamw:
        parts.append(AdamW(adamw, lr=config.learning_rate, betas=betas, fused=True))
    if rowwise:
        parts.append(RowwiseAdagrad(rowwise, lr=config.embedding_learning_rate, by_kernel=compiled))
    return parts[0] if len(parts) == 1 else OptimizerChain(parts)


def _muon(groups: list[dict[str, Any]], config: MuonConfig) -> Muon:
    momentum, nesterov, adjust = config.momentum, config.nesterov, config.adjust_lr_fn
    return Muon(groups, momentum=momentum, nesterov=nesterov, ns_steps=config.iterations, adjust_lr_fn=adjust)


def _adamw_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Tables first, then the others, by share of the rate, decay and rate."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trained if id(p) not in tables]
    own_rate: set[int] = set()
    if config.matrix_learning_rate is not None:
        own_rate = {id(p) for group in _groups(model, config) if group["kind"] == "apollo" for p in group["params"]}
    groups = [
        {
            "params": [
                p
                for p in others
                if rate_share(p) == share and (p.dim() > 1) == decayed and (id(p) in own_rate) == matrices
            ],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr": (_matrix_rate(config) if matrices else config.learning_rate) * share,
        }
        for share in sorted({rate_share(p) for p in others}, reverse=True)
        for decayed, matrices in ((True, True), (True, False), (False, False))
    ]
    embeddings = {
        "params": [p for p in trained if id(p) in tables],
        "weight_decay": config.embedding_weight_decay,
        "lr": config.embedding_learning_rate,
    }
    return [embeddings, *groups]
