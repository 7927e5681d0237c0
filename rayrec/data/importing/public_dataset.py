"""What a public data set tells the import: its schema, its split, and how its raw rows become the schema's columns.

A new one is one file that makes a ``PublicDataset``, and its name in ``public.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayrec.data.importing.checking import RawSource
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.splitting import SplitRule


@dataclass(frozen=True)
class PublicDataset:
    """folder: where its files are below RAYREC_DATA. open_source: from that folder (or the file or folder that a user names) to
    raw rows; raises SourceError when files are absent. open_unlabeled: the same for rows without labels, where there are some.
    """

    schema: LogSchema
    folder: str
    split: SplitRule
    open_source: Callable[[Path], RawSource]
    open_unlabeled: Callable[[Path], RawSource] | None = None
