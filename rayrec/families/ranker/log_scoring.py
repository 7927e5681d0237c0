"""Scores a log with a bundle, file by file, as a Ray Data job: the same rows with the model's probabilities as more columns.

<out>.partial/scoring.json                 what is being done, so that a killed job goes on with the same and nothing else
<out>.partial/train/part-00000.parquet     a finished file: written under another name, then renamed
<out>/                                     the whole log, when all files are there
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayrec.data.log import Log, LogError, read_footer
from rayrec.data.log.collate import collate
from rayrec.data.log.schema import LogSchema, MadeOfLabels, write_schema
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.scoring import CalibrationConfig, Scorer, features_of
from rayrec.files import whole_file, write_text_atomically
from rayrec.methods.calibration import Calibration
from rayrec.methods.distillation import teacher_column
from rayrec.typed_json import ConfigError, from_json, to_json

_RECORD = "scoring.json"
_BATCH_ROWS = 16_384
Say = Callable[[str], None]


@dataclass(frozen=True)
class ScoringConfig:
    """What is scored by what."""

    bundle: Path
    """The trained model; the log must hold its features, encoded alike, and may hold more."""
    log: Path
    """Folder of the log whose rows are scored."""
    out: Path
    """Folder of the new log."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name of a task's column; those not named: ``teacher_<task>``."""
    calibration: CalibrationConfig | None = None
    """Fitted before scoring, on a labeled log; None = the model's own probabilities."""


@dataclass(frozen=True)
class _Record:
    """What ``scoring.json`` holds: the config, the bundle's hashes, and each source file's size and time of change."""

    config: ScoringConfig
    sha256: Mapping[str, str]
    files: Mapping[str, tuple[int, int]]
    calibrations: Mapping[str, Calibration]


@dataclass(frozen=True)
class _Work:
    """What a worker needs to score one file; small, and the same for all files."""

    bundle: Path
    calibrations: Mapping[str, Calibration]
    columns: Mapping[str, str]
    log: Path
    schema: LogSchema
    partial: Path


def score_log(config: ScoringConfig, *, workers: int = 1, say: Say = lambda text: None) -> Log:
    """Score every split of ``config.log`` into ``config.out``; running it again goes on with the files that are missing.

    workers: actors of a Ray Data job, each with the model and one CPU; 0 scores in this process, without Ray.
    Raises LogError when ``out`` exists or is being written from other inputs, SchemaError when the log does not fit the
    model, ConfigError for a column that is taken or a task that does not exist.
    """
    config = _absolute(config)
    if config.out.exists():
        raise LogError(f"{config.out}: exists already; choose another name")
    log, bundle = Log.open(config.log), load_bundle(config.bundle)
    features_of(bundle.schema, log.schema, log.path)
    unknown = sorted(set(config.columns) - set(bundle.schema.task_names))
    if unknown:
        raise ConfigError(f"columns names no task of the model: {', '.join(unknown)}")
    columns = {task: config.columns.get(task, teacher_column(task)) for task in bundle.schema.task_names}
    taken = sorted(set(columns.values()) & set(_column_names(log)))
    if taken or len(set(columns.values())) < len(columns):
        raise ConfigError(
            f"{log.path}: columns {', '.join(taken or columns.values())} are there already or named twice"
        )
    files = {f"{split}/{file.name}": file for split in log.splits for file in log.files(split)}
    partial = config.out.with_name(config.out.name + ".partial")
    calibrations = _claim(partial, config, bundle.metadata.sha256, files)
    work = _Work(config.bundle, calibrations, columns, log.path, log.schema, partial)
    missing = [name for name in files if not (partial / name).exists()]
    if len(missing) < len(files):
        say(f"{len(files) - len(missing)} of {len(files)} files are scored already")
    done = len(files) - len(missing)
    for name in _by_ray(work, missing, workers) if workers else map(_FileScorer(work).score, missing):
        done += 1
        say(f"scored {name} ({done} of {len(files)} files)")
    made = tuple(MadeOfLabels(column, (task,)) for task, column in columns.items())
    schema = replace(
        log.schema,
        extras=(*log.schema.extras, *columns.values()),
        made_of_labels=(*log.schema.made_of_labels, *made),  # the model was trained on some
    )
    write_schema(schema, partial / "schema.json")
    (partial / _RECORD).rename(partial / "import.json")
    for left in partial.rglob(".*.partial"):  # of a worker that was killed, perhaps on another machine
        left.unlink()
    partial.rename(config.out)
    return Log.open(config.out)


