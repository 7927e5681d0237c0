"""Training streams of histories: every example once, resumable, shared out over ranks; evaluation passes."""

from itertools import chain

import numpy as np
import pytest
import torch

from rayrec.data.log.streams import StreamPosition
from rayrec.data.sequences import Interactions, leave_one_out
from rayrec.data.sequences.streams import JudgedSequences, SequenceStreamConfig, TrainingSequences, sample_examples
from rayrec.metrics.ranking import RankingMetrics
from rayrec.typed_json import ConfigError

CONFIG = SequenceStreamConfig(batch_size=8, evaluation_batch_size=7)


def interactions(users: int = 60) -> Interactions:
    lengths = np.random.default_rng(0).integers(3, 12, users)
    items = np.random.default_rng(1).integers(1, 41, lengths.sum()).astype(np.int32)
    return Interactions(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items, 40)


def open_stream(windows: bool, start: StreamPosition | None = None, rank: int = 0, size: int = 1) -> TrainingSequences:
    data = interactions()
    return TrainingSequences(
        data, leave_one_out(data), CONFIG, length=4, windows=windows, start=start, rank=rank, world_size=size
    )


Row = tuple[tuple[int, ...], tuple[int, ...]]


def batches(stream: TrainingSequences) -> list[list[Row]]:
    """(history without padding, target) of each row of an epoch, by batch."""
    return [
        [
            (tuple(i for i in history if i), tuple(i for i in target if i))
            for history, target in zip(batch.history.tolist(), batch.target.view(len(batch), -1).tolist(), strict=True)
        ]
        for batch, _ in stream.epoch_batches()
    ]


@pytest.mark.parametrize("windows", [False, True])
def test_a_stream_opened_in_the_middle_goes_on_with_the_very_next_batch(windows: bool) -> None:
    whole = open_stream(windows)
    first, second = batches(whole), batches(whole)
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))
    assert whole.position == StreamPosition(2, 0)
    resumed = open_stream(windows, StreamPosition(1, 3))
    assert batches(resumed) == second[3:]
    assert resumed.position == StreamPosition(2, 0)


def test_ranks_share_an_epoch_without_overlap_in_equal_steps() -> None:
    alone = batches(open_stream(False))
    shares = [batches(open_stream(False, rank=rank, size=2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(alone) // 2
    assert shares[0] == alone[0 : 2 * len(shares[0]) : 2]
    assert shares[1] == alone[1 : 2 * len(shares[1]) : 2]


def test_each_evaluation_pass_judges_every_target_once() -> None:
    data = interactions()
    split = leave_one_out(data)
    streams = [JudgedSequences(data, split.test, CONFIG, length=4, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        judged = [t for stream in streams for batch in stream.epoch_batches() for t in batch.target.tolist()]
        assert sorted(judged) == sorted(split.test.targets(data).tolist())


def test_judged_users_are_grouped_alike_for_models_of_other_lengths_batches_and_workers() -> None:
    data = interactions()
    split, states = leave_one_out(data), []
    for length, size, world in ((1, 3, 1), (4, 5, 2)):
        config = SequenceStreamConfig(evaluation_batch_size=size)
        states.append(torch.zeros(()))
        for rank in range(world):
            found = RankingMetrics()
            stream = JudgedSequences(data, split.test, config, length=length, rank=rank, world_size=world)
            for batch in stream.epoch_batches():
                assert batch.row is not None
                found.update(1 + batch.row % 7, users=batch.row)
            states[-1] = states[-1] + found.state()
    torch.testing.assert_close(states[0], states[1])


def test_a_sample_of_examples_is_the_same_each_time() -> None:
    split = leave_one_out(interactions())
    first, second = sample_examples(split.valid, 9, 0), sample_examples(split.valid, 9, 0)
    assert (first.users == second.users).all()
    assert len(set(first.users.tolist())) == 9
    assert sample_examples(split.valid, None, 0) is split.valid


def test_too_few_examples_for_all_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few for a batch on each of 50 workers"):
        open_stream(False, size=50)


@pytest.mark.parametrize("name", ["batch_size", "evaluation_batch_size", "valid_examples"])
def test_sizes_of_0_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*must be at least 1"):
        SequenceStreamConfig(**{name: 0})
