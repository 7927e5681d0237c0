"""How fast a log becomes ready batches, and in how much memory: python -m benchmarks.ingest

A 40-column log (13 dense, 26 categorical, one label; a Criteo-like synthetic one, zstd Parquet as the importers write it) is read
into batches of float32 and int64 tensors by

- ``ray``: rayrec's stream over Ray Data, the default of training: row groups and rows shuffled;
- ``in_process``: the same batches from a thread of the process;
- ``pyarrow``: a threaded pyarrow scan, its columns stacked to the same matrices by NumPy, in file order: the limit;
- ``pandas_batches``: a torch DataLoader over an IterableDataset that reads chunks with pandas, shuffles them and cuts batches out
  of whole columns: the best that can be done so;
- ``pandas_rows``: the same that yields rows, for the DataLoader to collate: what its documentation shows.

Each measurement is a process of its own. Rows per second are those of the steady state, from the first fifth of the rows to the
last; getting to the first batch is told apart. Memory is that of the process with all it has started (Ray's daemons and workers,
loader workers), shared memory counted once; it is measured in passes of their own, over this log and over a tenth of it.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.process_tree import PeakMemory, cpu_seconds
from rayrec.data.log import ROW_GROUP_ROWS, Log, LogWriter, streams
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.runs.ray_settings import ONE_MACHINE_SETTINGS

DENSE = [f"i{j}" for j in range(1, 14)]
CATEGORICAL = [f"c{j}" for j in range(1, 27)]
LABEL = "click"
COLUMNS = [*DENSE, *CATEGORICAL, LABEL]
GROWTH = 10
Contender = Literal["ray", "in_process", "pyarrow", "pandas_batches", "pandas_rows"]
LOADERS: tuple[Contender, ...] = ("pandas_batches", "pandas_rows")


@dataclass(frozen=True)
class IngestBenchmark:
    """rows: of the large log; the small one has a tenth. loader_rows: fewer, for the slow ones (pandas_rows: a tenth of them).
    batch_size: rows of a batch. repeats, memory_repeats: of each measurement; 0 leaves it out. loader_workers: of the DataLoader,
    the fastest counts. logs: a folder that keeps the logs for a later run.
    """

    rows: int = 160 * ROW_GROUP_ROWS
    loader_rows: int = 32 * ROW_GROUP_ROWS
    batch_size: int = 4096
    repeats: int = 3
    memory_repeats: int = 2
    loader_workers: tuple[int, ...] = (0, 2)
    object_store_bytes: int = 500_000_000
    logs: Path | None = None


@dataclass(frozen=True)
class Reading:
    """Who reads how much of which log. workers: processes of a DataLoader."""

    contender: Contender
    log: Path
    rows: int
    config: IngestBenchmark
    workers: int = 0

    def batches(self) -> Generator[int]:
        """Rows of each batch, once its tensors are ready."""
        if self.contender in ("ray", "in_process"):
            return _rayrec(self)
        if self.contender == "pyarrow":
            return _pyarrow(self)
        return _pandas_loader(self)


@dataclass(frozen=True)
class Speed:
    """first_batch_s: from the call to the first batch, Ray's start included. The others are of the steady state."""

    first_batch_s: float
    rows_per_s: float
    cpu_ns_per_row: float


