"""Raw files to user histories: python -m jobs.import_sequences amazon2014 --source FOLDER --name Beauty --out SEQUENCES.

One row a user, items with their text and attributes; see rayrec/data/sequences/interactions.py. A broken file is one error that
names file and line, and nothing half-written remains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jobs.command_line import read_one_of
from rayrec.data.log import Log
from rayrec.data.log.times import TimeSpelling
from rayrec.data.public.amazon2014 import read_amazon2014
from rayrec.data.public.amazon2018 import read_amazon2018_processed, read_amazon2018_raw
from rayrec.data.public.movielens import read_movielens
from rayrec.data.public.movielens_tastes import read_movielens_tastes
from rayrec.data.public.steam import read_steam
from rayrec.data.public.yelp import read_yelp
from rayrec.data.sequences import SequenceData, leave_one_out, write_sequences
from rayrec.data.sequences.events import LEFT_OUT, EventFilter
from rayrec.data.sequences.interactions import SEQUENCES_FILE
from rayrec.data.sequences.log_events import LogEvents, read_log_events
from rayrec.data.sequences.table import TableColumns, TableText, read_table
from rayrec.errors import printable, told
from rayrec.files import check_replaceable


@dataclass(frozen=True)
class Destination:
    """Where the data set is written."""

    out: Path
    """Folder to write; it appears whole or not at all."""
    overwrite: bool = False
    """Replace a data set that is there."""


To = Annotated[Destination, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Amazon2014:
    """The S3-Rec files NAME.txt and NAME_item2attributes.json in ``source``."""

    source: Path
    """Folder of the published files."""
    name: str
    """Of the data set, as its files are called: Beauty, Sports_and_Outdoors, Toys_and_Games."""
    to: To
    """Where the sequences go."""

    def read(self) -> SequenceData:
        return read_amazon2014(self.source, self.name)


@dataclass(frozen=True)
class Amazon2018:
    """NAME.inter.json and NAME.item.json in ``source``."""

    source: Path
    """Folder of the published files."""
    name: str
    """Of the category, as its files are called: Scientific."""
    to: To
    """Where the sequences go."""

    def read(self) -> SequenceData:
        return read_amazon2018_processed(self.source, self.name)


@dataclass(frozen=True)
class Amazon2018Raw:
    """Public raw reviews and metadata, JSON lines, plain or gzipped."""

    reviews: Path
    """File of reviews, JSON lines, gzip or not."""
    metadata: Path
    """File of products, JSON lines, gzip or not."""
    to: To
    """Where the sequences go."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""

    def read(self) -> SequenceData:
        return read_amazon2018_raw(self.reviews, self.metadata, self.events)


@dataclass(frozen=True)
class Steam:
    """Steam reviews and games."""

    reviews: Path
    """File of reviews, a Python literal a line."""
    games: Path
    """File of games, a Python literal a line."""
    to: To
    """Where the sequences go."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""

    def read(self) -> SequenceData:
        return read_steam(self.reviews, self.games, self.events)


@dataclass(frozen=True)
class Yelp:
    """The academic data set's folder."""

    source: Path
    """Folder of the published files."""
    to: To
    """Where the sequences go."""
    since: str | None = None
    """Leave out reviews before this date (YYYY-MM-DD)."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""

    def read(self) -> SequenceData:
        return read_yelp(self.source, self.events, since=self.since)


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens folder."""

    source: Path
    """Folder of the published files."""
    to: To
    """Where the sequences go."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""

    def read(self) -> SequenceData:
        return read_movielens(self.source, self.events)


@dataclass(frozen=True)
class MovieLensTastes:
    """Likes of 1,000 MovieLens users for whom a language model wrote tastes; jobs.import_preferences reads those."""

    source: Path
    """Folder of the published files."""
    to: To
    """Where the sequences go."""

    def read(self) -> SequenceData:
        return read_movielens_tastes(self.source)


@dataclass(frozen=True)
class Table:
    """Your own Parquet, CSV or TSV files: events, and items with text or attributes. Ids are text and stay as they
    are."""

    file: Path
    """Events: .parquet, .csv or .tsv (the latter also .gz)."""
    to: To
    """Where the sequences go."""
    items: Path | None = None
    """Items with text or attributes, each once."""
    columns: TableColumns = field(default_factory=TableColumns)
    """Names of its columns."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""
    text: Annotated[TableText, tyro.conf.arg(name="")] = field(default_factory=TableText)
    """How a text file is written."""
    times: TimeSpelling = field(default_factory=TimeSpelling)
    """How times are written."""
    keep_cold: bool = False
    """Keep items of the items table that no event names: a retriever that reads text can find them."""

    def read(self) -> SequenceData:
        return read_table(
            self.file, self.items, self.columns, self.events,
            text=self.text, times=self.times, keep_cold=self.keep_cold,
        )  # fmt: skip


@dataclass(frozen=True)
class FromLog:
    """A log of jobs.import_logs or jobs.simulate: its rows with a positive label, as histories."""

    log: Path
    """Folder of the log."""
    to: To
    """Where the sequences go."""
    what: Annotated[LogEvents, tyro.conf.arg(name="")]
    """Which columns name users, items and events."""
    events: EventFilter = field(default_factory=EventFilter)
    """Which users and items are kept."""

    def read(self) -> SequenceData:
        return read_log_events(Log.open(self.log), self.what, self.events)


Import = Amazon2014 | Amazon2018 | Amazon2018Raw | Steam | Yelp | MovieLens | MovieLensTastes | Table | FromLog


def run(command: Import) -> Path:
    """Import, write and print what is there."""
    check_replaceable(command.to.out, SEQUENCES_FILE, overwrite=command.to.overwrite)
    data = command.read()
    folder = write_sequences(command.to.out, data, overwrite=command.to.overwrite)
    interactions, split = data.interactions, leave_one_out(data.interactions)
    texts = np.asarray([bool(text) for text in data.items.texts.to_pylist()])
    print(
        f"{printable(str(folder))}: {interactions.num_users:,} users, {interactions.num_items:,} items "
        f"({int(texts.sum()):,} with text), "
        f"{len(interactions.items):,} interactions; median history {int(np.median(interactions.lengths))}"
    )
    for note, count in data.notes.items():
        if note.startswith(LEFT_OUT):
            print(printable(f"{count:>14,}  {note}"))
    if blanks := data.notes.get("ids_with_blanks"):
        print(f"{blanks:>14,}  users and items with blanks around them, which were stripped")
    if ties := data.notes.get("users_with_equal_times"):
        print(f"{ties:>14,}  users with events of equal time, which keep the order of the file")
    print(f"leave-one-out: {len(split.test):,} targets, {len(split.cold_items):,} items that training never sees")
    return folder


def main() -> None:
    commands: dict[str, Callable[..., Import]] = {
        "amazon2014": Amazon2014, "amazon2018": Amazon2018, "amazon2018-raw": Amazon2018Raw, "steam": Steam, "yelp": Yelp,
        "movielens": MovieLens, "movielens-tastes": MovieLensTastes, "table": Table, "log": FromLog,
    }  # fmt: skip
    with told():
        run(read_one_of(commands, description=__doc__))


if __name__ == "__main__":
    main()
