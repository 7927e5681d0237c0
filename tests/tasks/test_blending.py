"""The blend of a dense head is chosen on validation, and what is chosen is what is searched by."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.data.sequences import write_sequences
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.families.retriever.blending import BONUSES, SHARES, fit_blend, fit_bonus
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import judge
from rayrec.families.retriever.semantic_id_files import write_semantic_ids
from rayrec.models.liger import Liger
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.retrieval.text_blend import TextBlend
from rayrec.training.experiment import train_here
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import Worker
from tests.tasks.test_retrieval import ITEMS, experiment, sequence_data

BUDGET = 0.02


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> RetrieverExperiment:
    """Users walk round a circle, and so do the texts: that of an item is like the next one's. A dense retriever."""
    folder = tmp_path_factory.mktemp("blending")
    sequences = write_sequences(folder / "sequences", sequence_data())
    angle = 2 * torch.pi * torch.arange(ITEMS) / ITEMS
    torch.manual_seed(0)
    circle = torch.stack([angle.cos(), angle.sin(), 0.3 * torch.randn(ITEMS)], 1)
    made = fit_tokenizer(circle, TokenizerConfig(kmeans=ResidualKMeansConfig(2, 6, iterations=5)))
    ids = write_semantic_ids(folder / "ids", made, "circle", sequence_data().items.fingerprint)
    found = experiment((sequences, ids), "dense", epochs=2)
    liger = replace(found.retrieval.liger, unseen_budget=BUDGET)
    return replace(found, retrieval=replace(found.retrieval, liger=liger))


def untrained(wanted: RetrieverExperiment) -> Liger:
    torch.manual_seed(3)
    model = wanted.task().build()
    assert isinstance(model, Liger)
    return model.eval()


def searched(wanted: RetrieverExperiment, model: Liger) -> Callable[[TextBlend], dict[str, float]]:
    """In-set metrics of validation by the searcher, under a blend."""

    def metrics(blend: TextBlend) -> dict[str, float]:
        model.blend_with(blend)
        task = wanted.task()
        searcher, evaluation = task.searcher(model), task.evaluation()
        for batch in wanted.data(Worker()).open_evaluation("valid", 1).epoch_batches():
            evaluation.update(task.ranks(searcher, batch, "dense"), batch)
        return {name: value or 0.0 for name, value in evaluation.summarize()["in_set"].items()}

    return metrics


def fit(wanted: RetrieverExperiment, model: Liger) -> TextBlend:
    found = fit_blend(wanted.task(), model, wanted.data(Worker()).open_evaluation("valid", 1).epoch_batches)
    assert found is not None
    return found


def test_the_text_weighs_what_is_best_for_the_searcher_and_the_bonus_is_the_largest_within_the_budget(
    wanted: RetrieverExperiment,
) -> None:
    model = untrained(wanted)
    found = fit(wanted, model)
    torch.testing.assert_close(model.blend, torch.tensor([found.text, found.decay, found.unseen]))
    of = searched(wanted, model)

    spreads, unit = [], normalize(model.item_text, dim=1)
    model.blend_with(TextBlend(0.0, 0.0, 0.0))
    for batch in wanted.data(Worker()).open_evaluation("valid", 1).epoch_batches():
        ages = torch.arange(batch.history.shape[1]).flip(0)
        asked = normalize((unit[batch.history] * (found.decay**ages).unsqueeze(1)).sum(1), dim=1)
        dense, text = model.dense_scores(batch.history)[:, 1:], (asked @ unit.T)[:, 1:]
        spreads.append(torch.stack([dense.std(1), text.std(1), (dense + found.text * text).std(1)], 1))
    dense_spread, text_spread, spread = torch.cat(spreads).mean(0).tolist()

    tried = {share / (1 - share) * dense_spread / text_spread: 0.0 for share in SHARES}
    for weight in tried:
        tried[weight] = of(TextBlend(weight, found.decay, 0.0))["ndcg@10"]
    assert found.text == pytest.approx(max(tried, key=lambda weight: (tried[weight], -weight)))
    assert found.text > 0  # an untrained head knows nothing

    assert wanted.task().catalogue.seen[1:].logical_not().sum() == 2
    least = (1 - BUDGET * 2 / (0.1 * ITEMS)) * of(TextBlend(found.text, found.decay, 0.0))["recall@10"]
    within = [of(TextBlend(found.text, found.decay, spread * step))["recall@10"] >= least for step in BONUSES]
    assert not all(within)
    assert found.unseen == pytest.approx(spread * BONUSES[within.index(False) - 1])


def test_a_larger_budget_finds_more_of_what_training_never_saw(wanted: RetrieverExperiment) -> None:
    recalls = []
    for budget in (0.0, 0.6):
        liger = replace(wanted.retrieval.liger, unseen_budget=budget)
        given = replace(wanted, retrieval=replace(wanted.retrieval, liger=liger))
        model = untrained(given)
        fit(given, model)
        recalls.append(judge(given, given.task(), given.task().searcher(model), "dense").metrics["cold"]["recall@10"])
    assert recalls[0] is not None
    assert recalls[1] is not None
    assert recalls[1] > recalls[0]


def test_a_bundle_answers_with_the_blend_that_was_fitted_to_its_weights(
    wanted: RetrieverExperiment, tmp_path: Path
) -> None:
    reporter = FolderReporter(tmp_path / "checkpoints")
    train_here(wanted, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    bundle = load_retriever(wanted.save_bundle(checkpoint, tmp_path / "bundle"))
    assert isinstance(bundle.model, Liger)
    fitted = untrained(wanted)
    fitted.load_state_dict(bundle.model.state_dict())
    fit(wanted, fitted)
    assert fitted.blend.equal(bundle.model.blend)
    assert fitted.blend.any()
    task = wanted.task()
    judged = judge(wanted, task, task.searcher(bundle.model), "dense")
    assert bundle.metadata.metrics["test"]["in_set"]["recall@10"] == pytest.approx(
        judged.metrics["in_set"]["recall@10"]
    )


def test_where_nothing_is_unseen_or_found_there_is_no_bonus(wanted: RetrieverExperiment) -> None:
    task, batches = wanted.task(), wanted.data(Worker()).open_evaluation("valid", 1).epoch_batches
    upside_down = torch.arange(ITEMS + 1.0)
    assert fit_bonus(task, lambda batch: upside_down.expand(len(batch.history), -1), batches, 0.1) > 0

    def never_right(batch: HistoryBatch) -> Tensor:
        scores = torch.zeros(len(batch.target), ITEMS + 1)
        return scores.scatter(1, batch.target.unsqueeze(1), -1.0)

    assert fit_bonus(task, never_right, batches, 0.1) == 0
    task.catalogue = replace(task.catalogue, seen=torch.ones(ITEMS + 1, dtype=torch.bool))
    assert fit_bonus(task, lambda batch: upside_down.expand(len(batch.history), -1), batches, 0.1) == 0


def test_a_model_without_a_budget_is_left_as_it_is(wanted: RetrieverExperiment) -> None:
    liger = replace(wanted.retrieval.liger, unseen_budget=None)
    plain = replace(wanted, retrieval=replace(wanted.retrieval, liger=liger))
    model = plain.task().build()
    assert fit_blend(plain.task(), model, plain.data(Worker()).open_evaluation("valid", 1).epoch_batches) is None