def main() -> None:
    config = tyro.cli(IngestBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="rayrec-ingest-") as temporary:
        folder = Path(temporary) if config.logs is None else config.logs
        large, small = (folder / f"{rows}-rows" for rows in (config.rows, config.rows // GROWTH))
        for log, rows in ((large, config.rows), (small, config.rows // GROWTH)):
            if not log.exists():
                write_log(log, rows)
        contenders = {name: Reading(name, large, config.rows, config) for name in ("ray", "in_process", "pyarrow")}
        for workers in config.loader_workers:
            for name, rows in zip(LOADERS, (config.loader_rows, config.loader_rows // 10), strict=True):
                contenders[f"{name}, {workers} workers"] = Reading(name, large, rows, config, workers)
        speeds: dict[str, list[Speed]] = {name: [] for name in contenders}
        for _ in range(config.repeats):  # in turns, so that a change of the machine's load touches all alike
            for name, reading in contenders.items():
                speeds[name].append(measure_speed(reading))
        peaks: dict[str, tuple[list[int], list[int]]] = {"ray": ([], []), "in_process": ([], [])}
        for _ in range(config.memory_repeats):
            for name, found in peaks.items():
                for peak, (log, rows) in zip(
                    found, ((large, config.rows), (small, config.rows // GROWTH)), strict=True
                ):
                    peak.append(measure_peak(Reading(name, log, rows, config)))
    report(speeds, peaks)


def write_log(path: Path, rows: int, judged_rows: int = 0) -> None:
    """Skewed ids, long-tailed numbers of which a fifth is missing, a quarter of clicks. judged_rows: of two more splits."""
    generator = np.random.default_rng(0)
    schema = LogSchema(
        "criteo-like",
        (
            *(DenseFeature(name, "dense", "log1p", statistics=DenseStatistics(1.0, 1.0, 0.2)) for name in DENSE),
            *(CategoricalFeature(name, encoding="hash", buckets=100_000) for name in CATEGORICAL),
        ),
        (TaskLabel(LABEL),),
    )
    pieces = [("train", min(ROW_GROUP_ROWS, rows - start)) for start in range(0, rows, ROW_GROUP_ROWS)]
    with LogWriter(path, schema) as writer:
        for split, n in [*pieces, *((split, judged_rows) for split in ("valid", "test") if judged_rows)]:
            dense = np.floor(generator.exponential(30.0, (len(DENSE), n))).astype(np.float32)
            missing = generator.random((len(DENSE), n), np.float32) < 0.2
            ids = (100_000 * generator.random((len(CATEGORICAL), n), np.float32) ** 4).astype(np.int32) + 1
            columns = {name: pa.array(dense[j], mask=missing[j]) for j, name in enumerate(DENSE)}
            columns |= {name: pa.array(ids[j]) for j, name in enumerate(CATEGORICAL)}
            columns[LABEL] = pa.array((generator.random(n) < 0.25).astype(np.float32))
            writer.write(split, pa.table(columns))
        writer.finish({"importer": "benchmarks.ingest"})


def measure_speed(reading: Reading) -> Speed:
    """One pass in a process of its own."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_timed_pass, args=(reading, there))
    process.start()
    there.close()
    speed = Speed(*here.recv())
    process.join()
    return speed


def measure_peak(reading: Reading) -> int:
    """Peak bytes of one pass in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_silent_pass, args=(reading,))
    process.start()
    assert process.pid is not None
    with PeakMemory(process.pid) as peak:
        process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{reading.contender}: the pass over {reading.log} failed")
    return peak.bytes


def _timed_pass(reading: Reading, answer: Connection) -> None:
    torch.set_num_threads(2)
    started = time.perf_counter()
    done, first, warm = 0, 0.0, (0, 0.0, 0.0)
    batches = reading.batches()
    for rows in batches:
        done += rows
        if first == 0:
            first = time.perf_counter() - started
        if warm[0] == 0 and done >= reading.rows / 5:
            warm = done, time.perf_counter(), cpu_seconds(os.getpid())
        if done >= reading.rows - reading.config.batch_size:
            now, cpu = time.perf_counter(), cpu_seconds(os.getpid())
            break
    batches.close()
    steady = done - warm[0]
    answer.send(tuple(asdict(Speed(first, steady / (now - warm[1]), 1e9 * (cpu - warm[2]) / steady)).values()))


def _silent_pass(reading: Reading) -> None:
    torch.set_num_threads(2)
    for _ in reading.batches():
        pass


def _rayrec(reading: Reading) -> Generator[int]:
    if reading.contender == "ray":
        import ray

        for name, value in ONE_MACHINE_SETTINGS.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=reading.config.object_store_bytes,
            log_to_driver=False,
            logging_level="ERROR",
        )
    reader: Literal["ray", "in_process"] = "ray" if reading.contender == "ray" else "in_process"
    config = StreamConfig(batch_size=reading.config.batch_size)
    with LogStream(Log.open(reading.log), "train", config, reading=streams.Reading(reader)) as stream:
        for batch in stream.epoch_batches():
            yield len(batch)


def _pyarrow(reading: Reading) -> Generator[int]:
    size = reading.config.batch_size
    dataset = ds.dataset(sorted((reading.log / "train").glob("*.parquet")))
    for part in dataset.to_batches(columns=COLUMNS, batch_size=16 * size):
        columns = [column.to_numpy(zero_copy_only=False) for column in part.columns]
        tensors = (
            torch.from_numpy(np.stack(columns[: len(DENSE)], axis=1)),
            torch.from_numpy(np.stack(columns[len(DENSE) : -1], axis=1, dtype=np.int64)),
            torch.from_numpy(np.stack(columns[-1:], axis=1)),
        )
        for batches in zip(*(tensor.split(size) for tensor in tensors), strict=True):
            yield len(batches[0])


class PandasChunks(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Row groups as shuffled data frames, cut into batches of tensors, or row by row."""

    def __init__(self, log: Path, batch_size: int, *, by_row: bool) -> None:
        self._files = sorted((log / "train").glob("*.parquet"))
        self._batch_size = batch_size
        self._by_row = by_row

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = get_worker_info()
        share = slice(None) if worker is None else slice(worker.id, None, worker.num_workers)
        groups = [(file, i) for file in self._files for i in range(pq.read_metadata(file).num_row_groups)]
        for file, group in groups[share]:
            frame: pd.DataFrame = pq.ParquetFile(file).read_row_group(group, columns=COLUMNS).to_pandas()
            frame = frame.sample(frac=1, random_state=group)
            dense = torch.from_numpy(frame[DENSE].to_numpy(np.float32, copy=True))
            ids = torch.from_numpy(frame[CATEGORICAL].to_numpy(np.int64))
            labels = torch.from_numpy(frame[[LABEL]].to_numpy(np.float32, copy=True))
            size = 1 if self._by_row else self._batch_size
            for batch in zip(dense.split(size), ids.split(size), labels.split(size), strict=True):
                yield (batch[0][0], batch[1][0], batch[2][0]) if self._by_row else batch


def _pandas_loader(reading: Reading) -> Generator[int]:
    by_row = reading.contender == "pandas_rows"
    chunks = PandasChunks(reading.log, reading.config.batch_size, by_row=by_row)
    batch_size = reading.config.batch_size if by_row else None
    for dense, _, _ in DataLoader(chunks, batch_size=batch_size, num_workers=reading.workers):
        yield len(dense)


def report(speeds: dict[str, list[Speed]], peaks: dict[str, tuple[list[int], list[int]]]) -> None:
    """The table, and as its last line the ratios."""
    rate = {name: median(speed.rows_per_s for speed in found) for name, found in speeds.items() if found}
    growth = {name: median(large) / median(small) for name, (large, small) in peaks.items() if large}
    if rate:
        print(f"{'reader':<28}{'rows/s':>12}{'lowest':>12}{'highest':>12}{'CPU ns/row':>12}{'first batch s':>15}")
    for name in rate:
        rates = [speed.rows_per_s for speed in speeds[name]]
        cpu, first = (median(getattr(s, part) for s in speeds[name]) for part in ("cpu_ns_per_row", "first_batch_s"))
        print(f"{name:<28}{rate[name]:>12,.0f}{min(rates):>12,.0f}{max(rates):>12,.0f}{cpu:>12,.0f}{first:>15.2f}")
    for name, (large, small) in peaks.items():
        if large:
            print(
                f"{name:<28}peak {median(large) / 1e6:,.0f} MB, over a tenth of the log {median(small) / 1e6:,.0f} MB"
            )

    def best(loader: Contender) -> float:
        return max(rate[name] for name in rate if name.startswith(loader))

    result = {}
    if rate:
        result["rayrec_over_pyarrow"] = rate["ray"] / rate["pyarrow"]
        result["rayrec_over_pandas_loader"] = rate["ray"] / best("pandas_rows")
        result["rayrec_over_pandas_batches"] = rate["ray"] / best("pandas_batches")
        result["in_process_over_pyarrow"] = rate["in_process"] / rate["pyarrow"]
    if growth:
        result["peak_memory_growth_10x"] = growth["ray"]
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
