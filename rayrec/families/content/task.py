"""The content task: which of an impression's candidates a user engages with, by their texts; judged as MIND is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rayrec.metrics.impressions import ImpressionMetrics
from rayrec.models.content_baselines import MeanTwoTower, Miner, MinerConfig, Nrms, NrmsConfig
from rayrec.models.content_encoder import ContentEncoder, ContentEncoderConfig
from rayrec.models.content_inputs import ContentBatch
from rayrec.models.content_ranker import ContentRanker, ContentShape
from rayrec.models.embsum import Embsum, EmbsumConfig
from rayrec.models.spar import Spar, SparConfig
from rayrec.text.encoder import MINILM, minilm_folder
from rayrec.training.task import Evaluation, LeftOut, Loss, Summary
from rayrec.typed_json import ConfigError

ModelName = Literal["two_tower", "nrms", "miner", "spar", "embsum"]


@dataclass(frozen=True)
class ContentConfig:
    """What is learned."""

    model: ModelName = "spar"
    """Each takes its settings from the field of its name; "two_tower" has none."""
    encoder: ContentEncoderConfig = field(default_factory=ContentEncoderConfig)
    """What reads texts."""
    nrms: NrmsConfig = field(default_factory=NrmsConfig)
    """Settings of ``model`` nrms."""
    miner: MinerConfig = field(default_factory=MinerConfig)
    """Settings of ``model`` miner."""
    spar: SparConfig = field(default_factory=SparConfig)
    """Settings of ``model`` spar."""
    embsum: EmbsumConfig = field(default_factory=EmbsumConfig)
    """Settings of ``model`` embsum."""
    max_history: int = 60
    """Newest contents that are read."""
    objective: Literal["auc", "mrr", "ndcg@5", "ndcg@10"] = "auc"
    """What early stopping and sweeps watch on the validation impressions."""

    def __post_init__(self) -> None:
        if self.max_history < 1:
            raise ValueError(f"max_history must be at least 1, not {self.max_history}")


@dataclass(frozen=True)
class ContentVocabulary:
    """What a model must know of the tokens. size: ids. start, end: of every text. shape: the largest input."""

    size: int
    start: int
    end: int
    shape: ContentShape


MODELS: Mapping[ModelName, Callable[[ContentConfig, ContentEncoder, ContentVocabulary], ContentRanker]] = {
    "two_tower": lambda c, encoder, v: MeanTwoTower(encoder),
    "nrms": lambda c, encoder, v: Nrms(c.nrms, encoder),
    "miner": lambda c, encoder, v: Miner(c.miner, encoder),
    "spar": lambda c, encoder, v: Spar(c.spar, encoder, v.shape),
    "embsum": lambda c, encoder, v: Embsum(c.embsum, encoder, v.size, v.start, v.end),
}
"""The models of this family: a new one is a model file, its settings in ``ContentConfig`` and a line here."""


def build_model(
    config: ContentConfig, vocabulary: ContentVocabulary, encoder_shape: Mapping[str, Any] | None = None
) -> ContentRanker:
    """A fresh model; with ``encoder_shape`` no pretrained weights are read, for weights that are loaded afterwards."""
    where = config.encoder.model
    if where == MINILM and encoder_shape is None:
        where = minilm_folder()
    encoder = ContentEncoder(config.encoder, vocabulary.size, where, encoder_shape)
    return MODELS[config.model](config, encoder, vocabulary)


class ContentTask:
    curve_metrics = ("auc", "mrr", "ndcg@5", "ndcg@10")
    objective_mode: Literal["min", "max"] = "max"

    def __init__(self, config: ContentConfig, vocabulary: ContentVocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.methods: nn.Module = nn.Module()

    def build(self) -> ContentRanker:
        return build_model(self.config, self.vocabulary)

    def sizes(self, model: ContentRanker, batch: ContentBatch, unlabeled: ContentBatch | None = None) -> Tensor:
        return _sizes(model, batch)

    def loss(
        self, model: ContentRanker, batch: ContentBatch, unlabeled: ContentBatch | None = None,
        joint_sizes: Tensor | None = None,
    ) -> Loss:  # fmt: skip
        """ "nce" over rows; EmbSum's "summary" over the tokens that are to be written, times its weight."""
        weights, parts = model.loss_weights, model.losses(batch)
        shares = torch.ones(len(weights), dtype=torch.float64)
        if joint_sizes is not None:
            shares = _sizes(model, batch) / joint_sizes.cpu().clamp_min(1e-9)
        terms = [
            weights[name] * float(share) * parts[name] for name, share in zip(sorted(weights), shares, strict=True)
        ]
        total = torch.stack(terms).sum()
        return Loss(total, {"loss": total.detach(), **{name: value.detach() for name, value in parts.items()}})

    def predict(self, model: ContentRanker, batch: ContentBatch) -> Tensor:
        """Scores (B, C), -inf at padding."""
        return model.scores(batch)

    def evaluation(self, *, by_group: bool = False) -> "ContentEvaluation":
        """Sums by group are kept in any case."""
        return ContentEvaluation()

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        value = summary["impressions"][self.config.objective]
        if value is None:
            raise ConfigError(
                "no validation impression has both a positive and a negative: nothing to select models by"
            )
        return value

    @property
    def objective_name(self) -> str:
        return f"valid/{self.config.objective}"


class ContentEvaluation(Evaluation[ContentBatch]):
    """Scores of impressions."""

    def __init__(self) -> None:
        self.metrics: ImpressionMetrics = ImpressionMetrics()

    def update(self, outputs: Tensor, batch: ContentBatch) -> None:
        self.metrics.update(outputs, batch.labels, batch.owners[batch.users])

    def summarize(self) -> Summary:
        """rows (impressions), left_out, auc, mrr, ndcg@5, ndcg@10 under "impressions"."""
        return {"impressions": self.metrics.compute()}

    def left_out(self) -> LeftOut:
        return {"impressions": self.metrics.without_groups()}


def _sizes(ranker: ContentRanker, batch: ContentBatch) -> Tensor:
    """(P,) float64 in the order of the names."""
    sizes = ranker.loss_sizes(batch)
    return torch.tensor([sizes[name] for name in sorted(ranker.loss_weights)], dtype=torch.float64)
