"""How events are numbered and ordered, against loops."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, _codes, _stable_order, sequences_of_events

names = st.lists(st.lists(st.sampled_from(["a", "b", "07", "7", "", None, "é"])), max_size=4)
numbers = st.integers(-(2**63), 2**63 - 1)


@given(names, st.booleans())
def test_names_get_numbers_by_first_appearance_whatever_the_chunks(chunks: list[list[str | None]], coded: bool) -> None:
    arrays = [pa.array(chunk, pa.string()) for chunk in chunks]
    kind = pa.dictionary(pa.int32(), pa.string()) if coded else pa.string()
    column = pa.chunked_array([one.dictionary_encode() for one in arrays] if coded else arrays, kind)
    found, known = _codes(column)
    flat = [name for chunk in chunks for name in chunk]
    expected = list(dict.fromkeys(name for name in flat if name))
    assert known.to_pylist() == expected
    assert found.tolist() == [expected.index(name) if name else -1 for name in flat]


def test_entries_of_a_dictionary_that_are_equal_or_unused_or_null_are_no_further_names() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([3, 1, None, 0, 2], pa.int32()), ["x", "", None, "x", "unused"])
    found, known = _codes(column)
    assert (known.to_pylist(), found.tolist()) == (["x"], [0, -1, -1, 0, -1])


@given(st.lists(st.tuples(numbers, st.integers(0, 70_000))))
def test_the_radix_order_is_that_of_a_stable_sort(rows: list[tuple[int, int]]) -> None:
    times, users = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    with np.errstate(over="ignore"):
        order = _stable_order(times - times.min(initial=2**63 - 1), users)
    assert order.tolist() == np.lexsort((times, users)).tolist()


def test_users_are_numbered_as_they_appear_and_their_events_lie_in_time_order() -> None:
    users, items = pa.array(["u", "v", "u", None, "v", "u"]), pa.array(["i", "j", "k", "i", "i", "i"])
    times = pa.array([5, -3, 2, 1, 2**40, None])
    data = sequences_of_events(users, items, times, EventFilter(1, True), ItemDescriptions({}, {}), "x")
    assert data.users.to_pylist() == ["u", "v"]
    found = [data.items.names[int(item) - 1].as_py() for item in data.interactions.items]
    assert (data.interactions.offsets.tolist(), found) == ([0, 2, 4], ["k", "i", "j", "i"])
    assert data.notes["events_with_nulls"] == 2
