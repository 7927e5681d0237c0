"""Reading by Ray Data: slices become tasks, executions end when closed, and streams of several workers do not starve."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from rayrec.data.log import Log, LogError, cluster_reader, ray_reader
from rayrec.data.log.packing import PackedRows, RowQueue
from rayrec.data.log.ray_reader import ROWS_PER_TASK, SliceSource, read_by_ray
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, TaskLabel
from rayrec.data.log.slice_reader import SliceReader
from rayrec.data.log.stream_plan import RowGroup, Slice
from rayrec.data.log.streams import LogStream, Reading, StreamConfig

ROOT = Path(__file__).parents[2]
SMALL = StreamConfig(batch_size=512, window_rows=2048)


def slices_of(sizes: list[int]) -> list[Slice]:
    return [Slice(RowGroup("part-0", i, rows), 0, rows) for i, rows in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "tasks"),
    [
        ([], []),
        ([10] * 5, [50]),
        ([ROWS_PER_TASK // 2] * 5, [ROWS_PER_TASK, ROWS_PER_TASK, ROWS_PER_TASK // 2]),
        ([3 * ROWS_PER_TASK, 1], [3 * ROWS_PER_TASK, 1]),
    ],
)
def test_slices_are_grouped_into_tasks_of_bounded_size(small_log: Path, sizes: list[int], tasks: list[int]) -> None:
    source = SliceSource(SliceReader(Log.open(small_log).schema), slices_of(sizes))
    assert [task.metadata.num_rows for task in source.get_read_tasks(1)] == tasks


def test_a_huge_stream_has_a_bounded_number_of_tasks(small_log: Path) -> None:
    source = SliceSource(SliceReader(Log.open(small_log).schema), slices_of([65_536] * 50_000))
    assert 1_000 <= len(source.get_read_tasks(1)) <= 2_000


def test_the_size_of_a_block_is_known_before_it_is_read(small_log: Path) -> None:
    log = Log.open(small_log)
    reader = SliceReader(log.schema)
    files = log.files("train")
    (block,) = reader.read([Slice(RowGroup(str(files[0]), 0, 12_000), 0, 1_000)])
    assert block.to_arrow().nbytes == 1_000 * reader.row_bytes


def test_a_file_replaced_by_one_of_its_size_and_time_is_read_by_its_own_footer(tmp_path: Path) -> None:
    """What lies where is in the footer: of one row group that packs well and one that does not, in both orders."""
    schema = LogSchema("two groups", (DenseFeature("x", transform="none"),), (TaskLabel("click"),))
    file = tmp_path / "part-0.parquet"
    values = np.stack([np.zeros(1_000), np.random.default_rng(0).normal(size=1_000)]).astype(np.float32)
    written = []
    for order in (values, values[::-1]):
        rows = pa.table({"x": order.reshape(-1), "click": np.zeros(2_000, np.float32)})
        pq.write_table(rows, file, row_group_size=1_000, use_dictionary=False)
        os.utime(file, ns=(0, 0))
        written.append(file.stat())
        groups = [Slice(RowGroup(str(file), place, 1_000), 0, 1_000) for place in (0, 1)]
        found = [packed.dense[:, 0] for packed in SliceReader(schema).read(groups)]
        assert np.array_equal(found, order)
    assert written[0].st_size == written[1].st_size
    assert written[0].st_mtime_ns == written[1].st_mtime_ns


@pytest.mark.parametrize(("set_by_user", "taken"), [(None, True), ("mimalloc", False)])
def test_a_reading_task_keeps_freed_memory_unless_the_user_chose_an_allocator(
    small_log: Path, monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, taken: bool
) -> None:
    pools: list[str] = []
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if set_by_user:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", set_by_user)
    monkeypatch.setattr(ray_reader, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(pa, "set_cpu_count", lambda count: None)
    monkeypatch.setattr(pa, "set_memory_pool", lambda pool: pools.append(pool.backend_name))
    log = Log.open(small_log)
    source = SliceSource(SliceReader(log.schema), [Slice(RowGroup(str(log.files("train")[0]), 0, 12_000), 0, 1_000)])
    (task,) = source.get_read_tasks(1)
    assert sum(block.num_rows for block in task()) == 1_000
    assert pools == (["system"] if taken else [])


def open_executions() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")]


def wait_for_executions(wanted: int) -> None:
    deadline = time.monotonic() + 20
    while len(open_executions()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(open_executions()) == wanted


@pytest.mark.parametrize("head", [0, 8_000])
def test_closing_early_ends_the_execution(
    small_log: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    monkeypatch.setattr(cluster_reader, "HEAD_ROWS", head)
    monkeypatch.setattr(ray_reader, "ROWS_PER_TASK", 10_000)
    monkeypatch.setattr(ray_reader, "tasks_at_once", lambda world_size: 2)
    before = len(open_executions())
    with LogStream(Log.open(small_log), "train", SMALL, epochs=500, reading=Reading("ray")) as stream:
        stream.next_batch()
        wait_for_executions(before + 2)
    wait_for_executions(before)


@pytest.mark.parametrize(("rows_per_task", "executions"), [(ROWS_PER_TASK, 1), (7_000, 2)])
def test_all_epochs_are_read_by_the_same_executions(
    small_log: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, rows_per_task: int, executions: int
) -> None:
    import ray.data

    begin, begun = ray.data.read_datasource, []
    monkeypatch.setattr(ray.data, "read_datasource", lambda *of, **how: begun.append(of) or begin(*of, **how))
    monkeypatch.setattr(cluster_reader, "HEAD_ROWS", 0)
    monkeypatch.setattr(ray_reader, "ROWS_PER_TASK", rows_per_task)
    monkeypatch.setattr(ray_reader, "tasks_at_once", lambda world_size: 2)
    with LogStream(Log.open(small_log), "train", SMALL, epochs=3, reading=Reading("ray")) as stream:
        assert sum(len(list(stream.epoch_batches())) for _ in range(3)) == 3 * stream.steps_per_epoch
    assert len(begun) == executions


def numbered_rows(lacking: int = 13) -> SliceReader:
    """Reads rows that bear the index of their row group. Those of odd ones take longer; the one ``lacking`` cannot be read."""

    class NumberedRows(SliceReader):  # made here, so that its code travels to Ray's processes
        def read(self, slices: Iterable[Slice]) -> Iterator[PackedRows]:
            for piece in slices:
                time.sleep(0.05 * (piece.group.index % 2))
                if piece.group.index == lacking:
                    raise LogError(f"part-0: row group {lacking} is gone")
                yield PackedRows(
                    np.zeros((piece.rows, 0), np.float32), np.full((piece.rows, 1), piece.group.index, np.int32),
                    np.arange(piece.rows, dtype=np.float32)[:, None],
                )  # fmt: skip

    category = CategoricalFeature("c", encoding="hash", buckets=100)
    return NumberedRows(LogSchema("numbered", (category,), (TaskLabel("click"),)))


@pytest.mark.parametrize("executions", [1, 2, 3])
def test_rows_come_in_order_from_any_number_of_executions_and_what_one_raises_ends_all(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, executions: int
) -> None:
    monkeypatch.setattr(ray_reader, "ROWS_PER_TASK", 200)
    monkeypatch.setattr(ray_reader, "EXECUTIONS", executions)
    monkeypatch.setattr(ray_reader, "tasks_at_once", lambda world_size: executions)
    sizes = np.random.default_rng(0).integers(1, 200, 20).tolist()
    before = len(open_executions())
    blocks = read_by_ray(numbered_rows(), slices_of(sizes[:13]), world_size=1)
    found = PackedRows.concatenate(list(blocks))
    assert np.array_equal(found.categorical[:, 0], np.repeat(np.arange(13), sizes[:13]))
    assert np.array_equal(found.labels[:, 0], np.concatenate([np.arange(n) for n in sizes[:13]]))
    for lacking in (1, 13):
        with pytest.raises(LogError, match=rf"^part-0: row group {lacking} is gone$"):
            list(read_by_ray(numbered_rows(lacking), slices_of(sizes), world_size=1))
    wait_for_executions(before)


@pytest.mark.parametrize(
    ("nodes", "world_size", "executions"),
    [
        ([2], 1, 2),
        ([1], 1, 1),
        ([2], 2, 1),
        ([4], 2, 2),
        ([4], 1, 1),
        ([8], 1, 2),
        ([16], 4, 1),
        ([16] * 10, 10, 1),
        ([0, 64], 4, 2),
    ],
)
def test_there_are_as_many_executions_as_ray_data_has_processors_for(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], world_size: int, executions: int
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(nodes))})
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in nodes]
    )
    assert ray_reader.executions_beside_each_other(world_size) == executions


@pytest.mark.parametrize("sizes", [[], [900]])
def test_few_slices_are_read_whatever_their_rows(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(ray_reader, "ROWS_PER_TASK", 200)
    monkeypatch.setattr(ray_reader, "tasks_at_once", lambda world_size: 2)
    found = list(read_by_ray(numbered_rows(), slices_of(sizes), world_size=1))
    assert sum(len(block) for block in found) == sum(sizes)


def test_executions_whose_blocks_all_wait_for_the_consumer_do_not_ask_without_end(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data's own loop took hundreds of steps a second then."""
    steps: list[float] = []

    class CountedSteps(ray_reader.Paced):
        def on_execution_step(self, executor: StreamingExecutor) -> None:
            super().on_execution_step(executor)
            steps.append(time.monotonic())

    class WideReader(SliceReader):
        def read(self, slices: Iterable[Slice]) -> Iterator[PackedRows]:
            for piece in slices:
                ids = np.zeros((piece.rows, 50), np.int32)
                yield PackedRows(np.zeros((piece.rows, 0), np.float32), ids, np.ones((piece.rows, 1), np.float32))

    monkeypatch.setattr(ray_reader, "Paced", CountedSteps)
    monkeypatch.setattr(ray_reader, "tasks_at_once", lambda world_size: 2)
    names = tuple(CategoricalFeature(f"c{i}", encoding="hash", buckets=100) for i in range(50))
    reader = WideReader(LogSchema("wide", names, (TaskLabel("click"),)))
    blocks = read_by_ray(reader, slices_of([65_536] * 64), world_size=1)  # 850 MB, in a store of 300 MB
    next(blocks)
    time.sleep(1)  # until all room is taken
    begun = time.monotonic()
    time.sleep(2)
    counted = [step for step in steps if step >= begun]
    blocks.close()
    assert counted
    assert len(counted) <= ray_reader.EXECUTIONS * (1 + (time.monotonic() - begun) / ray_reader.LONGEST_PAUSE)


