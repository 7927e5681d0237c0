"""Preferences that exist: python -m jobs.import_preferences movielens-tastes --source FOLDER --sequences SEQUENCES --out OUT.

Each row must obey the rules (five at least, none a single word); those that do not are left out and counted. ``table`` reads your
own Parquet or CSV file. jobs.generate_preferences makes preferences where there are none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jobs.command_line import read_one_of
from rayrec.data.preferences.table import (
    PREFERENCES_FILE,
    Origin,
    PreferenceColumns,
    PreferenceRecord,
    PreferenceRow,
    check_rows,
    obeying,
    read_preference_table,
    write_preferences,
)
from rayrec.data.public.movielens_tastes import read_tastes
from rayrec.data.sequences import read_sequences
from rayrec.errors import told
from rayrec.files import check_replaceable
from rayrec.text.preferences import Names


@dataclass(frozen=True)
class Tastes:
    """The tastes that a language model wrote for 1,000 MovieLens users."""

    source: Path
    """The data set's folder."""
    sequences: Path
    """The same, imported."""
    out: Path
    """Folder to write."""
    most: int | None = None
    """Kept of each user; None = all, so that each target finds the one that fits it best."""

    @property
    def maker(self) -> tuple[Origin, str]:
        return "llm", "movielens_tastes"

    @property
    def place(self) -> str:
        """Of the rows, for messages."""
        return str(self.source)

    def rows(self) -> Iterable[PreferenceRow]:
        return read_tastes(self.source)


@dataclass(frozen=True)
class Table:
    """Your own file."""

    file: Path
    """The table: Parquet or CSV."""
    sequences: Path
    """Folder of jobs.import_sequences."""
    out: Path
    """Folder of the preferences."""
    most: int | None = 5
    """Kept of each row."""
    columns: PreferenceColumns = field(default_factory=PreferenceColumns)
    """Names of its columns."""

    @property
    def maker(self) -> tuple[Origin, str]:
        return "table", self.file.name

    @property
    def place(self) -> str:
        """Of the rows, for messages."""
        return str(self.file)

    def rows(self) -> Iterable[PreferenceRow]:
        return read_preference_table(self.file, self.columns)


def run(command: Tastes | Table) -> Path:
    """Import, write and print what is there and what was refused."""
    check_replaceable(command.out, PREFERENCES_FILE)
    data = read_sequences(command.sequences)
    given = list(command.rows())
    check_rows(given, data, command.place)
    rows, refused = obeying(given, Names(), command.most)
    folder = write_preferences(command.out, rows, PreferenceRecord(*command.maker, 0, refused))
    print(f"{folder}: {len(rows):,} rows, {sum(len(row.preferences) for row in rows):,} preferences")
    for rule, count in refused.items():
        print(f"left out, {rule}: {count:,}")
    return folder


def main() -> None:
    commands: dict[str, Callable[..., Tastes | Table]] = {"movielens-tastes": Tastes, "table": Table}
    with told():
        run(read_one_of(commands, description=__doc__))


if __name__ == "__main__":
    main()
