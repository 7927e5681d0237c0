"""What a public data set tells the import: its schema, its split, and how its raw rows become the schema's columns.

A new one is one file in ``rayrec/data/public`` that makes a ``PublicDataset``; it is found by its schema's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayrec.data.importing.checking import RawSource
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.splitting import SplitRule

Signal = Literal["strong", "weak", "few rows a value"]
"""How much rows tell of their labels: much, by few values seen often; little, by ids seen tens of times; ids seen a few times."""


@dataclass(frozen=True)
class PublicDataset:
    """folder: where its files are below RAYREC_DATA. open_source: from that folder (or the file or folder that a user names) to
    raw rows; raises SourceError when files are absent. open_unlabeled: the same for rows without labels, where there are some.
    signal: by which a ranker's starting settings are chosen.
    """

    schema: LogSchema
    folder: str
    split: SplitRule
    open_source: Callable[[Path], RawSource]
    open_unlabeled: Callable[[Path], RawSource] | None = None
    signal: Signal = "weak"
