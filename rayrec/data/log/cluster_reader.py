"""The rows of a stream by Ray Data, of which one execution takes seconds to begin: meanwhile this process reads the first ones.

A stream of no more rows than one task would read is read here altogether, and starts nothing.
"""

import sys
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace

from rayrec.data.log import LogError
from rayrec.data.log.packing import PackedRows
from rayrec.data.log.slice_reader import SliceReader, read_in_background
from rayrec.data.log.stream_plan import Slice

HEAD_ROWS = 262_144

_Begun = tuple[PackedRows | None, Generator[PackedRows]]  # the first block, and what brings the others


def read_by_cluster(
    reader: SliceReader, slices: Iterable[Slice], *, world_size: int, ahead: int
) -> Generator[PackedRows]:
    """``reader.read(slices)``, in order: the first ``HEAD_ROWS`` by a thread that stays at most ``ahead`` blocks ahead, the rest
    by Ray Data with a ``world_size``-th of the cluster. Closing it ends both; an execution that is about to begin is not waited
    for, and ended when it has begun.

    Raises what the reader raises, and LogError where Ray is needed and does not run.
    """
    head, rest = _cut(tuple(slices))
    if rest:
        _refuse_without_ray()
    here = read_in_background(replace(reader, threads=True), head, ahead)
    if not rest:
        yield from here
        return
    beginning: Future[_Begun] = Future()
    threading.Thread(
        target=_begin, args=(reader, rest, world_size, beginning), name="rayrec-ray-data", daemon=True
    ).start()
    try:
        yield from here
        first, others = beginning.result()
        if first is not None:
            yield first
        yield from others
    finally:
        here.close()
        if not beginning.cancel() and beginning.exception() is None:
            beginning.result()[1].close()


def _begin(reader: SliceReader, slices: tuple[Slice, ...], world_size: int, beginning: "Future[_Begun]") -> None:
    try:
        from rayrec.data.log.ray_reader import read_by_ray  # seconds of imports

        if beginning.cancelled():
            return
        _refuse_without_ray()  # it may have ended meanwhile
        blocks = read_by_ray(reader, slices, world_size=world_size)
        first = next(blocks, None)
    except BaseException as error:
        with suppress(InvalidStateError):  # nobody waits any more
            beginning.set_exception(error)
        return
    try:
        beginning.set_result((first, blocks))
    except InvalidStateError:
        blocks.close()


def _refuse_without_ray() -> None:
    """Ray Data would start a Ray of its own choice, in a thread with which its processes end."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        raise LogError(
            "rows are to be read by Ray, which this process has not joined: call rayrec.runs.cluster.connect() first, or read "
            'with Reading("in_process")'
        )


def _cut(slices: tuple[Slice, ...]) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
    """The slices of the first ``HEAD_ROWS`` rows, and those behind them."""
    rows = 0
    for place, piece in enumerate(slices):
        rows += piece.rows
        if rows > HEAD_ROWS:
            return slices[:place], slices[place:]
    return slices, ()
