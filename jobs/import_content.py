"""Raw files to a content log: python -m jobs.import_content movielens-tastes --source FOLDER --out CONTENT.

Items with text, users with histories and what was written of them, impressions with candidates; see rayrec/data/content/log.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import tyro

from jobs.command_line import read_one_of
from rayrec.data.content import ContentLog, write_content
from rayrec.data.content.log import CONTENT_FILE
from rayrec.data.public.content_bing import BingNews
from rayrec.data.public.content_ebnerd import Ebnerd
from rayrec.data.public.content_goodreads import GoodreadsOnce
from rayrec.data.public.content_goodreads_json import GoodreadsJson
from rayrec.data.public.content_mind import Mind
from rayrec.data.public.content_movielens import MovielensTastes
from rayrec.data.public.content_scientific import AmazonScientific
from rayrec.data.public.content_table import OwnTables
from rayrec.errors import told
from rayrec.files import check_replaceable


class Reader(Protocol):
    """An importer: a frozen dataclass of its options."""

    def read(self, source: Path) -> ContentLog: ...


@dataclass(frozen=True)
class Import:
    """Where from and where to."""

    source: Path
    """Folder of the raw files."""
    out: Path
    """Folder to write; it appears whole or not at all."""
    overwrite: bool = False
    """Replace a log that is there."""


@dataclass(frozen=True)
class _MovielensTastes(Import):
    """Films that 1,000 users like, with tastes that an LLM wrote of them."""

    reader: Annotated[MovielensTastes, tyro.conf.arg(name="")] = field(default_factory=MovielensTastes)
    """How the files are read."""


@dataclass(frozen=True)
class _GoodreadsOnce(Import):
    """Books that 23,089 users like, with interests that an LLM wrote of them."""

    reader: Annotated[GoodreadsOnce, tyro.conf.arg(name="")] = field(default_factory=GoodreadsOnce)
    """How the files are read."""


@dataclass(frozen=True)
class _Mind(Import):
    """MIND of any size: a folder of unpacked archives, each with news.tsv and behaviors.tsv."""

    reader: Annotated[Mind, tyro.conf.arg(name="")] = field(default_factory=Mind)
    """How the files are read."""


@dataclass(frozen=True)
class _BingNews(Import):
    """The released sample of Bing News clicks: titles only."""

    reader: Annotated[BingNews, tyro.conf.arg(name="")] = field(default_factory=BingNews)
    """How the files are read."""


@dataclass(frozen=True)
class _Ebnerd(Import):
    """EB-NeRD of any size, with the texts of articles.parquet where it is there."""

    reader: Annotated[Ebnerd, tyro.conf.arg(name="")] = field(default_factory=Ebnerd)
    """How the files are read."""


@dataclass(frozen=True)
class _Scientific(Import):
    """Products that users of Amazon Scientific bought, in their order in time."""

    reader: Annotated[AmazonScientific, tyro.conf.arg(name="")] = field(default_factory=AmazonScientific)
    """How the files are read."""


@dataclass(frozen=True)
class _GoodreadsJson(Import):
    """Goodreads' public JSON lines: books, and ratings in their order in time."""

    reader: Annotated[GoodreadsJson, tyro.conf.arg(name="")] = field(default_factory=GoodreadsJson)
    """How the files are read."""


@dataclass(frozen=True)
class _OwnTables(Import):
    """Own items, histories and impressions: Parquet, CSV or JSON lines."""

    reader: Annotated[OwnTables, tyro.conf.arg(name="")] = field(default_factory=OwnTables)
    """How the files are read."""


COMMANDS: dict[str, Any] = {
    "movielens-tastes": _MovielensTastes, "goodreads-once": _GoodreadsOnce, "goodreads": _GoodreadsJson, "mind": _Mind,
    "bing-news": _BingNews, "ebnerd": _Ebnerd, "scientific": _Scientific, "table": _OwnTables,
}  # fmt: skip


def run(command: Any) -> Path:
    """Import, write and print what is there."""
    check_replaceable(command.out, CONTENT_FILE, overwrite=command.overwrite)
    log = command.reader.read(command.source)
    folder = write_content(command.out, log, overwrite=command.overwrite)
    shown = log.impressions
    print(
        f"{folder}: {len(log.items):,} items, {len(log.users):,} users, {len(log.histories):,} histories "
        f"(median {int(np.median(log.histories.lengths))} items)"
    )
    for split in ("train", "valid", "test"):
        rows = shown.rows(split)
        candidates = shown.candidates.lengths[rows]
        print(f"{split}: {len(rows):,} impressions, {candidates.mean() if len(rows) else 0:.1f} candidates each")
    for version, texts in log.user_texts.items():
        print(f"user texts {version!r}: by {texts.generator}")
    for name, value in log.notes.items():
        print(f"{name}: {value}")
    return folder


def main() -> None:
    with told():
        run(read_one_of(COMMANDS, description=__doc__))


if __name__ == "__main__":
    main()
