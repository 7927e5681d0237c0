"""Raw files to a log: python -m jobs.import_logs census-income --out LOG, or table for your own CSV, TSV or Parquet files.

Bad rows are set aside in LOG/quarantine and counted by reason; a broken file is one error, and nothing half-written remains.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from jobs.command_line import taken
from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.table import TableFiles, TextFormat, import_table
from rayrec.data.log import SPLITS, Log
from rayrec.data.log.splitting import ColumnSplit, FileSplit, HashSplit, OrderSplit, TimeSplit
from rayrec.data.public.logs import PUBLIC_DATASETS, PublicName, import_public
from rayrec.errors import printable, told


@dataclass(frozen=True)
class ImportPublic:
    """Import a public data set."""

    dataset: tyro.conf.Suppress[PublicName]
    """Which data set."""
    out: Path
    """The log's folder."""
    source: Path | None = None
    """The data set's file or folder; default: its folder below RAYREC_DATA."""
    unlabeled: Path | None = None
    """Also write the rows without labels as this log (coat)."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")] = field(default_factory=ImportOptions)
    """Where the log goes and how it is written."""

    def make(self) -> tuple[Path, ...]:
        """The logs that are written, that of the labeled rows first."""
        log = import_public(self.dataset, self.out, self.source, unlabeled=self.unlabeled, options=self.options)
        return (log,) if self.unlabeled is None else (log, self.unlabeled)


Split = (
    Annotated[HashSplit, tyro.conf.subcommand("by-hash")]
    | Annotated[TimeSplit, tyro.conf.subcommand("by-time")]
    | Annotated[OrderSplit, tyro.conf.subcommand("by-order")]
    | Annotated[ColumnSplit, tyro.conf.subcommand("by-column")]
    | Annotated[FileSplit, tyro.conf.subcommand("by-file")]
)


@dataclass(frozen=True)
class ImportTable:
    """Import your own table: files, and a schema that says what their columns are."""

    files: Annotated[TableFiles, tyro.conf.arg(name="")]
    """Which files, and by which schema."""
    schema: Path
    """JSON, see rayrec/data/log/schema.py. A log's fitted schema.json is used as it is, for logs that one model shall read."""
    out: Path
    """The log's folder."""
    text: Annotated[TextFormat, tyro.conf.arg(name="")] = field(default_factory=TextFormat)
    """How a text file is written."""
    unlabeled: bool = False
    """Label columns may be absent."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")] = field(default_factory=ImportOptions)
    """Where the log goes and how it is written."""
    split: Split = field(default_factory=HashSplit)
    """How rows become training, validation and test."""

    def make(self) -> tuple[Path, ...]:
        return (
            import_table(
                self.files, self.schema, self.split, self.out,
                text=self.text, unlabeled=self.unlabeled, options=self.options,
            ),
        )  # fmt: skip


_PUBLIC_COMMANDS = [
    Annotated[
        ImportPublic,
        tyro.conf.subcommand(name, default=ImportPublic(name, tyro.MISSING), description=f"Import {name}."),
    ]
    for name in PUBLIC_DATASETS
]
Command: Any = Union[(*_PUBLIC_COMMANDS, Annotated[ImportTable, tyro.conf.subcommand("table")])]


def run(command: ImportPublic | ImportTable) -> Path:
    """Import; prints what came in and what was set aside. Returns the log's folder."""
    logs = command.make()
    for log in logs:
        print_summary(log)
    return logs[0]


def print_summary(path: Path) -> None:
    """Rows by split, positives by task, bad rows by reason."""
    log = Log.open(path)
    found = json.loads((path / "import.json").read_text(encoding="utf-8"))
    width = max(12, *(len(task) + 2 for task in log.schema.task_names))
    rows = sum(found["rows"].values())
    print(
        printable(
            f"{path}: {rows:,} rows in {found['seconds']:.1f} s ({rows / max(found['seconds'], 0.001):,.0f} rows/s)"
        )
    )
    print(f"{'split':<8}{'rows':>14}" + "".join(f"{task:>{width}}" for task in log.schema.task_names))
    for split in SPLITS:
        if split in found["rows"]:
            counts = [found["labels"][split][task] for task in log.schema.task_names]
            cells = [f"{c['positive'] / c['observed']:.4f}" if c["observed"] else "no labels" for c in counts]
            print(f"{split:<8}{found['rows'][split]:>14,}" + "".join(f"{cell:>{width}}" for cell in cells))
    for note, count in found.get("notes", {}).items():
        print(f"note: {note}" + (f": {count:,}" if count is not None else ""))
    if not found["quarantined"]:
        print("quarantined: none")
    else:
        print(f"quarantined: {sum(found['quarantined'].values()):,} rows, in {printable(str(path / 'quarantine'))}")
        for reason, count in sorted(found["quarantined"].items(), key=lambda item: -item[1]):
            first = f", first in {found['first_bad'][reason]}" if reason in found.get("first_bad", {}) else ""
            print(printable(f"{count:>14,}  {reason}{first}"))


def main() -> None:
    with told():
        run(taken(tyro.cli(Command, description=__doc__)))


if __name__ == "__main__":
    main()
