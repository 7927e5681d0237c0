"""How well and at what cost a trained retriever answers: metrics by method, time a user, bytes that must be stored."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import Method, RetrievalTask
from rayrec.models.liger import Liger
from rayrec.models.sasrec import SASRec
from rayrec.training.loop import Worker
from rayrec.typed_json import ConfigError

METHODS: tuple[Method, ...] = ("dense", "generative", "hybrid")


@dataclass(frozen=True)
class Judgement:
    """metrics: by group (in_set, cold, all) and name. milliseconds: a user, in batches, histories to ranks.

    index_bytes: what answering needs beside the weights: float32 vectors (dense), 2 bytes a code (generative), both (hybrid).
    """

    method: Method
    beams: int | None
    metrics: Mapping[str, Mapping[str, float | None]]
    milliseconds: float
    index_bytes: int


def methods_of(model: SASRec | Liger) -> tuple[Method, ...]:
    """By which a model can retrieve."""
    if isinstance(model, SASRec):
        return ("dense",)
    weights = {"dense": model.config.dense_weight, "generative": model.config.generative_weight}
    return tuple(
        m for m in METHODS if all(weights[w] > 0 for w in (("dense", "generative") if m == "hybrid" else (m,)))
    )


@torch.no_grad()
def judge(
    experiment: RetrieverExperiment, task: RetrievalTask, model: SASRec | Liger, method: Method,
    *, split: str = "test", beams: int | None = None,
) -> Judgement:  # fmt: skip
    """One pass over a split of the experiment's data. Raises ConfigError for a split or method that is not there."""
    if split not in ("valid", "test"):
        raise ConfigError(f"split must be valid or test, not {split!r}")
    model.eval()
    evaluation, users, seconds = task.new_evaluation(), 0, 0.0
    for batch in experiment.data(Worker()).open_evaluation(split, 1).epoch_batches():
        started = time.perf_counter()
        ranks = task.ranks(model, batch, method, beams)
        seconds += time.perf_counter() - started
        users += len(batch)
        task.observe(evaluation, ranks, batch)
    width = model.config.dim if isinstance(model, SASRec) else model.config.transformer.dim
    vectors = 4 * width * model.num_items
    codes = 0 if isinstance(model, SASRec) else 2 * model.item_tokens[1:].numel()
    stored = {"dense": vectors, "generative": codes, "hybrid": vectors + codes}[method]
    used = None if method == "dense" else beams or task.config.beams
    return Judgement(method, used, task.summarize(evaluation), 1000 * seconds / max(users, 1), stored)
