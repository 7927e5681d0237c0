"""The retrieval task: the next item of a history by SASRec, TIGER, a dense text retriever or LIGER, judged by full ranking."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import model_validator
from torch import Tensor, nn

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.metrics.ranking import ABSENT, RankingMetrics, list_ranks
from rayrec.models.catalogue import Catalogue
from rayrec.models.depth_retriever import DepthRetrieverConfig
from rayrec.models.extended_lm import ExtendedLMConfig
from rayrec.models.liger import LigerConfig
from rayrec.models.mender import MenderEmbConfig, MenderTokConfig
from rayrec.models.sasrec import SASRecConfig
from rayrec.models.tiger import TigerConfig
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.searching import Method, Searcher
from rayrec.training.task import Evaluation, LeftOut, Loss, Summary
from rayrec.typed_json import ConfigError

HistoryItems = Literal["ranked", "excluded"]
"""Whether items of the history are candidates like all others, or none (a target among them is a miss then)."""
ModelName = Literal["sasrec", "depth", "tiger", "dense", "liger", "mender_emb", "mender_tok", "extended_lm"]


class Architecture(Protocol):
    """The config of a model, and all that the family asks of it.

    needs_semantic_ids: whether ``Catalogue.features`` must be there. reads_windows: trains at every position of a window, else
    on prefixes with one target each. max_length: newest items of a history that are read.
    reads_preferences: in which form, None = blind to them. user_tokens: to how many a user's name is hashed, 0 = blind to users.
    """

    @property
    def needs_semantic_ids(self) -> bool: ...

    @property
    def reads_windows(self) -> bool: ...

    @property
    def max_length(self) -> int: ...

    @property
    def user_tokens(self) -> int: ...

    @property
    def reads_preferences(self) -> Literal["vectors", "tokens"] | None: ...

    def build(self, catalogue: Catalogue) -> Retriever[Any]: ...


@dataclass(frozen=True)
class RetrievalConfig:
    """What is learned."""

    model: ModelName = "sasrec"
    """Each takes its settings from the field of its name, "dense" from ``liger``, whose generative head it leaves out."""
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    """Settings of ``model`` sasrec."""
    depth: DepthRetrieverConfig = field(default_factory=DepthRetrieverConfig)
    """Settings of ``model`` depth."""
    tiger: TigerConfig = field(default_factory=TigerConfig)
    """Settings of ``model`` tiger."""
    liger: LigerConfig = field(default_factory=LigerConfig)
    """Settings of ``model`` liger and dense."""
    mender_emb: MenderEmbConfig = field(default_factory=MenderEmbConfig)
    """Settings of ``model`` mender_emb."""
    mender_tok: MenderTokConfig = field(default_factory=MenderTokConfig)
    """Settings of ``model`` mender_tok."""
    extended_lm: ExtendedLMConfig = field(default_factory=ExtendedLMConfig)
    """Settings of ``model`` extended_lm."""
    objective: Literal["ndcg@10", "recall@10"] = "ndcg@10"
    """What early stopping and sweeps watch, over the validation targets that were seen in training."""
    cutoffs: tuple[int, ...] = (5, 10)
    """K of Recall@K and NDCG@K."""
    beams: int = 20
    """Of the generative candidates in evaluations; also the depth to which every method's list is judged."""

    def __post_init__(self) -> None:
        if 10 not in self.cutoffs:
            raise ValueError(f"cutoffs must hold 10, which the objective needs; given {self.cutoffs}")
        if self.beams < max(self.cutoffs):
            raise ValueError(f"beams {self.beams} must be at least the largest cutoff, {max(self.cutoffs)}")
        _ = self.architecture  # its checks

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, given: Any) -> Any:
        """Before TIGER had settings of its own it was LIGER without text and dense head: such files mean that model still."""
        if not (
            isinstance(given, dict) and given.get("model") == "tiger" and "liger" in given and "tiger" not in given
        ):
            return given
        tiger = {"text": False, "dense_weight": 0.0, "generative_weight": 1.0, "repeat_bias": False}
        return {**given, "model": "liger", "liger": {**given["liger"], **tiger}}

    @property
    def list_depth(self) -> int:
        """Places of a list that count, for whatever method."""
        return self.beams

    @property
    def reader(self) -> MenderTokConfig | None:
        """Settings of the text encoder in the model, if it has one."""
        found = self.architecture
        return found if isinstance(found, MenderTokConfig) else None

    def forgetful(self) -> "RetrievalConfig":
        """As it is served: nothing that only training's repeated epochs gain from is kept in memory."""
        return replace(self, mender_tok=replace(self.mender_tok, remembered=0))

    @property
    def architecture(self) -> Architecture:
        """Settings of the model that ``model`` names."""
        return MODELS[self.model](self)


MODELS: Mapping[ModelName, Callable[[RetrievalConfig], Architecture]] = {
    "sasrec": lambda c: c.sasrec,
    "depth": lambda c: c.depth,
    "tiger": lambda c: c.tiger,
    "dense": lambda c: replace(c.liger, text=True, dense_weight=1.0, generative_weight=0.0, constrained_softmax=False),
    "liger": lambda c: c.liger,
    "mender_emb": lambda c: c.mender_emb,
    "mender_tok": lambda c: c.mender_tok,
    "extended_lm": lambda c: c.extended_lm,
}
"""The retrievers of this family: a new one is a model file, its settings in ``RetrievalConfig`` and a line here."""


