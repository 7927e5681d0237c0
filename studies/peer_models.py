"""What others offer for one task of a log: LightGBM, and DeepFM, DCNv2 and FinalMLP of FuxiCTR's layers, each with its settings.

All read a log as rayrec encoded it: the same ids, the same numbers, the same split. Each fit stops early on the validation rows.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.data.log.schema import LogSchema
from rayrec.families.ranker.task import ranker_inputs
from rayrec.models.layers.dense_input import DenseInput

INSTALL = "the peers are not installed: pip install --constraint requirements.lock --editable '.[bench]'"
Settings = Mapping[str, Any]
Draw = np.random.Generator


@dataclass(frozen=True)
class Rows:
    """Splits by name, each one batch with a single task; without sequences."""

    schema: LogSchema
    splits: Mapping[str, Batch]


class Peer(Protocol):
    """A kind of model with a space of settings."""

    def sample(self, draw: Draw) -> Settings:
        """A point of the space, drawn at random."""
        ...

    def fit(self, rows: Rows, settings: Settings, seed: int) -> Callable[[str], NDArray[np.float64]]:
        """Trained on "train", stopped by "valid"; gives the logits (N,) of a split."""
        ...


def log_uniform(draw: Draw, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(math.exp(draw.uniform(math.log(low), math.log(high))))


def network_settings(draw: Draw) -> Settings:
    """What all networks here draw alike, ours too."""
    return {
        "learning_rate": log_uniform(draw, 3e-4, 1e-2),
        "batch_size": int(draw.choice([256, 1024])),
        "embedding_dim": int(draw.choice([4, 8, 16])),
        "dropout": float(draw.uniform(0.0, 0.5)),
        "units": [(64,), (128, 64), (256, 128, 64)][int(draw.integers(3))],
    }


class LightGbm:
    """Boosted trees; ids are categories to them."""

    rounds = 2000
    patience = 50

    def sample(self, draw: Draw) -> Settings:
        return {
            "learning_rate": log_uniform(draw, 0.01, 0.2),
            "num_leaves": int(draw.choice([7, 15, 31, 63, 127])),
            "min_data_in_leaf": int(draw.choice([5, 20, 50, 100, 200])),
            "feature_fraction": float(draw.uniform(0.3, 1.0)),
            "bagging_fraction": float(draw.uniform(0.5, 1.0)),
            "lambda_l2": log_uniform(draw, 1e-3, 30.0),
            "cat_smooth": log_uniform(draw, 1.0, 100.0),
            "max_cat_threshold": int(draw.choice([8, 32, 128])),
        }

    def fit(self, rows: Rows, settings: Settings, seed: int) -> Callable[[str], NDArray[np.float64]]:
        try:
            import lightgbm
        except ImportError:
            raise SystemExit(INSTALL) from None
        tables = {name: _table(batch) for name, batch in rows.splits.items()}
        numbers = rows.splits["train"].dense.shape[1]
        categories = list(range(numbers, tables["train"].shape[1]))
        labels = {name: batch.labels[:, 0].numpy() for name, batch in rows.splits.items()}
        train = lightgbm.Dataset(tables["train"], labels["train"], categorical_feature=categories)
        valid = lightgbm.Dataset(tables["valid"], labels["valid"], reference=train)
        fixed = {"objective": "binary", "verbosity": -1, "num_threads": 1, "bagging_freq": 1, "seed": seed}
        stopping = lightgbm.early_stopping(self.patience, verbose=False)
        model = lightgbm.train(fixed | dict(settings), train, self.rounds, [valid], callbacks=[stopping])
        return lambda split: np.asarray(model.predict(tables[split], raw_score=True), dtype=np.float64)


@dataclass(frozen=True)
class FuxiCtr:
    """A network of FuxiCTR's layers, trained by Adam with L2 on looked-up vectors until two epochs in a row better nothing."""

    build: Callable[[int, int, Settings], nn.Module]
    """Of the number of fields F, the width W of their vectors and numbers together, and the settings: a module from vectors
    (B, F, D) and all that is known of a row (B, W) to (B, 1)."""
    linear: bool = False
    """With a linear part of the ids."""
    epochs: int = 20

    def sample(self, draw: Draw) -> Settings:
        own = {"embedding_l2": log_uniform(draw, 1e-7, 1e-2), "crosses": int(draw.integers(1, 4))}
        return {**network_settings(draw), **own}

    def fit(self, rows: Rows, settings: Settings, seed: int) -> Callable[[str], NDArray[np.float64]]:
        torch.manual_seed(seed)
        network = _Network(rows, settings, self)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])
        train, best, since = rows.splits["train"], math.inf, 0
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        for _ in range(self.epochs):
            network.train()
            for part in torch.randperm(len(train)).split(settings["batch_size"]):
                batch = train[part]
                logits, vectors = network(batch)
                loss = binary_cross_entropy_with_logits(logits, batch.labels[:, 0])
                loss = loss + settings["embedding_l2"] / 2 * vectors.square().sum(-1).mean(0).sum()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 10.0)  # as the package's ``fit`` does
                optimizer.step()
            valid = rows.splits["valid"]
            found = float(binary_cross_entropy_with_logits(_logits(network, valid), valid.labels[:, 0]))
            if found < best:
                best, since = found, 0
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            else:
                since += 1
                if since == 2:
                    break
        network.load_state_dict(kept)
        return lambda split: _logits(network, rows.splits[split]).double().numpy()


