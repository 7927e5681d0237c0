"""Which optimizer trains a model: embedding tables by row-wise Adagrad, everything else by AdamW."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rayrec.optim.optimizer_chain import OptimizerChain
from rayrec.optim.rowwise_adagrad import RowwiseAdagrad


@dataclass(frozen=True)
class OptimizerConfig:
    """learning_rate, weight_decay, beta1, beta2: AdamW on all parameters but embedding tables (biases are not decayed).

    embeddings: "rowwise_adagrad" touches only looked-up rows; "adamw" treats tables like the rest, with the embedding
    learning rate and weight decay.
    embedding_weight_decay: L2 on looked-up rows (row-wise Adagrad) or decoupled decay of all rows (AdamW).
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    embeddings: Literal["rowwise_adagrad", "adamw"] = "rowwise_adagrad"
    embedding_learning_rate: float = 0.02
    embedding_weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "embedding_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "embedding_weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """One optimizer for all parameters of ``model`` that require gradients.

    With row-wise Adagrad the model's ``nn.Embedding`` tables are switched to sparse gradients, except on GPUs, where nccl
    cannot reduce them.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    table_ids = {id(table.weight) for table in tables}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in table_ids]
    weights = [table.weight for table in tables if table.weight.requires_grad]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rowwise = config.embeddings == "rowwise_adagrad"
    if weights and not rowwise:
        groups.append(
            {"params": weights, "weight_decay": config.embedding_weight_decay, "lr": config.embedding_learning_rate}
        )
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if not weights or not rowwise:
        return adamw
    for table in tables:
        table.sparse = not table.weight.is_cuda
    embeddings = RowwiseAdagrad(weights, lr=config.embedding_learning_rate, weight_decay=config.embedding_weight_decay)
    return OptimizerChain([adamw, embeddings])
