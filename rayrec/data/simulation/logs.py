"""Writes a simulation as logs, block by block in constant memory.

<out>/simulation.json   config, rows, true and drawn rates
<out>/labeled/          impressions with their outcomes: train, valid, test by time
<out>/unlabeled/        candidates that were not shown (a random share of them), labels null: train, valid, test
<out>/candidates/       test: every candidate of the test period in order of requests, ``funnel.pool`` rows each, with labels
                        drawn from the true probabilities for those not shown, too
<out>/student/...       the same three logs without the late signals: own schemas, links to the same files
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict

from rayrec.data.log import ROWS_PER_FILE, SPLITS, Log, LogError, LogWriter
from rayrec.data.simulation.config import SimulationConfig
from rayrec.data.simulation.funnel import IMPRESSION, REQUESTS_PER_BLOCK, Block, Simulator
from rayrec.data.simulation.log_rows import EXTRA_TYPES, RowEncoder, fit_schema
from rayrec.data.simulation.student_view import write_student_view
from rayrec.files import whole_folder, write_text_atomically
from rayrec.typed_json import from_json, to_json, to_plain

LOGS = ("labeled", "unlabeled", "candidates")
T = TypeVar("T")
Progress = Callable[[int, int], None]  # candidates simulated so far, candidates in all
_FITTING_BLOCKS = 32  # evenly over the training period: 655,360 candidates of the default funnel
_SUMMARY_FILE = "simulation.json"


@dataclass(frozen=True)
class SimulationSummary:
    """What was simulated.

    rows: by log and split. candidates: of all requests, written or not. true_click_rate: mean true click probability of all
    candidates; true_impression_click_rate: of impressions; impression_click_rate: clicks per impression as drawn;
    conversion_rate: conversions per click on impressions, as drawn.
    """

    config: SimulationConfig
    rows: Mapping[str, Mapping[str, int]]
    candidates: int
    true_click_rate: float
    true_impression_click_rate: float
    impression_click_rate: float
    conversion_rate: float
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SimulatedLogs:
    """A folder of simulated logs."""

    folder: Path
    summary: SimulationSummary

    @property
    def labeled(self) -> Path:
        return self.folder / "labeled"

    @property
    def unlabeled(self) -> Path:
        return self.folder / "unlabeled"

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates"

    @property
    def student(self) -> Path:
        """Folder of ``labeled``, ``unlabeled`` and ``candidates`` without the late signals."""
        return self.folder / "student"

    @staticmethod
    def open(folder: Path | str) -> "SimulatedLogs":
        """What ``simulate`` returned when it wrote ``folder``. Raises LogError when it did not."""
        folder = Path(folder)
        if not (folder / _SUMMARY_FILE).is_file():
            raise LogError(f"{folder}: no simulated logs (no {_SUMMARY_FILE}); make some with python -m jobs.simulate")
        text = (folder / _SUMMARY_FILE).read_bytes()
        return SimulatedLogs(folder, from_json(SimulationSummary, text, str(folder / _SUMMARY_FILE)))


def simulate(
    config: SimulationConfig,
    out: Path | str,
    *,
    workers: int = 2,
    overwrite: bool = False,
    rows_per_file: int = ROWS_PER_FILE,
    progress: Progress = lambda done, total: None,
) -> SimulatedLogs:
    """Simulate and write all logs into ``out``, which appears whole or not at all.

    workers: threads that simulate and encode, besides the one that writes; neither they nor rows_per_file change a row.
    overwrite: replace an ``out`` that an earlier simulation wrote. Raises LogError when ``out`` exists otherwise.
    """
    out = Path(out)
    with whole_folder(out, _SUMMARY_FILE, overwrite=overwrite, error=LogError) as partial:
        summary = _write_logs(config, partial, workers, rows_per_file, progress)
        for name in LOGS:
            write_student_view(Log.open(partial / name), partial / "student" / name)
        write_text_atomically(partial / _SUMMARY_FILE, to_json(summary))
    return SimulatedLogs(out, summary)


def _write_logs(
    config: SimulationConfig, folder: Path, workers: int, rows_per_file: int, progress: Progress
) -> SimulationSummary:
    simulator, totals = Simulator(config), _Totals()
    with ThreadPoolExecutor(workers, thread_name_prefix="simulate") as pool, ExitStack() as stack:
        schema = fit_schema(config, _in_order(pool, simulator.block, _fitting_blocks(config), workers + 1))
        encoder = RowEncoder(schema, config)
        writers = {
            name: stack.enter_context(
                LogWriter(folder / name, schema, extra_types=EXTRA_TYPES, rows_per_file=rows_per_file)
            )
            for name in LOGS
        }

        def encoded_block(number: int) -> _EncodedBlock:
            return _encoded(simulator.block(number), encoder, config)

        for block in _in_order(pool, encoded_block, range(simulator.blocks), workers + 1):
            for name, split, table in block.tables:
                writers[name].write(split, table)
            totals.add(block.totals)
            progress(totals.candidates, config.requests * config.funnel.pool)
        for name, writer in writers.items():
            writer.finish({"importer": "simulate", "log": name, "config": to_plain(config)})
    return SimulationSummary(
        config=config,
        rows={name: {s: writer.rows[s] for s in SPLITS if writer.rows[s]} for name, writer in writers.items()},
        candidates=totals.candidates,
        true_click_rate=totals.true_clicks / totals.candidates,
        true_impression_click_rate=totals.true_impression_clicks / max(totals.impressions, 1),
        impression_click_rate=totals.clicks / max(totals.impressions, 1),
        conversion_rate=totals.conversions / max(totals.clicks, 1),
    )


def _fitting_blocks(config: SimulationConfig) -> list[int]:
    blocks = -(-config.split_requests["train"][1] // REQUESTS_PER_BLOCK)
    return np.unique(np.linspace(0, blocks - 1, min(_FITTING_BLOCKS, blocks)).astype(int)).tolist()


@dataclass
class _Totals:
    """Sums over candidates; clicks and conversions are those drawn on impressions."""

    candidates: int = 0
    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    true_clicks: float = 0.0
    true_impression_clicks: float = 0.0

    @staticmethod
    def of(block: Block) -> "_Totals":
        shown = block.stage == IMPRESSION
        return _Totals(
            candidates=shown.size,
            impressions=int(shown.sum()),
            clicks=int(block.click[shown].sum()),
            conversions=int(block.conversion[shown].sum()),
            true_clicks=float(block.click_probability.sum(dtype=np.float64)),
            true_impression_clicks=float(block.click_probability[shown].sum(dtype=np.float64)),
        )

    def add(self, other: "_Totals") -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True)
class _EncodedBlock:
    """Rows by log and split, ready to be written."""

    tables: tuple[tuple[str, str, pa.Table], ...]
    totals: _Totals


def _encoded(block: Block, encoder: RowEncoder, config: SimulationConfig) -> _EncodedBlock:
    shown = block.stage == IMPRESSION
    request = block.first_request + np.arange(len(block.requests))
    tables = []
    for split, (first, last) in config.split_requests.items():
        inside = ((request >= first) & (request < last))[:, None]
        if not inside.any():
            continue
        chosen = {"labeled": shown & inside, "unlabeled": ~shown & block.kept & inside}
        if split == "test":
            chosen["candidates"] = np.broadcast_to(inside, shown.shape)
        for name, mask in chosen.items():
            tables.append((name, split, encoder.table(block, np.flatnonzero(mask), labels=name != "unlabeled")))
    return _EncodedBlock(tuple(tables), _Totals.of(block))


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], T], numbers: Iterable[int], ahead: int) -> Iterator[T]:
    """``work`` of each number, in order, at most ``ahead`` of them unfinished or waiting, so that memory stays constant."""
    waiting: deque[Future[T]] = deque()
    for number in numbers:
        if len(waiting) == ahead:
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, number))
    while waiting:
        yield waiting.popleft().result()
