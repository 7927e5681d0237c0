"""Streams: every row once, the same order from both readers, resuming bit for bit, clear errors, nothing left behind."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrec.batch import Batch
from rayrec.data.log import Log, LogError, LogWriter, cluster_reader
from rayrec.data.log import folder as log_module
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel
from rayrec.data.log.streams import (
    LogStream,
    Reading,
    StreamConfig,
    StreamPosition,
    ZippedStreams,
    unlabeled_batch_size,
    unlabeled_beside,
)
from rayrec.typed_json import ConfigError

SCHEMA = LogSchema(
    name="numbered",
    features=(
        DenseFeature("x", transform="none"),
        CategoricalFeature("id", encoding="hash", buckets=1000),
        SequenceFeature("history", max_length=3, encoding="hash", buckets=9),
    ),
    tasks=(TaskLabel("click"),),
    weight="weight",
    extras=("row",),
)
ROWS = 1_050
SMALL = StreamConfig(batch_size=64, window_rows=192)  # 16 full batches, windows of 3, a rest of 26
BY_RAY = Reading("ray")


@pytest.fixture(autouse=True)
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data begins in the middle of the first epoch."""
    monkeypatch.setattr(cluster_reader, "HEAD_ROWS", 250)


def write_numbered_log(folder: Path, rows: int) -> Path:
    """A log whose extra ``row`` numbers the rows in file order: row groups of 100, files of 400."""
    generator = np.random.default_rng(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "ROW_GROUP_ROWS", 100)
        with LogWriter(folder, SCHEMA, extra_types={"row": pa.int64()}, rows_per_file=400) as writer:
            columns = {
                "x": pa.array(generator.normal(size=rows), pa.float32()),
                "id": pa.array(generator.integers(1, 1001, rows), pa.int32()),
                "history": pa.array([list(range(n)) for n in generator.integers(0, 6, rows)], pa.list_(pa.int32())),
                "click": pa.array(generator.integers(0, 2, rows), pa.float32()),
                "weight": pa.array(generator.random(rows), pa.float32()),
                "row": pa.array(np.arange(rows)),
            }
            writer.write("train", pa.table(columns))
            writer.finish({})
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log.open(write_numbered_log(tmp_path_factory.mktemp("logs") / "labeled", ROWS))


