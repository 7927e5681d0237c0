"""The ranking task's loss: masks, weights, and what the schema makes of the model's inputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig, RankingTask, ranker_inputs
from rayrec.methods.means import masked_cross_entropy
from rayrec.models.ranker import RankerArchitecture
from rayrec.typed_json import ConfigError
from tests.conftest import with_quantiles


def test_unobserved_labels_carry_no_loss_and_no_gradient() -> None:
    logits = torch.randn(6, 2, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.0, float("nan")], [1.0, float("nan")], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    loss = masked_cross_entropy(logits, labels)
    rows = [0, 3, 4, 5]
    torch.testing.assert_close(loss[1], binary_cross_entropy_with_logits(logits[rows, 1], labels[rows, 1]))
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 2], 1] == 0).all()
    assert (logits.grad[rows] != 0).all()


def test_a_task_observed_nowhere_gives_zero() -> None:
    loss = masked_cross_entropy(torch.randn(4, 1), torch.full((4, 1), float("nan")))
    assert loss.item() == 0.0


@given(copies=st.lists(st.integers(0, 3), min_size=2, max_size=8).filter(any), seed=st.integers(0, 1000))
def test_a_row_of_weight_n_counts_as_n_rows(copies: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = torch.randn(len(copies), 1), torch.randint(0, 2, (len(copies), 1)).float()
    repeats = torch.tensor(copies)
    weighted = masked_cross_entropy(logits, labels, repeats.float())
    repeated = masked_cross_entropy(logits.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats, 0))
    torch.testing.assert_close(weighted, repeated)


def test_inputs_follow_the_schema(small_log) -> None:
    inputs = ranker_inputs(Log.open(small_log).schema)
    assert inputs.dense_log1p == (False, True)
    assert inputs.categorical_sizes == (51, 21)
    assert inputs.sequence_shares == (1,)
    assert inputs.num_tasks == 2


def test_total_is_the_weighted_sum_of_the_named_parts(small_log) -> None:
    log = Log.open(small_log)
    task = RankingTask(log.schema, RankingConfig(task_weights={"buy": 0.25}))
    with LogStream(log, "valid", StreamConfig(batch_size=64), epochs=1) as stream:
        batch = next(stream.epoch_batches())
    loss = task.loss(task.build().eval(), batch)
    torch.testing.assert_close(loss.total.detach(), loss.parts["loss/click"] + 0.25 * loss.parts["loss/buy"])


def test_a_weight_for_no_task_is_refused_by_name(small_log) -> None:
    with pytest.raises(ConfigError, match=r"clicks.*tasks: click, buy"):
        RankingTask(Log.open(small_log).schema, RankingConfig(task_weights={"clicks": 1.0}))
    with pytest.raises(ConfigError, match="finite and at least 0: buy"):
        RankingTask(Log.open(small_log).schema, RankingConfig(task_weights={"click": 1.0, "buy": math.inf}))
    with pytest.raises(ConfigError, match="unlabeled_ratio must be finite and at least 0, not nan"):
        RankerExperiment(log=small_log, unlabeled=small_log, unlabeled_ratio=math.nan)


def test_bins_need_quantiles_of_every_number(small_log) -> None:
    schema = Log.open(small_log).schema
    with pytest.raises(
        ConfigError, match=r"dense_bins: schema 'small' has no quantiles of age, price; import the log again"
    ):
        RankingTask(schema, RankingConfig(RankerArchitecture(dense_bins=8)))
    schema = with_quantiles(schema)
    with pytest.raises(ConfigError, match="dense_bins: at most 64, not 65"):
        RankingTask(schema, RankingConfig(RankerArchitecture(dense_bins=65)))
    model = RankingTask(schema, RankingConfig(RankerArchitecture(dense_bins=8))).build()
    assert model.numbers is not None
    assert model.numbers.lower.tolist() == [[i / 8 for i in range(8)]] * 2


def test_rows_with_few_and_many_known_features_are_judged_apart(small_log) -> None:
    log = Log.open(small_log)
    with LogStream(log, "valid", StreamConfig(batch_size=200), epochs=1) as stream:
        batch = next(stream.epoch_batches())
    known = batch.known_features()
    row = 17
    expected = (~batch.dense[row].isnan()).sum() + (batch.categorical[row] > 0).sum()
    assert known[row] == expected + sum(bool((ids[row] > 0).any()) for ids in batch.sequences)
    split = int(known.max())
    few = known < split
    assert 0 < few.sum() < len(batch)
    torch.manual_seed(0)
    logits = torch.randn(len(batch), 2)

    def judged(split: int | None, rows: torch.Tensor) -> dict[str, dict[str, float | None]]:
        task = RankingTask(log.schema, RankingConfig(known_features_split=split))
        evaluation = task.evaluation()
        evaluation.update(logits[rows], batch[rows])
        return evaluation.summarize()

    everything = torch.arange(len(batch))
    grouped = judged(split, everything)
    for group, rows in (("few_known", few.nonzero().squeeze(1)), ("many_known", (~few).nonzero().squeeze(1))):
        alone = judged(None, rows)
        for task in ("click", "buy"):
            for metric in ("normalized_entropy", "auc", "log_loss"):
                assert grouped[task][f"{metric}_{group}"] == pytest.approx(alone[task][metric])
    plain = judged(None, everything)
    assert {task: {name: grouped[task][name] for name in values} for task, values in plain.items()} == plain


def test_a_user_that_is_a_feature_is_taken_and_one_that_is_none_is_refused(small_log) -> None:
    schema = Log.open(small_log).schema
    RankingTask(schema, RankingConfig(user=schema.categorical[1].name))
    with pytest.raises(ConfigError, match="user names no categorical feature: 'nobody'"):
        RankingTask(schema, RankingConfig(user="nobody"))


def test_the_objective_is_the_mean_over_the_tasks_where_it_is_defined(small_log) -> None:
    task = RankingTask(Log.open(small_log).schema, RankingConfig(objective="auc"))
    summary = {"click": {"auc": 0.6}, "buy": {"auc": 0.9}, "never": {"auc": None}}
    assert task.objective(summary) == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="undefined for every task"):
        task.objective({"click": {"auc": None}})


def test_what_a_loss_reports_holds_no_graph(small_log) -> None:
    log = Log.open(small_log)
    task = RankingTask(log.schema, RankingConfig())
    with LogStream(log, "valid", StreamConfig(batch_size=16), epochs=1) as stream:
        loss = task.loss(task.build(), next(stream.epoch_batches()))
    assert loss.total.requires_grad
    assert loss.outputs is not None
    assert not loss.outputs.requires_grad
    assert not any(part.requires_grad for part in loss.parts.values())