def _column_names(log: Log) -> list[str]:
    """Of its files: a schema may leave some out."""
    names: list[str] = read_footer(log.files(log.splits[0])[0]).schema.to_arrow_schema().names
    return names


def _absolute(config: ScoringConfig) -> ScoringConfig:
    calibration = config.calibration
    return replace(
        config,
        bundle=config.bundle.resolve(),
        log=config.log.resolve(),
        out=config.out.resolve(),
        calibration=None if calibration is None else replace(calibration, log=calibration.log.resolve()),
    )


def _claim(
    partial: Path, config: ScoringConfig, sha256: Mapping[str, str], files: Mapping[str, Path]
) -> Mapping[str, Calibration]:
    """Begin in ``partial``, or find the same work begun there; gives its calibrations."""
    stats = {name: file.stat() for name, file in files.items()}
    record = _Record(config, sha256, {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()}, {})
    path = partial / _RECORD
    if path.is_file():
        found = from_json(_Record, path.read_bytes(), str(path))
        if replace(found, calibrations={}) != record:
            raise LogError(f"{partial}: was begun from another model, log or config; remove it, or choose another name")
        return found.calibrations
    scorer = Scorer.load(config.bundle, config.calibration)
    partial.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, to_json(replace(record, calibrations=scorer.calibrations)))
    return scorer.calibrations


class _FileScorer:
    """Scores files with one model; also a Ray Data actor."""

    def __init__(self, work: _Work, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
            pa.set_cpu_count(threads)
        self.work = work
        self.scorer = Scorer(load_bundle(work.bundle), work.calibrations)

    def __call__(self, files: dict[str, Any]) -> dict[str, Any]:
        """A batch of Ray Data: names of files in, the same names out."""
        return {"file": np.array([self.score(name) for name in files["file"]])}

    def score(self, name: str) -> str:
        """Write the scored copy of ``<log>/<name>``, whole or not at all; row groups stay as they are."""
        source, target = self.work.log / name, self.work.partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetFile(source) as file, whole_file(target) as temporary:
                added = [pa.field(column, pa.float32()) for column in self.work.columns.values()]
                schema = pa.schema([*file.schema_arrow, *added])
                with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group)
                        writer.write_table(self._with_scores(table, schema), row_group_size=max(table.num_rows, 1))
        except (pa.ArrowException, LogError) as error:
            raise LogError(f"{source}: cannot be scored: {error}") from None
        return name

    def _with_scores(self, table: pa.Table, schema: pa.Schema) -> pa.Table:
        parts = [
            self.scorer.probabilities(collate(table.slice(start, _BATCH_ROWS), self.scorer.bundle.schema, labels=False))
            for start in range(0, table.num_rows, _BATCH_ROWS)
        ]
        scores = torch.cat(parts).numpy() if parts else np.empty((0, len(self.work.columns)), np.float32)
        columns = [*table.columns, *(pa.array(np.ascontiguousarray(column)) for column in scores.T)]
        return pa.table(columns, schema=schema)


def _by_ray(work: _Work, names: list[str], workers: int) -> Any:
    """Names of files as they are finished."""
    import ray.data

    if not names:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items([{"file": name} for name in names], override_num_blocks=len(names)).map_batches(
        _FileScorer,
        fn_constructor_args=(work, 1),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(names))),
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    for row in dataset.iter_rows():
        yield row["file"]
