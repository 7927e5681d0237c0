"""Rankings by scores of all items: against the searcher, against hand-written sums, and shares chosen on validation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rayrec.data.sequences import Interactions, ItemTable, SequenceData, leave_one_out, write_sequences
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.item_scores import dense_scores, equal_sum, popularity, summed, text_neighbours
from rayrec.families.retriever.judging import judge
from rayrec.families.retriever.score_ranking import best_decay, best_share, judge_scores
from rayrec.families.retriever.task import HistoryItems, RetrievalConfig
from rayrec.models.sasrec import SASRecConfig
from rayrec.typed_json import ConfigError
from tests.tasks.test_retrieval import ITEMS, sequence_data

SASREC = SASRecConfig(dim=8, layers=1, max_length=4, dropout=0.0, repeat_bias=True)
CIRCLE = torch.cat([torch.zeros(1, ITEMS), torch.eye(ITEMS)])  # an embedding for each item


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> RetrieverExperiment:
    sequences = write_sequences(tmp_path_factory.mktemp("scores") / "sequences", sequence_data())
    return RetrieverExperiment(sequences, retrieval=RetrievalConfig(sasrec=SASREC, beams=10))


@pytest.mark.parametrize("history", ["ranked", "excluded"])
def test_scores_of_a_dense_head_are_judged_as_the_searcher_is(
    wanted: RetrieverExperiment, history: HistoryItems
) -> None:
    torch.manual_seed(0)
    task = wanted.task()
    model = task.build().eval()
    model.repeat.data.fill_(0.3)  # type: ignore[union-attr, operator]
    searched = judge(wanted, task, task.searcher(model), "dense", history=history)
    scored = judge_scores(wanted, dense_scores(model), split="test", history=history)
    for group, metrics in searched.metrics.items():
        assert scored.metrics[group] == pytest.approx(metrics, abs=1e-9)
    assert scored.left_out["all"]["ndcg@10"] == pytest.approx(searched.left_out["all"]["ndcg@10"])


def test_popularity_counts_training_alone(wanted: RetrieverExperiment) -> None:
    data = sequence_data().interactions
    train = leave_one_out(data).in_training(data)
    counts = torch.bincount(torch.from_numpy(data.items[train]).long(), minlength=ITEMS + 1)
    scores = popularity(wanted.task().catalogue.counts)(torch.zeros(2, 3, dtype=torch.int64))
    assert scores[:, 1:].tolist() == [counts[1:].tolist()] * 2
    assert scores[:, 0].tolist() == [-torch.inf] * 2


def test_neighbours_by_text_are_cosines_with_the_history_faded_by_age() -> None:
    torch.manual_seed(0)
    text = 3 * torch.randn(6, 4)
    unit = text / text.norm(dim=1, keepdim=True)
    history = torch.tensor([[0, 2, 5], [1, 1, 3]])
    for decay in (0.0, 0.5, 1.0):
        newest_last = [unit[5] + decay * unit[2], unit[3] + (decay + decay**2) * unit[1]]
        expected = torch.stack([query / query.norm() for query in newest_last]) @ unit[1:].T
        found = text_neighbours(text, decay)(history)
        torch.testing.assert_close(found[:, 1:], expected)
        assert (found[:, 0] == -torch.inf).all()


def test_a_sum_of_scores_is_each_of_them_at_its_ends_whatever_their_scales() -> None:
    torch.manual_seed(0)
    scores = torch.cat([torch.full((5, 1), -torch.inf), torch.randn(5, 9)], 1)
    other = torch.cat([torch.full((5, 1), -torch.inf), torch.randn(5, 9)], 1)
    history = torch.zeros(5, 1, dtype=torch.int64)

    def order(share: float, scale: float = 1.0) -> Tensor:
        return summed(lambda h: scores, lambda h: 7 + scale * other, share)(history).argsort(1, descending=True)

    assert torch.equal(order(0.0), scores.argsort(1, descending=True))
    assert torch.equal(order(1.0), other.argsort(1, descending=True))
    assert torch.equal(order(0.4), order(0.4, scale=100.0))
    middle = summed(lambda h: scores, lambda h: other, 0.25)(history)[:, 1:]
    z = [(s[:, 1:] - s[:, 1:].mean(1, keepdim=True)) / s[:, 1:].std(1, keepdim=True) for s in (scores, other)]
    torch.testing.assert_close(middle, 0.75 * z[0] + 0.25 * z[1])


def test_an_equal_sum_is_the_same_in_any_order_and_scale_and_of_one_its_own_scores() -> None:
    torch.manual_seed(0)
    three = [torch.cat([torch.full((5, 1), -torch.inf), torch.randn(5, 9)], 1) for _ in range(3)]
    history = torch.zeros(5, 1, dtype=torch.int64)
    assert equal_sum([lambda h: three[0]])(history) is three[0]
    found = equal_sum([lambda h: three[0], lambda h: 5 * three[1] - 2, lambda h: three[2]])(history)
    z = [(s[:, 1:] - s[:, 1:].mean(1, keepdim=True)) / s[:, 1:].std(1, keepdim=True) for s in three]
    torch.testing.assert_close(found[:, 1:], (z[2] + z[0] + z[1]) / 3)
    assert (found[:, 0] == -torch.inf).all()


def test_a_share_and_a_decay_are_those_that_rank_the_validation_targets_best(wanted: RetrieverExperiment) -> None:
    def right(history: Tensor) -> Tensor:  # users walk round 1, 2, ... 28, 1, ...
        scores = one_hot(history[:, -1] % 28 + 1, ITEMS + 1).float()
        scores[:, 0] = -torch.inf
        return scores

    def wrong(history: Tensor) -> Tensor:
        scores = one_hot(history[:, -1], ITEMS + 1).float()
        scores[:, 0] = -torch.inf
        return scores

    assert best_share(wanted, wrong, right, history="ranked", shares=(0.0, 0.4, 1.0)) == 1.0
    assert best_share(wanted, right, wrong, history="ranked", shares=(0.0, 0.4, 1.0)) == 0.0
    assert best_share(wanted, wrong, right, history="excluded") == pytest.approx(0.05)  # what it adds is not in the way
    turned = CIRCLE.clone()
    for item in range(1, 29):
        turned[item, item % 28] = 0.5  # nearest to the one behind it
    assert best_decay(wanted, turned, history="excluded", decays=(0.0, 1.0)) == 0.0


def test_nothing_is_chosen_by_validation_targets_that_training_never_saw(tmp_path: Path) -> None:
    offsets, items = np.arange(4, dtype=np.int64) * 4, np.tile(np.arange(1, 5, dtype=np.int32), 3)
    table = ItemTable.of([str(item) for item in range(1, ITEMS + 1)])
    data = SequenceData(Interactions(offsets, items, ITEMS), table, pa.array(["u", "v", "w"]))
    experiment = RetrieverExperiment(
        write_sequences(tmp_path / "sequences", data), retrieval=RetrievalConfig(sasrec=SASREC, beams=10)
    )
    with pytest.raises(ConfigError, match="no validation target was seen in training"):
        best_decay(experiment, CIRCLE, history="ranked")


def test_a_model_without_a_dense_head_has_no_scores_of_all_items() -> None:
    class Headless:
        dense = None

    with pytest.raises(ConfigError, match="need a dense head"):
        dense_scores(Headless())  # type: ignore[arg-type]