@pytest.fixture(scope="module")
def other_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The unlabeled log: 730 rows."""
    return Log.open(write_numbered_log(tmp_path_factory.mktemp("logs") / "unlabeled", 730))


@pytest.fixture
def damaged(log: Log, tmp_path: Path) -> Log:
    """A copy of the log that a test may damage."""
    shutil.copytree(log.path, tmp_path / "damaged")
    return Log.open(tmp_path / "damaged")


@pytest.fixture(params=["in_process", "ray"])
def reading(request: pytest.FixtureRequest) -> Reading:
    """Each reader."""
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return Reading(request.param, read_ahead=1)


def read(log: Log, config: StreamConfig, **place) -> list[Batch]:
    """All batches that are left of all epochs."""
    with LogStream(log, "train", config, extras=("row",), **place) as stream:
        batches = []
        while stream.position < StreamPosition(stream.epochs, 0):
            batches += list(stream.epoch_batches())
        return batches


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.extras["row"]]


def assert_same(left: list, right: list) -> None:
    """Bit-identical batches, or pairs of them."""
    assert len(left) == len(right)
    for mine, other in zip(left, right, strict=True):
        if isinstance(mine, tuple):
            assert_same(list(mine), list(other))
        elif mine is None:
            assert other is None
        else:
            torch.testing.assert_close(vars(mine), vars(other), rtol=0, atol=0, equal_nan=True)


# ---- rows and their order


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_evaluation_epoch_reads_every_row_exactly_once(log: Log, world_size: int, shuffle: bool) -> None:
    config = replace(SMALL, shuffle=shuffle, drop_last=False)
    batches = [batch for rank in range(world_size) for batch in read(log, config, rank=rank, world_size=world_size)]
    assert sorted(rows_of(batches)) == list(range(ROWS))
    if not shuffle:
        assert rows_of(batches) == list(range(ROWS))
        x = np.concatenate([pq.read_table(file)["x"].to_numpy() for file in log.files("train")])
        np.testing.assert_array_equal(torch.cat([batch.dense[:, 0] for batch in batches]).numpy(), x)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_training_epoch_gives_every_rank_as_many_full_batches_and_no_row_twice(log: Log, world_size: int) -> None:
    epochs = [read(log, SMALL, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = ROWS // world_size // SMALL.batch_size
    assert [len(batches) for batches in epochs] == [steps] * world_size
    assert {len(batch) for batches in epochs for batch in batches} == {SMALL.batch_size}
    rows = [row for batches in epochs for row in rows_of(batches)]
    assert len(set(rows)) == len(rows)


def test_shuffling_differs_by_epoch_and_seed_and_mixes_within_windows(log: Log) -> None:
    first, second = np.split(np.array(rows_of(read(log, SMALL, epochs=2))), 2)
    other = rows_of(read(log, replace(SMALL, seed=1)))
    assert first.tolist() != second.tolist()
    assert first.tolist() != other
    window = first[: 3 * SMALL.batch_size]
    assert len(set(window // 100)) <= 4  # rows of a few neighbouring row groups ...
    assert np.abs(np.diff(window)).mean() > 20  # ... that do not follow each other


def test_the_last_batch_of_an_evaluation_is_short(log: Log) -> None:
    sizes = [len(batch) for batch in read(log, replace(SMALL, drop_last=False))]
    assert sizes == [64] * 16 + [26]


def test_a_batch_holds_the_columns_of_its_rows(log: Log) -> None:
    table = pa.concat_tables([pq.read_table(file) for file in log.files("train")])
    batch = read(log, SMALL)[3]
    rows = table.take(batch.extras["row"].numpy())
    np.testing.assert_array_equal(batch.categorical[:, 0], rows["id"])
    np.testing.assert_array_equal(batch.labels[:, 0], rows["click"])
    assert batch.weights is not None
    np.testing.assert_array_equal(batch.weights, rows["weight"])
    for ids, history in zip(batch.sequences[0].tolist(), rows["history"].to_pylist(), strict=True):
        assert ids == history[-3:] + [0] * (3 - len(history[-3:]))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ray_and_the_process_itself_read_the_same_batches(
    log: Log, ray_session: None, world_size: int, drop_last: bool
) -> None:
    for rank in range(world_size):
        config = replace(SMALL, drop_last=drop_last)
        place = {"rank": rank, "world_size": world_size, "epochs": 2}
        assert_same(read(log, config, reading=BY_RAY, **place), read(log, config, **place))


# ---- resuming


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_at_any_step_gives_the_very_same_rest(log: Log, shuffle: bool, drop_last: bool, rank: int) -> None:
    config = replace(SMALL, shuffle=shuffle, drop_last=drop_last)
    whole = LogStream(log, "train", config, rank=rank, world_size=2, extras=("row",), epochs=2)
    with whole:
        batches, positions = [], []
        for _ in range(2 * whole.steps_per_epoch):
            positions.append(whole.position)
            batches.append(whole.next_batch())
    assert whole.position == StreamPosition(2, 0)
    for i, position in enumerate(positions):
        assert position == StreamPosition(*divmod(i, whole.steps_per_epoch))
        assert_same(read(log, config, rank=rank, world_size=2, start=position, epochs=2), batches[i:])


@pytest.mark.parametrize("start", [StreamPosition(0, 1), StreamPosition(1, 0), StreamPosition(1, 7)])
def test_a_ray_stream_resumes_in_the_middle_of_an_epoch(log: Log, ray_session: None, start: StreamPosition) -> None:
    rest = read(log, SMALL, epochs=2)[16 * start.epoch + start.step :]
    assert_same(read(log, SMALL, start=start, epochs=2, reading=BY_RAY), rest)


def test_the_end_of_an_epoch_is_the_start_of_the_next(log: Log) -> None:
    assert_same(read(log, SMALL, start=StreamPosition(0, 16), epochs=2), read(log, SMALL, epochs=2)[16:])


def test_epochs_follow_each_other_from_wherever_a_stream_stands(log: Log) -> None:
    with LogStream(log, "train", SMALL, epochs=3, start=StreamPosition(0, 14)) as stream:
        assert [len(list(stream.epoch_batches())) for _ in range(3)] == [2, 16, 16]
        with pytest.raises(ValueError, match="all 3 epochs of this stream have been read"):
            stream.next_batch()


@pytest.mark.parametrize("start", [(0, 17), (2, 1), (3, 0), (-1, 0), (0, -1)])
def test_a_start_outside_of_the_stream_is_an_error(log: Log, start: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="lies outside of 2 epochs of 16 steps"):
        LogStream(log, "train", SMALL, start=StreamPosition(*start), epochs=2)


def test_a_closed_stream_goes_on_where_it_stood(log: Log, reading: Reading) -> None:
    with LogStream(log, "train", SMALL, extras=("row",), reading=reading) as stream:
        batches = [stream.next_batch() for _ in range(5)]
        stream.close()
        batches += list(stream.epoch_batches())
    assert_same(batches, read(log, SMALL))


# ---- labeled and unlabeled side by side


def read_zipped(
    log: Log, other: Log | None, ratio: float, config: StreamConfig, **place
) -> list[tuple[Batch, Batch | None]]:
    extras = () if other is None else ("row",)
    with ZippedStreams.open(log, other, ratio, config, extras=("row",), unlabeled_extras=extras, **place) as streams:
        pairs = []
        while streams.position < StreamPosition(streams.labeled.epochs, 0):
            pairs += list(streams.epoch_batches())
        return pairs


@pytest.mark.parametrize(("ratio", "epochs", "repeats"), [(0.5, 1, False), (1.0, 3, True), (3.0, 1, True)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_zipped_batches_have_the_ratio_and_the_unlabeled_log_is_cut_or_repeated(
    log: Log, other_log: Log, ratio: float, epochs: int, repeats: bool, world_size: int
) -> None:
    size = round(64 * ratio)
    steps = 730 // world_size // size  # of an unlabeled epoch
    by_rank = []
    for rank in range(world_size):
        pairs = read_zipped(log, other_log, ratio, SMALL, rank=rank, world_size=world_size, epochs=epochs)
        assert_same([pair[0] for pair in pairs], read(log, SMALL, rank=rank, world_size=world_size, epochs=epochs))
        unlabeled = [pair[1] for pair in pairs if pair[1] is not None]
        assert [len(batch) for batch in unlabeled] == [size] * len(pairs)
        assert (len(unlabeled) > steps) == repeats
        by_rank.append(unlabeled)
    for first in range(0, len(by_rank[0]), steps):  # no unlabeled row twice before all were seen
        rows = [row for unlabeled in by_rank for row in rows_of(unlabeled[first : first + steps])]
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.5])
def test_zipped_streams_resume_at_any_step_with_the_very_same_rest(log: Log, other_log: Log, ratio: float) -> None:
    other = other_log if ratio else None
    pairs = read_zipped(log, other, ratio, SMALL, rank=1, world_size=2, epochs=2)
    for i in range(len(pairs)):
        start = StreamPosition(*divmod(i, 8))
        assert_same(read_zipped(log, other, ratio, SMALL, rank=1, world_size=2, epochs=2, start=start), pairs[i:])


@pytest.mark.parametrize("ratio", [0.5, 2.5])
def test_zipped_streams_are_the_same_by_ray(log: Log, other_log: Log, ray_session: None, ratio: float) -> None:
    pairs = read_zipped(log, other_log, ratio, SMALL, epochs=2)
    assert_same(read_zipped(log, other_log, ratio, SMALL, epochs=2, reading=BY_RAY), pairs)
    rest = read_zipped(log, other_log, ratio, SMALL, epochs=2, start=StreamPosition(1, 5), reading=BY_RAY)
    assert_same(rest, pairs[16 + 5 :])


def test_without_a_ratio_there_is_no_unlabeled_batch(log: Log, other_log: Log) -> None:
    assert {unlabeled for _, unlabeled in read_zipped(log, None, 0.0, SMALL)} == {None}
    assert unlabeled_beside(LogStream(log, "train", SMALL), other_log, ratio=0) is None


def test_streams_that_do_not_belong_together_are_refused(log: Log, other_log: Log) -> None:
    labeled = LogStream(log, "train", SMALL)
    with pytest.raises(ValueError, match="a ratio of 2 goes with an unlabeled stream"):
        ZippedStreams(labeled, None, 2)
    with pytest.raises(ValueError, match="a ratio of 0 goes with no unlabeled stream"):
        ZippedStreams(labeled, LogStream(other_log, "train", SMALL), 0)
    with pytest.raises(ValueError, match="unlabeled batch size must be 128, given 64"):
        ZippedStreams(labeled, LogStream(other_log, "train", SMALL), 2)
    with pytest.raises(ValueError, match="not the same step"):
        ZippedStreams(labeled, LogStream(other_log, "train", SMALL, start=StreamPosition(0, 1)), 1)


@pytest.mark.parametrize("ratio", [-1.0, 0.001])
def test_a_ratio_that_gives_no_rows_is_an_error(ratio: float) -> None:
    with pytest.raises(ConfigError, match="gives no rows beside batches of 64"):
        unlabeled_batch_size(64, ratio)


# ---- errors


@pytest.mark.parametrize("field", ["batch_size", "window_rows", "seed"])
def test_a_senseless_configuration_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"stream {field} must be at least"):
        StreamConfig(**{field: -1})
    with pytest.raises(ValueError, match="read_ahead must be at least 1, not 0"):
        Reading(read_ahead=0)


def test_an_empty_split_is_named_with_those_that_are_there(log: Log) -> None:
    with pytest.raises(LogError, match=r"no rows in split 'valid' \(splits there: train\)"):
        LogStream(log, "valid", SMALL)


def test_a_split_too_small_for_a_batch_is_an_error(log: Log) -> None:
    with pytest.raises(LogError, match="'train' has 1050 rows, too few for a batch of 600 rows on each of 2 workers"):
        LogStream(log, "train", replace(SMALL, batch_size=600), world_size=2)
    with pytest.raises(LogError, match="too few for a row on each of 2000 workers"):
        LogStream(log, "train", replace(SMALL, drop_last=False), world_size=2000)


def test_an_unknown_extra_is_named_at_once(log: Log) -> None:
    with pytest.raises(LogError, match="'rows' cannot be an extra of its batches"):
        LogStream(log, "train", SMALL, extras=("rows",))


def shorten(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, 150), file, row_group_size=100)


def drop_row_group(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, 100), file, row_group_size=100)


def drop_column(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns(["id"]), file, row_group_size=100)


def retype_column(file: Path) -> None:
    rows = pq.read_table(file)
    click = rows.column_names.index("click")
    pq.write_table(rows.set_column(click, "click", pa.array(["yes"] * len(rows))), file, row_group_size=100)


def lose_a_weight(file: Path) -> None:
    rows = pq.read_table(file)
    weights = pa.array([None] * len(rows), pa.float32())
    pq.write_table(rows.set_column(rows.column_names.index("weight"), "weight", weights), file, row_group_size=100)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_pages(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "changed while it was being read: row group 1 had 100 rows, now 50"),
        (drop_row_group, "changed while it was being read: row group 1 had 100 rows, now it is gone"),
        (drop_column, "column 'id' is absent; the schema expects int32"),
        (retype_column, "column 'click' is string, expected float"),
        (lose_a_weight, "log 'numbered': weight column 'weight' has missing values"),
        (truncate, r"row group 0 cannot be read \(file truncated, damaged or removed\)"),
        (damage_pages, r"row group 0 cannot be read \(file truncated, damaged or removed\)"),
        (Path.unlink, r"row group 0 cannot be read \(file truncated, damaged or removed\)"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_named(damaged: Log, reading: Reading, change, message: str) -> None:
    file = damaged.files("train")[1].resolve()
    stream = LogStream(damaged, "train", replace(SMALL, shuffle=False), reading=reading)
    change(file)
    with stream, pytest.raises(LogError, match=f"^{file}: {message}"):
        list(stream.epoch_batches())


def test_a_stream_that_failed_can_be_asked_again_and_goes_on_when_the_file_is_back(damaged: Log) -> None:
    file = damaged.files("train")[1]
    content = file.read_bytes()
    with LogStream(damaged, "train", replace(SMALL, shuffle=False), extras=("row",)) as stream:
        truncate(file)
        batches = [stream.next_batch() for _ in range(6)]  # the 384 rows before the first of the second file
        for _ in range(2):
            with pytest.raises(LogError, match=str(file)):
                stream.next_batch()
        file.write_bytes(content)
        batches += list(stream.epoch_batches())
    assert rows_of(batches) == list(range(16 * 64))


# ---- nothing is left behind


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "rayrec-reader"]


@pytest.fixture
def no_reader_threads() -> Iterator[None]:
    assert reader_threads() == []
    yield
    assert reader_threads() == []


@pytest.mark.usefixtures("no_reader_threads")
def test_closing_early_ends_the_threads_of_the_reader(log: Log, other_log: Log) -> None:
    with ZippedStreams.open(log, other_log, 2.0, SMALL, epochs=50) as streams:
        next(streams.epoch_batches())
        assert len(reader_threads()) == 2


@pytest.mark.usefixtures("no_reader_threads")
def test_an_error_in_the_training_step_ends_the_threads_of_the_reader(log: Log) -> None:
    def train() -> None:
        with LogStream(log, "train", SMALL, epochs=50) as stream:
            for _ in stream.epoch_batches():
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train()


@pytest.mark.usefixtures("no_reader_threads")
def test_opening_a_stream_starts_nothing(log: Log) -> None:
    LogStream(log, "train", SMALL)
