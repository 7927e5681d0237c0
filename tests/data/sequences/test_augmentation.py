"""What cropping and shuffling do to training windows, against loops over all that may come out."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from rayrec.data.log.streams import StreamPosition
from rayrec.data.sequences import Interactions, leave_one_out
from rayrec.data.sequences.augmentation import AugmentationConfig, augmented
from rayrec.data.sequences.streams import SequenceStreamConfig, TrainingSequences


def windows(*rows: tuple[int, ...]) -> NDArray[np.int64]:
    """Left-padded with 0."""
    width = max(map(len, rows))
    return np.array([(0,) * (width - len(row)) + row for row in rows], np.int64)


def changed(row: tuple[int, ...], config: AugmentationConfig, draws: int = 3000) -> Counter[tuple[int, ...]]:
    """What comes out of a row that stands among others, padding left out, by how often."""
    matrix = windows(*[row] * draws, (9, 8, 7, 6, 5, 4, 3, 2, 1))
    found = augmented(matrix, config, np.random.default_rng(0))[:draws]
    real = found > 0
    assert (np.sort(real, axis=1) == real).all()  # padding stays at the left
    return Counter(tuple(i for i in kept if i) for kept in found.tolist())


@pytest.mark.parametrize(("share", "kept"), [(0.6, 3), (0.5, 2), (0.1, 2), (1.0, 5)])
def test_a_crop_is_each_contiguous_stretch_of_its_length_equally_often(share: float, kept: int) -> None:
    row = (1, 2, 3, 4, 5)
    found = changed(row, AugmentationConfig(crop=1.0, crop_share=share))
    stretches = [row[first : first + kept] for first in range(6 - kept)]
    assert set(found) == set(stretches)
    assert all(abs(count / 3000 - 1 / len(stretches)) < 0.05 for count in found.values())


@pytest.mark.parametrize(("share", "moved"), [(0.6, 3), (0.2, 1), (1.0, 5)])
def test_a_shuffle_permutes_one_stretch_and_leaves_the_rest_where_it_is(share: float, moved: int) -> None:
    row = (1, 2, 3, 4, 5)
    found = changed(row, AugmentationConfig(shuffle=1.0, shuffle_share=share))
    allowed = {
        row[:first] + middle + row[first + moved :]
        for first in range(6 - moved)
        for middle in permutations(row[first : first + moved])
    }
    assert set(found) == allowed
    if moved == 5:
        assert all(abs(count / 3000 - 1 / 120) < 0.01 for count in found.values())


def test_windows_of_two_items_keep_both_and_so_many_are_changed_as_told() -> None:
    assert set(changed((3, 4), AugmentationConfig(crop=1.0, crop_share=0.1))) == {(3, 4)}
    found = changed((1, 2, 3, 4), AugmentationConfig(crop=0.25, crop_share=0.5))
    assert abs(found[1, 2, 3, 4] / 3000 - 0.75) < 0.03
    both = changed((1, 2, 3, 4), AugmentationConfig(crop=1.0, crop_share=0.5, shuffle=1.0, shuffle_share=1.0))
    assert set(both) == {(1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3)}


def data() -> Interactions:
    """Each user's items count upwards, so that a next item is known by its number."""
    lengths = np.random.default_rng(0).integers(3, 12, 60)
    items = np.concatenate(
        [start + np.arange(n) for start, n in zip(np.cumsum(lengths) - lengths + 1, lengths, strict=True)]
    )
    return Interactions(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items.astype(np.int32), 2000)


def batches(
    augmentation: AugmentationConfig, start: StreamPosition | None = None, rank: int = 0, size: int = 1
) -> list[list[list[list[int]]]]:
    """Inputs and targets of each batch of the rest of an epoch."""
    config = SequenceStreamConfig(batch_size=8, augmentation=augmentation)
    stream = TrainingSequences(
        data(), leave_one_out(data()), config, length=5, windows=True, rank=rank, world_size=size, start=start
    )
    return [[batch.history.tolist(), batch.target.tolist()] for batch, _ in stream.epoch_batches()]


def test_targets_of_cropped_windows_are_the_items_that_came_next_and_training_alone_is_read() -> None:
    split = leave_one_out(data())
    judged = set(split.valid.targets(data()).tolist()) | set(split.test.targets(data()).tolist())
    seen = set()
    for inputs, targets in batches(AugmentationConfig(crop=1.0)):
        pairs = [(i, t) for row, goals in zip(inputs, targets, strict=True) for i, t in zip(row, goals, strict=True)]
        assert all(target == (item + 1 if item else 0) for item, target in pairs)
        seen |= {item for pair in pairs for item in pair}
    assert not seen & judged


def test_each_epoch_is_changed_anew_and_a_resumed_one_alike_on_whatever_workers() -> None:
    augmentation = AugmentationConfig(crop=0.5, shuffle=0.5, shuffle_share=0.8)
    whole = batches(augmentation)
    assert batches(augmentation) == whole != batches(augmentation, StreamPosition(1, 0))
    assert batches(augmentation, StreamPosition(0, 3)) == whole[3:]
    assert batches(augmentation, rank=1, size=2) == whole[1::2][: len(whole) // 2]


def test_no_batch_is_changed_by_the_random_numbers_that_order_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[int, ...]] = []
    default_rng = np.random.default_rng

    def remembered(seed: int | tuple[int, ...]) -> np.random.Generator:
        seeds.extend([seed] if isinstance(seed, tuple) else [])  # others are this file's
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", remembered)
    count = len(batches(AugmentationConfig(crop=0.5)))
    states = {tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds}
    assert len(states) == len(seeds) == 1 + count  # of the order, and of each batch


def test_without_augmentation_windows_are_what_they_were() -> None:
    targets = [t for _, goals in batches(AugmentationConfig()) for row in goals for t in row if t]
    split = leave_one_out(data())
    wanted = [
        int(item)
        for user in range(60)
        for item in data().items[data().offsets[user] + 1 : data().offsets[user] + split.train_lengths[user]]
    ]
    assert sorted(targets) == sorted(wanted)


@pytest.mark.parametrize("wrong", [{"crop": 1.5}, {"shuffle": -0.1}, {"crop_share": 0.0}, {"shuffle_share": 1.1}])
def test_wrong_settings_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"augmentation.{next(iter(wrong))} must lie in"):
        AugmentationConfig(**wrong)