def test_a_queue_gives_as_many_rows_as_asked_for_whatever_blocks_they_come_in() -> None:
    sizes = [5, 1, 0, 30, 2, 2]
    rows = PackedRows(
        np.zeros((40, 0), np.float32), np.arange(40, dtype=np.int32)[:, None], np.zeros((40, 1), np.float32)
    )
    ends = np.cumsum(sizes)
    queue = RowQueue(rows[end - size : end] for end, size in zip(ends, sizes, strict=True))
    queue.await_first()
    taken = [queue.take(asked).categorical[:, 0] for asked in (3, 3, 20, 14)]
    assert [len(part) for part in taken] == [3, 3, 20, 14]
    assert np.array_equal(np.concatenate(taken), np.arange(40))
    queue.await_first()  # none will come


def test_a_stream_of_few_rows_starts_no_execution(small_log: Path) -> None:
    with LogStream(Log.open(small_log), "train", SMALL, epochs=3, reading=Reading("ray")) as stream:
        assert sum(len(list(stream.epoch_batches())) for _ in range(3)) == 3 * stream.steps_per_epoch
    assert not open_executions()


@pytest.mark.slow
def test_tasks_of_blocks_as_large_as_the_store_allows_run_beside_each_other(
    small_log: Path, ray_session: None, tmp_path: Path
) -> None:
    """Eight tasks of 42 MB, and 50 MB of the store: with Ray Data's own blocks, a task each, they run one after another."""

    class SlowReader(SliceReader):
        def read(self, slices: Iterable[Slice]) -> Iterator[PackedRows]:
            begun = time.time()
            for piece in slices:
                time.sleep(0.3)
                yield PackedRows(
                    np.zeros((piece.rows, 0), np.float32), np.full((piece.rows, 40), piece.group.index, np.int32),
                    np.ones((piece.rows, 1), np.float32),
                )  # fmt: skip
            (tmp_path / str(piece.group.index)).write_text(json.dumps([begun, time.time()]))

        @property
        def row_bytes(self) -> int:
            return 164

    names = [CategoricalFeature(f"c{i}", encoding="hash", buckets=100) for i in range(40)]
    reader = SlowReader(LogSchema("wide", tuple(names), (TaskLabel("click"),)))
    found = [int(rows.categorical[0, 0]) for rows in read_by_ray(reader, slices_of([65_536] * 32), world_size=1)]
    assert found == sorted(found)
    assert set(found) == set(range(32))
    spans = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    together = max(sum(begun <= start < ended for begun, ended in spans) for start, _ in spans)
    assert len(spans) == 8
    assert together >= 2


