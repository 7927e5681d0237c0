"""Sequence data sets on disk: what is written is read again, what is broken is refused by name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.sequences import (
    Interactions,
    InteractionsError,
    ItemTable,
    SequenceData,
    read_sequences,
    write_sequences,
)


def small() -> SequenceData:
    return SequenceData(
        Interactions(
            np.array([0, 2, 2, 5]), np.array([1, 2, 3, 1, 2], np.int32), 3, np.array([5, 5, 1, 2, 3], np.int64)
        ),
        ItemTable.of(["a", "b", "c"], ["an apple", "", "a cherry"], [[1], [], [1, 2]]),
        pa.array(["u", "v", "w"]),
        "a test",
        {"kept": 3},
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    data = small()
    again = read_sequences(write_sequences(tmp_path / "set", data))
    assert again.interactions.offsets.tolist() == data.interactions.offsets.tolist()
    assert again.interactions.items.tolist() == data.interactions.items.tolist()
    assert again.interactions.timestamps is not None
    assert again.interactions.timestamps.tolist() == [5, 5, 1, 2, 3]
    assert again.items.texts.to_pylist() == ["an apple", "", "a cherry"]
    assert again.items.attributes.to_pylist() == [[1], [], [1, 2]]
    assert (again.users.to_pylist(), again.source, again.notes) == (["u", "v", "w"], "a test", {"kept": 3})
    assert again.items.has_text


def test_an_existing_data_set_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    write_sequences(tmp_path / "set", small())
    with pytest.raises(InteractionsError, match="exists already"):
        write_sequences(tmp_path / "set", small())
    write_sequences(tmp_path / "set", small(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("offsets", "items", "stamps", "message"),
    [
        ([0, 3], [1, 2], None, "offsets must run"),
        ([0, 2], [1, 9], None, "items must lie in 1..3"),
        ([0, 2], [0, 1], None, "items must lie in 1..3"),
        ([0, 2], [1, 2], [1], "1 timestamps for 2"),
        ([0, 1, 3], [1, 2, 3], [5, 4, 3], "user row 1 is not in time order"),
    ],
)
def test_contradicting_arrays_are_refused(
    offsets: list[int], items: list[int], stamps: list[int] | None, message: str
) -> None:
    with pytest.raises(InteractionsError, match=message):
        Interactions(
            np.array(offsets), np.array(items, np.int32), 3, None if stamps is None else np.array(stamps, np.int64)
        )


def test_time_order_is_asked_within_users_only() -> None:
    Interactions(np.array([0, 1, 1, 2]), np.array([1, 2], np.int32), 3, np.array([9, 1], np.int64))


def test_a_wrong_or_missing_column_names_the_file(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "set", small())
    pq.write_table(pa.table({"user": ["u"], "items": [[1.5]]}), folder / "users.parquet")
    with pytest.raises(InteractionsError, match=r"users\.parquet: column 'items' is list<.*double>"):
        read_sequences(folder)
    pq.write_table(pa.table({"user": ["u"]}), folder / "users.parquet")
    with pytest.raises(InteractionsError, match="column 'items' is missing"):
        read_sequences(folder)
    (folder / "users.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(InteractionsError, match="set"):
        read_sequences(folder)
    with pytest.raises(InteractionsError, match="no such file"):
        read_sequences(tmp_path)


def test_timestamps_are_whole_numbers_one_for_each_item(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "set", small())
    columns = {"user": ["u", "v"], "items": pa.array([[1, 2, 3], [1, 2]], pa.list_(pa.int32()))}
    stamps = pa.array([[1, 2], [3, 4, 5]], pa.list_(pa.int64()))
    pq.write_table(pa.table(columns | {"timestamps": stamps}), folder / "users.parquet")
    with pytest.raises(InteractionsError, match="set: user row 0 has another number of timestamps than of items"):
        read_sequences(folder)
    pq.write_table(pa.table(columns | {"timestamps": [["1", "2", "3"], ["4", "5"]]}), folder / "users.parquet")
    with pytest.raises(InteractionsError, match=r"users\.parquet: column 'timestamps' is list<.*string>"):
        read_sequences(folder)
