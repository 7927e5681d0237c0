"""Make the table of item features that a cascade serves: python -m jobs.bundle_item_features --item ad --table FILE --out BUNDLE.

Out of a table with one row an item (Parquet or CSV, raw values as in the log that the rankers were trained on), or out of a log
(--log): then each item has the last value of the codes and the mean of the numbers that are named. A column of CSV of which every
cell is a number or empty holds numbers, unless --codes names it; any other holds codes, as they are written ("NA", "True").
The bundle is registered as a new version of a model, and served like one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from jobs.command_line import read
from rayrec.bundle import check_bundle_place
from rayrec.data.importing.own_tables import NO_NUMBER, read_own_table
from rayrec.data.log import Log
from rayrec.data.log.raw_columns import as_numbers
from rayrec.errors import told
from rayrec.item_features import ItemFeaturesError, PairFeature, write_item_features
from rayrec.item_features.from_log import item_table
from rayrec.training.tracking import Tracker


@dataclass(frozen=True)
class BundleItemFeatures:
    """Make the table of item features that a cascade serves."""

    item: str
    """The column that names the items, as the retriever calls them."""
    out: Path
    """The bundle's folder."""
    table: Path | None = None
    """A table with one row an item, Parquet or CSV."""
    log: Path | None = None
    """In place of a table: a log whose rows tell of the items."""
    split: str = "train"
    """Of the log."""
    codes: tuple[str, ...] = ()
    """Of a table: columns of whole numbers that name categories. Of a log: features of which an item's last value is taken."""
    missing: tuple[str, ...] = ()
    """Of a CSV table: what stands for no number in a column of numbers, as the log's schema has it in missing_values."""
    means: tuple[str, ...] = ()
    """Of a log: numbers that are averaged over an item's rows. Patterns of names are allowed, as "early_signal_*"."""
    joined: tuple[str, ...] = ()
    """Codes made of a request's and an item's, as NAME=REQUEST_FEATURE,ITEM_COLUMN."""
    share: tuple[str, ...] = ()
    """Which part of a request's list is the item's code, as NAME=REQUEST_FEATURE,ITEM_COLUMN."""
    register: str | None = "item_features"
    """The registered model's name; "None" for none."""
    overwrite: bool = False
    """Replace a bundle that is there."""


def run(command: BundleItemFeatures) -> Path:
    """Write and register the bundle; prints what it holds. Raises ItemFeaturesError, SourceError, LogError."""
    if (command.table is None) == (command.log is None):
        raise ItemFeaturesError("give either --table or --log")
    check_bundle_place(command.out, overwrite=command.overwrite)
    pairs = (*(_pair("joined", text) for text in command.joined), *(_pair("share", text) for text in command.share))
    if command.log is not None:
        raw = item_table(Log.open(command.log), command.split, command.item, command.codes, command.means)
        codes = frozenset[str]()
    else:
        assert command.table is not None
        raw, codes = _read(command.table, {command.item, *command.codes}, command.missing), frozenset(command.codes)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(command).items()}
    schema = write_item_features(
        command.out, raw, command.item, codes=codes, pairs=pairs, run_config=plain, overwrite=command.overwrite
    )
    print(f"{schema.rows:,} items, {len(schema.columns)} columns: {command.out}")
    for kind in ("number", "code", "codes"):
        if names := [column.name for column in schema.columns if column.kind == kind]:
            print(f"{kind + ':':<8} {', '.join(names)}")
    if command.register is not None:
        tracker = Tracker()
        run_id = tracker.start(command.out.name, command)
        tracker.log_folder(run_id, command.out, "bundle")
        found = tracker.register(run_id, command.register)
        tracker.finish(run_id)
        print(f"models:/{command.register}/{found.version} is now models:/{command.register}@serving")
    return command.out


def _pair(kind: str, text: str) -> PairFeature:
    name, _, of = text.partition("=")
    request, _, item = of.partition(",")
    if not (name and request and item):
        raise ItemFeaturesError(f"--{kind} {text!r} is not of the form NAME=REQUEST_FEATURE,ITEM_COLUMN")
    return PairFeature(name, "joined" if kind == "joined" else "share", request, item)


def _read(path: Path, codes: set[str], missing: tuple[str, ...]) -> pa.Table:
    """As the import of a log reads it: of CSV, the text of each cell is a code unless it is a number as all of its column are."""
    table = read_own_table(path, sorted(codes), others=True).columns
    if path.suffix == ".parquet":
        return table
    return pa.table({name: table.column(name) if name in codes else _typed(path, name, table.column(name), missing)
                     for name in table.column_names})  # fmt: skip


def _typed(path: Path, name: str, texts: pa.ChunkedArray, missing: tuple[str, ...]) -> pa.Array | pa.ChunkedArray:
    """Numbers where every cell spells one or is missing, no type where none is there, else the texts as they are.

    Raises ItemFeaturesError where all but what commonly spells a missing number are numbers: it may be meant either way.
    """
    if texts.null_count == len(texts):
        return pa.nulls(len(texts))
    numbers = as_numbers(texts, missing)
    if not numbers.bad.any():
        return pa.array(numbers.values, from_pandas=True)  # NaN as null
    spelled = sorted(set(texts.filter(pa.array(numbers.bad)).to_pylist()))
    if set(spelled) <= set(NO_NUMBER) and not (numbers.bad | numbers.null).all():
        raise ItemFeaturesError(
            f"{path}: column {name!r} holds numbers and {', '.join(spelled)}; give --missing {' '.join(spelled)} where that is a "
            f"missing number, or --codes {name} where all are names"
        )
    return texts


def main() -> None:
    with told():
        run(read(BundleItemFeatures, description=__doc__))


if __name__ == "__main__":
    main()
