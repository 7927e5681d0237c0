"""The public data sets by name, and their import from a folder below RAYREC_DATA or any other.

A new one is one file in this folder that makes a ``PublicDataset``; its schema's name is what users call it.
"""

import os
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rayrec.data import public
from rayrec.data.importing.importing import ImportOptions, import_log
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import SourceError
from rayrec.data.log import Log, check_log_place
from rayrec.data.log.splitting import HashSplit


def find_datasets() -> dict[str, PublicDataset]:
    """Every ``PublicDataset`` that a module of this folder makes, by name, in the order of the alphabet. Raises ValueError when
    two have the same name."""
    found: dict[str, PublicDataset] = {}
    for module in pkgutil.iter_modules(public.__path__, f"{public.__name__}."):
        if module.name != __name__:
            for value in vars(import_module(module.name)).values():
                if isinstance(value, PublicDataset) and found.setdefault(value.schema.name, value) is not value:
                    raise ValueError(f"two public data sets are called {value.schema.name!r}")
    return dict(sorted(found.items()))


PUBLIC_DATASETS = find_datasets()
if TYPE_CHECKING:
    PublicName = str
else:
    PublicName = Literal[tuple(PUBLIC_DATASETS)]  # what a command line offers


def import_public(
    name: PublicName,
    out: Path | str,
    source: Path | str | None = None,
    *,
    unlabeled: Path | str | None = None,
    options: ImportOptions | None = None,
) -> Path:
    """Import a public data set as the log ``out``; returns ``out``.

    source: its file or folder (default: its folder below RAYREC_DATA). unlabeled: also write its rows without labels as that
    log, encoded like ``out``. Raises SourceError (absent or broken files, no unlabeled rows), LogError (a log exists already).
    """
    dataset = PUBLIC_DATASETS[name]
    place = Path(source) if source is not None else default_source(dataset)
    if unlabeled is not None and dataset.open_unlabeled is None:
        raise SourceError(f"{name}: this data set has no unlabeled rows")
    for log in (out, unlabeled):
        if log is not None:
            check_log_place(Path(log), overwrite=options is not None and options.overwrite)
    import_log(dataset.open_source(place), dataset.schema, dataset.split, Path(out), options)
    if unlabeled is not None and dataset.open_unlabeled is not None:
        everything = HashSplit(valid_share=0.0, test_share=0.0)
        import_log(dataset.open_unlabeled(place), Log.open(out).schema, everything, Path(unlabeled), options)
    return Path(out)


def default_source(dataset: PublicDataset) -> Path:
    """The data set's folder below RAYREC_DATA. Raises SourceError when it is not there."""
    root = Path(os.environ.get("RAYREC_DATA", "../shared/data"))
    if not (root / dataset.folder).is_dir():
        raise SourceError(
            f"{root / dataset.folder}: no such folder; download {dataset.schema.name}, then name its folder as the source "
            "or set RAYREC_DATA to the folder above it"
        )
    return root / dataset.folder
