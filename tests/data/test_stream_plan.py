"""The plan of an epoch: every row once over all ranks, the same for ever, resumable by skipping."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.stream_plan import RowGroup, Slice, epoch_slices, rank_range, window_permutation

GROUP_SIZES = st.lists(st.integers(0, 30), max_size=8)
WORLD_SIZES = st.integers(1, 5)


def groups_of(sizes: list[int]) -> list[RowGroup]:
    """Row groups in files of two."""
    return [RowGroup(f"part-{i // 2}", i % 2, rows) for i, rows in enumerate(sizes)]


def rows_of(slices: list[Slice]) -> list[tuple[str, int, int]]:
    return [(s.group.path, s.group.index, row) for s in slices for row in range(s.start, s.stop)]


def all_rows(groups: list[RowGroup]) -> list[tuple[str, int, int]]:
    return rows_of([Slice(group, 0, group.rows) for group in groups])


@given(rows=st.integers(0, 1000), world_size=WORLD_SIZES)
def test_ranges_of_ranks_follow_each_other_and_cover_all_rows(rows: int, world_size: int) -> None:
    ranges = [rank_range(rows, rank, world_size, even=False) for rank in range(world_size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    lengths = [last - first for first, last in ranges]
    assert max(lengths) - min(lengths) <= 1


@given(rows=st.integers(0, 1000), world_size=WORLD_SIZES)
def test_even_ranges_are_equally_long_and_drop_less_than_a_row_per_rank(rows: int, world_size: int) -> None:
    ranges = [rank_range(rows, rank, world_size, even=True) for rank in range(world_size)]
    assert len({last - first for first, last in ranges}) == 1
    assert all(left[1] <= right[0] for left, right in pairwise(ranges))
    assert 0 <= rows - ranges[-1][1] < world_size


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_of_the_world_is_an_error(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank must lie in \[0, world_size = 2\)"):
        rank_range(10, rank, 2, even=True)


@given(
    sizes=GROUP_SIZES, world_size=WORLD_SIZES, shuffle=st.booleans(), seed=st.integers(0, 99), epoch=st.integers(0, 9)
)
def test_an_epoch_reads_every_row_exactly_once_over_all_ranks(
    sizes: list[int], world_size: int, shuffle: bool, seed: int, epoch: int
) -> None:
    groups = groups_of(sizes)
    read = []
    for rank in range(world_size):
        slices = list(
            epoch_slices(groups, shuffle=shuffle, seed=seed, epoch=epoch, rank=rank, world_size=world_size, even=False)
        )
        assert all(0 <= s.start < s.stop <= s.group.rows for s in slices)
        read += rows_of(slices)
    assert sorted(read) == sorted(all_rows(groups))
    if not shuffle:
        assert read == all_rows(groups)


@given(sizes=GROUP_SIZES, world_size=WORLD_SIZES, epoch=st.integers(0, 9))
def test_an_even_epoch_gives_all_ranks_as_many_rows_and_none_twice(
    sizes: list[int], world_size: int, epoch: int
) -> None:
    groups = groups_of(sizes)
    parts = [
        rows_of(list(epoch_slices(groups, shuffle=True, seed=3, epoch=epoch, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {sum(sizes) // world_size}
    read = [row for part in parts for row in part]
    assert len(set(read)) == len(read)


@given(sizes=GROUP_SIZES, world_size=WORLD_SIZES, shuffle=st.booleans(), data=st.data())
def test_skipping_rows_leaves_exactly_the_rest_of_the_epoch(
    sizes: list[int], world_size: int, shuffle: bool, data: st.DataObject
) -> None:
    groups = groups_of(sizes)
    rank = data.draw(st.integers(0, world_size - 1))

    def rows_after(skip: int) -> list[tuple[str, int, int]]:
        return rows_of(
            list(
                epoch_slices(groups, shuffle=shuffle, seed=5, epoch=2, rank=rank, world_size=world_size, skip_rows=skip)
            )
        )

    whole = rows_after(0)
    skip = data.draw(st.integers(0, len(whole) + 3))
    assert rows_after(skip) == whole[skip:]


def test_the_order_of_row_groups_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    groups = groups_of([4] * 12)

    def order(seed: int, epoch: int) -> list[tuple[str, int, int]]:
        return rows_of(list(epoch_slices(groups, shuffle=True, seed=seed, epoch=epoch)))

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_plan_of_a_seed_stays_as_it_is_for_ever() -> None:
    """Checkpoints of older runs depend on it: a changed generator must be a deliberate decision."""
    slices = epoch_slices(groups_of([5, 5, 5, 5]), shuffle=True, seed=1, epoch=0)
    assert [(s.group.path, s.group.index) for s in slices] == [
        ("part-1", 1),
        ("part-0", 0),
        ("part-1", 0),
        ("part-0", 1),
    ]
    assert window_permutation(1, 0, 0, 0, 6).tolist() == [5, 0, 1, 3, 4, 2]


@given(rows=st.integers(0, 200), seed=st.integers(0, 9), window=st.integers(0, 9))
def test_a_window_is_a_permutation_of_its_rows(rows: int, seed: int, window: int) -> None:
    order = window_permutation(seed, 0, 0, window, rows)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(rows))


def test_windows_of_other_seeds_epochs_ranks_and_places_are_permuted_otherwise() -> None:
    orders = {
        tuple(window_permutation(seed, epoch, rank, window, 50))
        for seed in (0, 1)
        for epoch in (0, 1)
        for rank in (0, 1)
        for window in (0, 1)
    }
    assert len(orders) == 16
