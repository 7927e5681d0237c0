"""The rows of a stream read by Ray Data: tasks read and pack slices in the cluster, blocks arrive in order, epochs run on.

Executions serve all epochs of a stream, since starting one costs seconds. The executor neither shuffles nor counts:
``rayrec.data.log.stream_plan`` has decided the order, so Ray Data must only keep it (``preserve_order``). It does so by
holding what later tasks have read until the first one is through, and looks for tasks that have ended when each has
something to show or a tenth of a second is over: with two tasks side by side in one execution, processors stood idle for a
sixth of the time. So a stream is two executions where it may run two tasks, or very many, of every other slice each, taken
in turn.
"""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rayrec.data.log import LogError
from rayrec.data.log.packing import PackedRows, RowQueue
from rayrec.data.log.slice_reader import SliceReader
from rayrec.data.log.stream_plan import Slice
from rayrec.freed_memory import keep_freed_memory

# A read task asks for a quarter of a CPU, and a stream runs at most its worker's share of the CPUs at once. So the labeled and
# unlabeled streams of all workers together hold at most half of the CPUs: no stream can keep another from starting while
# their consumers wait for each other in an all-reduce.
READ_TASK_CPUS = 0.25
EXECUTIONS = 2
# Of tasks beside each other in an execution, what those behind the first read must find room until their turn. A lone one may
# be long, and beginning a task costs some 10 ms.
ROWS_PER_TASK, ROWS_PER_LONE_TASK = 262_144, 1_048_576
MOST_TASKS = 2_000
LIMIT = 0.25
# Ray Data starts no task whose blocks might not fit beside those that wait, and lets a task pile up two: with blocks as large as
# a task (its default is 128 MiB) a store of 500 MB has room for one task at a time.
BLOCKS_IN_LIMIT = 12
LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 4 << 20, 128 << 20
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.03  # seconds


class Paced(ExecutionCallback):
    """An execution that finds nothing new looks again after a pause, each twice as long as the one before, up to
    ``LONGEST_PAUSE``. By itself it does so without one while all of its tasks wait for room, that is, whenever training is
    slower than reading, and takes up to a core and Python's lock from training."""

    def __init__(self) -> None:
        self._seen = -1
        self._pause = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        seen = 0
        for operator in executor._topology or ():
            seen += operator.metrics.num_task_outputs_generated + operator.metrics.num_outputs_taken
        self._pause = 0.0 if seen != self._seen else min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._pause))
        self._seen = seen
        time.sleep(self._pause)


