"""The rows of a stream by Ray Data, of which one execution takes seconds to begin: meanwhile this process reads the first ones.

A stream of no more rows than one task would read is read here altogether, and starts nothing.
"""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rayrec.data.log.packing import PackedRows
from rayrec.data.log.slice_reader import SliceReader, read_in_background
from rayrec.data.log.stream_plan import Slice

HEAD_ROWS = 262_144


def read_by_cluster(
    reader: SliceReader, slices: Iterable[Slice], *, world_size: int, ahead: int
) -> Generator[PackedRows]:
    """``reader.read(slices)``, in order: the first ``HEAD_ROWS`` by a thread that stays at most ``ahead`` blocks ahead, the rest
    by Ray Data with a ``world_size``-th of the cluster. Closing it ends both. Raises what the reader raises."""
    head, rest = _cut(tuple(slices))
    here = read_in_background(replace(reader, threads=True), head, ahead)
    if not rest:
        yield from here
        return
    with ThreadPoolExecutor(1, thread_name_prefix="rayrec-ray-data") as beside:
        beginning = beside.submit(_begin, reader, rest, world_size)
        try:
            yield from here
            first, others = beginning.result()
            if first is not None:
                yield first
            yield from others
        finally:
            if beginning.exception() is None:  # waits for an execution that is about to begin
                beginning.result()[1].close()


def _begin(
    reader: SliceReader, slices: tuple[Slice, ...], world_size: int
) -> tuple[PackedRows | None, Generator[PackedRows]]:
    """The first block, and what brings the others."""
    from rayrec.data.log.ray_reader import read_by_ray  # seconds of imports

    blocks = read_by_ray(reader, slices, world_size=world_size)
    return next(blocks, None), blocks


def _cut(slices: tuple[Slice, ...]) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
    """The slices of the first ``HEAD_ROWS`` rows, and those behind them."""
    rows = 0
    for place, piece in enumerate(slices):
        rows += piece.rows
        if rows > HEAD_ROWS:
            return slices[:place], slices[place:]
    return slices, ()