class RetrievalTask:
    """Raises ConfigError when the model needs semantic IDs or preferences and there are none."""

    curve_metrics = ("ndcg@10", "recall@10")
    objective_mode: Literal["min", "max"] = "max"

    def __init__(self, catalogue: Catalogue, config: RetrievalConfig) -> None:
        if config.architecture.needs_semantic_ids and catalogue.features is None:
            raise ConfigError(f"model {config.model!r} needs semantic_ids; make them with python -m jobs.semantic_ids")
        reads = config.architecture.reads_preferences
        given = {"vectors": catalogue.preference_dim, "tokens": catalogue.prompts}
        if reads is not None and given[reads] is None:
            raise ConfigError(
                f"model {config.model!r} needs preferences.benchmark; make it with python -m jobs.build_preference_benchmark"
            )
        self.catalogue, self.config = catalogue, config
        self.methods: nn.Module = nn.Module()
        self._searcher: Searcher[Any] | None = None

    def build(self) -> Retriever[Any]:
        return self.config.architecture.build(self.catalogue)

    def searcher(self, model: Retriever[Any]) -> Searcher[Any]:
        return Searcher(model, beams=self.config.beams)

    def sizes(self, model: Retriever[Any], batch: HistoryBatch, unlabeled: HistoryBatch | None = None) -> Tensor:
        sizes = model.loss_sizes(batch.asked, batch.target)
        return torch.stack([sizes[name] for name in sorted(sizes)])

    def loss(
        self, model: Retriever[Any], batch: HistoryBatch, unlabeled: HistoryBatch | None = None,
        joint_sizes: Tensor | None = None,
    ) -> Loss:  # fmt: skip
        joint = None if joint_sizes is None else dict(zip(sorted(model.loss_weights), joint_sizes, strict=True))
        parts = model.loss(batch.asked, batch.target, joint)
        return Loss(parts["loss"], {name: value.detach() for name, value in parts.items()})

    def predict(self, model: Retriever[Any], batch: HistoryBatch) -> Tensor:
        """Ranks (B,) of the targets by the method that selects models; by its weights of when ``evaluation`` was last called."""
        if self._searcher is None or self._searcher.model is not model:
            self._searcher = self.searcher(model)
        return self.ranks(self._searcher, batch, model.judged_by)

    def ranks(
        self, searcher: Searcher[Any], batch: HistoryBatch, method: Method, beams: int | None = None,
        history: HistoryItems = "ranked",
    ) -> Tensor:  # fmt: skip
        """Ranks (B,) of the targets among the ``list_depth`` items that the method finds first; ABSENT beyond.

        history: of the items that are read of it, see ``HistoryItems``. Ties count against the target.
        Raises ConfigError when the model lacks a head.
        """
        depth, barred = self.config.list_depth, batch.history if history == "excluded" else None
        found = searcher.search(
            batch.asked, depth + 1, method, beams=beams, barred=barred
        )  # one more: a tie at the end
        ranks = list_ranks(found.items, batch.target, found.scores)
        return ranks.masked_fill(ranks > depth, ABSENT)

    @torch.no_grad()
    def validated(self, model: Retriever[Any], batches: Callable[[], Iterable[HistoryBatch]]) -> dict[Method, float]:
        """The objective over all targets of ``batches()``, cold ones too, by each method of the model."""
        model.eval()
        searcher, found = self.searcher(model), {}
        for method in searcher.methods:
            evaluation = self.evaluation()
            for batch in batches():
                evaluation.update(self.ranks(searcher, batch, method), batch)
            found[method] = evaluation.summarize()["all"][self.config.objective] or 0.0
        return found

    def evaluation(self, *, by_group: bool = False) -> "RetrievalEvaluation":
        """Sums by group are kept in any case."""
        self._searcher = None  # the model may have been trained on since the last pass
        return RetrievalEvaluation(self.catalogue.seen, self.config.cutoffs)

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        value = summary["in_set"][self.config.objective]
        if value is None:
            raise ConfigError("no validation target was seen in training: nothing to select models by")
        return value

    @property
    def objective_name(self) -> str:
        return f"valid/in_set_{self.config.objective}"


class RetrievalEvaluation(Evaluation[HistoryBatch]):
    """Ranks of the targets. seen: (items + 1,) whether an item was met in training."""

    def __init__(self, seen: Tensor, cutoffs: Sequence[int]) -> None:
        self.metrics: RankingMetrics = RankingMetrics(cutoffs)
        self._seen = seen

    def update(self, outputs: Tensor, batch: HistoryBatch) -> None:
        seen = self._seen.to(batch.target.device)
        self.metrics.update(outputs.long(), ~seen[batch.target], batch.row)

    def summarize(self) -> Summary:
        """users, recall@K, ndcg@K, mrr of all targets, of those seen in training (in_set) and of cold ones."""
        summary = {}
        for group in ("in_set", "cold", "all"):
            numbers = self.metrics.compute()[group].as_numbers()
            summary[group] = {"users": numbers.pop("count"), **numbers}
        return summary

    def left_out(self) -> LeftOut:
        return self.metrics.left_out()