class SliceSource(Datasource):
    """A Ray Data source of packed rows: consecutive slices, of ``rows_per_task`` rows to a task, or more where there would be
    over ``MOST_TASKS``."""

    def __init__(self, reader: SliceReader, slices: Sequence[Slice], rows_per_task: int = ROWS_PER_TASK) -> None:
        super().__init__()
        rows = sum(piece.rows for piece in slices)
        self._row_bytes = reader.row_bytes
        self._rows = rows
        self._tasks = [
            self._task(reader, group) for group in _grouped(slices, max(rows_per_task, -(-rows // MOST_TASKS)))
        ]

    def get_name(self) -> str:
        return "RayrecSlices"

    def estimate_inmemory_data_size(self) -> int:
        return self._rows * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return self._tasks

    def _task(self, reader: SliceReader, slices: Sequence[Slice]) -> ReadTask:
        rows = sum(piece.rows for piece in slices)
        metadata = BlockMetadata(num_rows=rows, size_bytes=rows * self._row_bytes, input_files=None, exec_stats=None)
        return ReadTask(partial(_read_blocks, reader, slices), metadata)


def read_by_ray(reader: SliceReader, slices: Iterable[Slice], *, world_size: int) -> Generator[PackedRows]:
    """``reader.read(slices)`` by Ray Data, in order. Uses a ``world_size``-th of the cluster. Closing it ends the executions.

    Raises what the reader raises, in this process.
    """
    pieces = tuple(slices)
    tasks = tasks_at_once(world_size)
    store = LIMIT * ray.cluster_resources().get("object_store_memory", 0) / world_size
    block = max(LEAST_BLOCK_BYTES, min(MOST_BLOCK_BYTES, int(store / BLOCKS_IN_LIMIT)))
    rows = sum(piece.rows for piece in pieces)
    count = min(executions_beside_each_other(world_size), len(pieces), -(-rows // ROWS_PER_TASK))
    with ExitStack() as begun:
        executions = []
        for place in range(count):
            share = _Share((tasks + place) // count, store / count, block)
            blocks = begun.enter_context(closing(_execute(reader, pieces[place::count], share)))
            executions.append(RowQueue(blocks))
        for execution in executions:
            execution.await_first()
        for place, piece in enumerate(pieces):
            yield from executions[place % count].parts(piece.rows)


@dataclass(frozen=True)
class _Share:
    """What one execution may use: tasks at once, bytes of the object store. block_bytes: about the size of its blocks."""

    tasks: int
    store_bytes: float
    block_bytes: int


def _execute(reader: SliceReader, slices: Sequence[Slice], share: _Share) -> Generator[PackedRows]:
    source = SliceSource(reader, slices, ROWS_PER_LONE_TASK if share.tasks == 1 else ROWS_PER_TASK)
    tasks = source.get_read_tasks(1)
    dataset = ray.data.read_datasource(
        source,
        override_num_blocks=len(tasks),
        concurrency=min(len(tasks), share.tasks),
        num_cpus=READ_TASK_CPUS,
    )
    _configure(dataset.context, share)
    batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    try:
        for table in batches:
            for chunk in table.to_batches():  # each as it lies in the store
                yield PackedRows.from_arrow(pa.Table.from_batches([chunk]), reader.schema, reader.extras)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LogError):
            raise LogError(str(error.cause).splitlines()[0]) from None  # Ray Data adds lines about retries
        raise
    finally:
        batches.close()


def tasks_at_once(world_size: int) -> int:
    """Read tasks that one stream of one of ``world_size`` workers runs at the same time."""
    return max(1, int(ray.cluster_resources().get("CPU", 1) / world_size))


def executions_beside_each_other(world_size: int) -> int:
    """Executions of one stream of one of ``world_size`` workers: several where each runs one task, which goes on by itself, or
    where processors are many. Ray Data deals whole processors of each node to all executions, and one that gets none, as more
    streams have more executions, runs one task at a time."""
    if tasks_at_once(world_size) <= EXECUTIONS:
        return tasks_at_once(world_size)
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    labeled_and_unlabeled = 2 * EXECUTIONS * world_size
    return EXECUTIONS if min(cpus for cpus in nodes if cpus > 0) >= 2 * labeled_and_unlabeled else 1


def _configure(context: DataContext, share: _Share) -> None:
    context.target_max_block_size = share.block_bytes
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Paced]
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(
        cpu=share.tasks * READ_TASK_CPUS,
        object_store_memory=share.store_bytes,
    )


def _grouped(slices: Sequence[Slice], rows_per_task: int) -> Iterator[tuple[Slice, ...]]:
    group: list[Slice] = []
    rows = 0
    for piece in slices:
        if group and rows + piece.rows > rows_per_task:
            yield tuple(group)
            group, rows = [], 0
        group.append(piece)
        rows += piece.rows
    if group:
        yield tuple(group)


def _read_blocks(reader: SliceReader, slices: Sequence[Slice]) -> Iterator[Block]:
    """The work of a task. Its process, which Ray gives to later tasks of the job, decodes on one thread from here on and keeps
    what it frees, unless the user set an allocator of C or of Arrow."""
    pa.set_cpu_count(1)
    # A task's blocks are of the sizes of those before it: given back in between, each page of them is a fault, and Arrow's own
    # allocator gives back what is free for 10 ms.
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ and keep_freed_memory():
        pa.set_memory_pool(pa.system_memory_pool())
    for packed in reader.read(slices):
        yield packed.to_arrow()