class Execution:
    """In place of Ray Data's: its first block comes when ``go_on`` is set."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, reader: SliceReader, slices: Iterable[Slice], *, world_size: int) -> Iterator[PackedRows]:
        self.begun.set()
        try:
            assert self.go_on.wait(20)
            yield from reader.read(slices)
        finally:
            self.ended.set()


def stream_of(log: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LogStream, Execution]:
    from rayrec.data.log import ray_reader

    execution = Execution()
    monkeypatch.setattr(ray_reader, "read_by_ray", execution)
    monkeypatch.setattr(cluster_reader, "_refuse_without_ray", lambda: None)
    monkeypatch.setattr(cluster_reader, "HEAD_ROWS", 12_000)  # one row group
    return LogStream(Log.open(log), "train", SMALL, epochs=9, reading=Reading("ray")), execution


def test_closing_does_not_wait_for_an_execution_that_is_about_to_begin_which_ends_when_it_has(
    small_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, execution = stream_of(small_log, monkeypatch)
    with stream:
        stream.next_batch()
        assert execution.begun.wait(20)
    assert not execution.ended.is_set()
    execution.go_on.set()
    assert execution.ended.wait(20)


def test_the_first_error_does_not_wait_for_an_execution_that_is_about_to_begin(
    small_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, execution = stream_of(small_log, monkeypatch)

    def read_in_background(*given: object) -> Iterator[PackedRows]:
        assert execution.begun.wait(20)
        raise LogError("part-0: is gone")
        yield

    monkeypatch.setattr(cluster_reader, "read_in_background", read_in_background)
    with stream, pytest.raises(LogError, match="part-0: is gone"):
        stream.next_batch()
    assert not execution.ended.is_set()
    execution.go_on.set()
    assert execution.ended.wait(20)


def test_a_stream_that_was_closed_first_begins_no_execution(small_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayrec.data.log import ray_reader

    monkeypatch.setattr(ray_reader, "read_by_ray", lambda *of, **how: pytest.fail("begun"))
    closed: Future[Any] = Future()
    assert closed.cancel()
    cluster_reader._begin(SliceReader(Log.open(small_log).schema), (), 1, closed)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    ended: Future[Any] = Future()
    cluster_reader._begin(SliceReader(Log.open(small_log).schema), (), 1, ended)
    assert isinstance(ended.exception(), LogError)


def test_rows_that_ray_is_to_read_are_refused_where_it_does_not_run(
    small_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(cluster_reader, "HEAD_ROWS", 8_000)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        LogStream(Log.open(small_log), "train", SMALL, epochs=9, reading=Reading("ray")) as stream,
        pytest.raises(LogError, match=r"not joined: call rayrec\.runs\.cluster\.connect\(\) first"),
    ):
        stream.next_batch()


TWO_WORKERS = """
    import json, sys
    from pathlib import Path
    import numpy as np, pyarrow as pa, ray
    from rayrec.data.log import Log, LogWriter, cluster_reader
    from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, TaskLabel
    from rayrec.data.log.streams import Reading, StreamConfig, StreamPosition, ZippedStreams

    cluster_reader.HEAD_ROWS = 0
    path, rows = Path(sys.argv[1]), 300_000
    names = [f"c{i}" for i in range(39)]
    schema = LogSchema(
        "wide", tuple(CategoricalFeature(name, encoding="hash", buckets=100) for name in names), (TaskLabel("click"),)
    )
    column = pa.array(np.random.default_rng(0).integers(1, 101, rows), pa.int32())
    with LogWriter(path, schema) as writer:
        writer.write("train", pa.table({name: column for name in names} | {"click": pa.array(np.ones(rows, np.float32))}))
        writer.finish({})

    class Worker:
        def __init__(self, rank):
            log = Log.open(path)
            config = StreamConfig(batch_size=4096)
            place = {"rank": rank, "world_size": 2, "epochs": 2}
            self.streams = ZippedStreams.open(log, log, 2.0, config, reading=Reading("ray"), **place)
            self.pairs = None

        def step(self):
            if self.streams.position == StreamPosition(2, 0):
                self.streams.close()
                return 0
            if self.streams.position.step == 0:
                self.pairs = self.streams.epoch_batches()
            labeled, unlabeled = next(self.pairs)
            return len(labeled) + len(unlabeled)

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    workers = [ray.remote(num_cpus=0.5)(Worker).remote(rank) for rank in range(2)]
    read = [0, 0]
    while True:
        rows = ray.get([worker.step.remote() for worker in workers])  # ranks step together, as with an all-reduce
        if rows == [0, 0]:
            break
        read = [a + b for a, b in zip(read, rows)]
    print(json.dumps(read))
"""


@pytest.mark.slow
def test_two_workers_with_two_streams_each_do_not_deadlock_on_two_cpus(tmp_path: Path) -> None:
    """Four streams of 47 MB an epoch in an object store of 200 MB; an own cluster, since the session's has more CPUs."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_WORKERS), str(tmp_path / "log")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    steps = 150_000 // 4096
    assert json.loads(run.stdout.splitlines()[-1]) == [2 * steps * 3 * 4096] * 2
