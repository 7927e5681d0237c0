"""The retrieval task: the next item of a history by SASRec, TIGER, a dense text retriever or LIGER, judged by full ranking."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.metrics.ranking import RankingMetrics, list_ranks, target_ranks
from rayrec.models.layers.item_softmax import once_each
from rayrec.models.liger import ItemFeatures, Liger, LigerConfig
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.retrieval.beam_search import beam_search
from rayrec.retrieval.hybrid import hybrid_ranking
from rayrec.retrieval.repeats import Repeats
from rayrec.retrieval.trie import ItemTrie
from rayrec.training.task import Evaluation, Loss
from rayrec.typed_json import ConfigError

ModelName = Literal["sasrec", "tiger", "dense", "liger"]
Method = Literal["dense", "generative", "hybrid"]


@dataclass(frozen=True)
class RetrievalConfig:
    """What is learned.

    model: "sasrec" takes its settings from ``sasrec``, the others from ``liger``: "tiger" without text and dense head, "dense"
    without the generative one.
    objective: what early stopping and sweeps watch, over the validation targets that were seen in training.
    beams: of the generative candidates in evaluations.
    """

    model: ModelName = "sasrec"
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    liger: LigerConfig = field(default_factory=LigerConfig)
    objective: Literal["ndcg@10", "recall@10"] = "ndcg@10"
    cutoffs: tuple[int, ...] = (5, 10)
    beams: int = 20

    def __post_init__(self) -> None:
        if 10 not in self.cutoffs:
            raise ValueError(f"cutoffs must hold 10, which the objective needs; given {self.cutoffs}")
        if self.beams < max(self.cutoffs):
            raise ValueError(f"beams {self.beams} must be at least the largest cutoff, {max(self.cutoffs)}")

    @property
    def liger_config(self) -> LigerConfig:
        """``liger`` as ``model`` means it."""
        if self.model == "tiger":
            return replace(self.liger, text=False, dense_weight=0.0, generative_weight=1.0, repeat_bias=False)
        if self.model == "dense":
            return replace(self.liger, text=True, dense_weight=1.0, generative_weight=0.0)
        return self.liger

    @property
    def max_length(self) -> int:
        return self.sasrec.max_length if self.model == "sasrec" else self.liger.max_length

    @property
    def selection(self) -> Method:
        """By which method models are judged while they train: LIGER by its dense head, as in the paper."""
        return "generative" if self.model == "tiger" else "dense"


@dataclass(frozen=True)
class Catalogue:
    """What a retriever must know of the items: how many there are, which were seen in training, how often, and their features.

    seen: (N + 1,) bool. counts: (N + 1,) int64, occurrences in training. features: None = only SASRec can be built.
    """

    num_items: int
    seen: Tensor
    counts: Tensor
    features: ItemFeatures | None


class RetrievalTask:
    """Raises ConfigError when the model needs semantic IDs and the catalogue has none."""

    curve_metrics = ("ndcg@10", "recall@10")
    objective_mode: Literal["min", "max"] = "max"

    def __init__(self, catalogue: Catalogue, config: RetrievalConfig) -> None:
        if config.model != "sasrec" and catalogue.features is None:
            raise ConfigError(f"model {config.model!r} needs semantic_ids; make them with python -m jobs.semantic_ids")
        self.catalogue, self.config = catalogue, config
        self.methods: nn.Module = nn.Module()
        self._judges: dict[torch.device, _Judge] = {}
        self._popularity = catalogue.counts.double() / catalogue.counts.sum().clamp_min(1)

    def build(self) -> nn.Module:
        if self.config.model == "sasrec":
            return SASRec(self.catalogue.num_items, self.config.sasrec)
        assert self.catalogue.features is not None
        return Liger(self.catalogue.features, self.config.liger_config)

    def loss(self, model: nn.Module, batch: HistoryBatch, unlabeled: HistoryBatch | None = None) -> Loss:
        if isinstance(model, SASRec):
            total = model.loss(batch.history, batch.target, *self._negatives(batch.history.device))
            return Loss(total, {"loss": total.detach()})
        assert isinstance(model, Liger)
        parts = model.loss(batch.history, batch.target)
        return Loss(parts["loss"], {name: value.detach() for name, value in parts.items()})

    def predict(self, model: nn.Module, batch: HistoryBatch) -> Tensor:
        """Ranks (B,) of the targets by the method that selects models."""
        return self.ranks(model, batch, self.config.selection)

    def ranks(self, model: nn.Module, batch: HistoryBatch, method: Method, beams: int | None = None) -> Tensor:
        """Ranks (B,) of the targets by a method: among all items (dense), or in the ranked list (generative, hybrid).

        Raises ConfigError when the model has no such head.
        """
        if isinstance(model, SASRec):
            if method != "dense":
                raise ConfigError(f"method {method!r} needs a generative head; SASRec has none")
            return target_ranks(model.scores(batch.history), batch.target)
        assert isinstance(model, Liger)
        check_method(model.config, method)
        if method == "dense":
            return target_ranks(model.dense_scores(batch.history), batch.target)
        judge = self._judge(model)
        width = beams or self.config.beams
        generated = beam_search(judge.trie, model.decoding(batch.history), width).items
        if method == "generative":
            return list_ranks(generated, batch.target)
        vectors = model.item_vectors()
        query, repeats = model.query(batch.history), repeats_of(model, batch.history)
        ranked, _ = hybrid_ranking(query, generated, judge.cold, vectors, max(self.config.cutoffs), repeats)
        return list_ranks(ranked, batch.target)

    def observe(self, evaluation: Evaluation, outputs: Tensor, batch: HistoryBatch) -> None:
        assert isinstance(evaluation, RankingMetrics)
        seen = self.catalogue.seen.to(batch.target.device)
        evaluation.update(outputs.long(), ~seen[batch.target])

    def new_evaluation(self) -> RankingMetrics:
        return RankingMetrics(self.config.cutoffs)

    def summarize(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """users, recall@K, ndcg@K, mrr of all targets, of those seen in training (in_set) and of cold ones."""
        assert isinstance(evaluation, RankingMetrics)
        summary = {}
        for group in ("in_set", "cold", "all"):
            numbers = evaluation.compute()[group].as_numbers()
            summary[group] = {"users": numbers.pop("count"), **numbers}
        return summary

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        value = summary["in_set"][self.config.objective]
        if value is None:
            raise ConfigError("no validation target was seen in training: nothing to select models by")
        return value

    @property
    def objective_name(self) -> str:
        return f"valid/in_set_{self.config.objective}"

    def _negatives(self, device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Items drawn by their popularity (S,) and the log-probability of each item to be drawn (N + 1,)."""
        count = self.config.sasrec.sampled_items
        if count == 0:
            return None, None
        sampled = torch.multinomial(self._popularity, count, replacement=True)
        return sampled.to(device), self._popularity.clamp_min(1e-12).log().float().to(device)

    def _judge(self, model: Liger) -> "_Judge":
        device = model.item_tokens.device
        if device not in self._judges:
            cold = (~model.seen).nonzero().squeeze(1)[1:]
            self._judges[device] = _Judge(ItemTrie.of(model.item_tokens).to(device), cold)
        return self._judges[device]


def repeats_of(model: SASRec | Liger, history: Tensor) -> Repeats | None:
    """What the scores of ``model`` by inner products lack for histories (B, L); None where they lack nothing."""
    if not model.config.repeat_bias:
        return None
    return Repeats(once_each(history[:, -model.config.max_length :]), model.repeat_shift())


def check_method(config: LigerConfig, method: Method) -> None:
    """Raises ConfigError when a model of ``config`` cannot retrieve by ``method``."""
    missing = [
        name
        for name, weight in (("dense", config.dense_weight), ("generative", config.generative_weight))
        if method in (name, "hybrid") and weight == 0
    ]
    if missing:
        raise ConfigError(f"method {method!r} needs a {' and a '.join(missing)} head; this model was trained without")


@dataclass(frozen=True)
class _Judge:
    """What decoding needs beside the model, made once."""

    trie: ItemTrie
    cold: Tensor