class _Network(nn.Module):
    """Vectors of ids, numbers normalized as rayrec's rankers see them, and a peer's layers on top."""

    def __init__(self, rows: Rows, settings: Settings, peer: FuxiCtr) -> None:
        super().__init__()
        try:
            from fuxictr.features import FeatureMap
            from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
        except ImportError:
            raise SystemExit(INSTALL) from None
        schema, dim = rows.schema, settings["embedding_dim"]
        features = [(f"c{i}", feature.size) for i, feature in enumerate(schema.categorical)]
        feature_map = FeatureMap("peers", "")
        feature_map.features = OrderedDict(
            (name, {"type": "categorical", "source": "", "vocab_size": size}) for name, size in features
        )
        feature_map.num_fields, feature_map.labels = len(features), ["label"]
        self.names = [name for name, _ in features]
        inputs = ranker_inputs(schema)
        self.numbers = DenseInput(inputs.dense_mean, inputs.dense_std, inputs.dense_log1p, inputs.dense_missing)
        self.embedding = FeatureEmbedding(feature_map, dim)
        self.linear = LogisticRegression(feature_map) if peer.linear else None
        self.top = peer.build(len(features), len(features) * dim + self.numbers.width, settings)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B,), and the fields' vectors (B, F, D)."""
        ids = {name: batch.categorical[:, i] for i, name in enumerate(self.names)}
        vectors = self.embedding(ids)
        logits = self.top(vectors, torch.cat([vectors.flatten(1), self.numbers(batch.dense)], dim=1))
        if self.linear is not None:
            logits = logits + self.linear(ids)
        return logits.squeeze(-1), vectors


class _DeepFm(nn.Module):
    """Guo et al. 2017: inner products of all pairs of fields, beside a deep part."""

    def __init__(self, fields: int, width: int, settings: Settings) -> None:
        super().__init__()
        from fuxictr.pytorch.layers import InnerProductInteraction

        self.products = InnerProductInteraction(fields, output="product_sum")
        self.deep = _mlp(width, settings, output=1)

    def forward(self, vectors: Tensor, x: Tensor) -> Tensor:
        summed: Tensor = self.products(vectors) + self.deep(x)
        return summed


class _DcnV2(nn.Module):
    """Wang et al. 2021, parallel: cross layers of full rank beside a deep part."""

    def __init__(self, fields: int, width: int, settings: Settings) -> None:
        super().__init__()
        from fuxictr.pytorch.layers import CrossNetV2

        self.cross, self.deep = CrossNetV2(width, settings["crosses"]), _mlp(width, settings)
        self.out = nn.Linear(width + settings["units"][-1], 1)

    def forward(self, vectors: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.cat([self.cross(x), self.deep(x)], dim=1))
        return logits


class _FinalMlp(nn.Module):
    """Mao et al. 2023: two streams whose inputs are gated apart (factors 2 sigmoid of a learned bias, the paper's gates without a
    context feature), fused by a bilinear form of as many heads as there are ``crosses``."""

    def __init__(self, fields: int, width: int, settings: Settings) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(2, width))
        self.streams = nn.ModuleList([_mlp(width, settings), _mlp(width, settings)])
        size, self.heads = settings["units"][-1], 2 ** (settings["crosses"] - 1)
        self.linear = nn.ModuleList([nn.Linear(size, 1), nn.Linear(size, 1)])
        self.bilinear = nn.Parameter(torch.empty(self.heads, size // self.heads, size // self.heads))
        nn.init.xavier_normal_(self.bilinear)

    def forward(self, vectors: Tensor, x: Tensor) -> Tensor:
        first, second = (stream(x * 2 * gate.sigmoid()) for stream, gate in zip(self.streams, self.gates, strict=True))
        one, other = (stream.unflatten(1, (self.heads, -1)) for stream in (first, second))
        fused = torch.einsum("bhi,hij,bhj->b", one, self.bilinear, other).unsqueeze(1)
        logits: Tensor = fused + self.linear[0](first) + self.linear[1](second)
        return logits


PEERS: Mapping[str, Peer] = {
    "LightGBM": LightGbm(),
    "DeepFM": FuxiCtr(_DeepFm, linear=True),
    "DCNv2": FuxiCtr(_DcnV2),
    "FinalMLP": FuxiCtr(_FinalMlp),
}


def _mlp(width: int, settings: Settings, output: int | None = None) -> nn.Module:
    from fuxictr.pytorch.layers import MLP_Block

    block: nn.Module = MLP_Block(width, list(settings["units"]), "ReLU", output, dropout_rates=settings["dropout"])
    return block


def _table(batch: Batch) -> NDArray[np.float64]:
    """Numbers, NaN where missing, then ids, which -1 marks as missing or unknown."""
    ids = batch.categorical.double()
    return torch.cat([batch.dense.double(), torch.where(ids == 0, -1.0, ids)], dim=1).numpy()


@torch.no_grad()
def _logits(network: _Network, batch: Batch) -> Tensor:
    network.eval()
    return torch.cat([network(batch[slice(i, i + 4096)])[0] for i in range(0, len(batch), 4096)])
