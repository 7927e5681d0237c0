"""Criteo Display Advertising, Kaggle format: label, 13 integers, 26 categories; tabs, no header, plain or gzip, any size.

The file covers seven days in order but does not tell the time, and a served model always meets later traffic than it was trained
on: split by position, 70 / 10 / 20. Categories seen fewer than 4 times in training are unknown, at most 200,000 a field are kept.
"""

from itertools import chain
from pathlib import Path

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import SourceError, find_files, read_delimited
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, TaskLabel
from rayrec.data.log.splitting import OrderSplit

_NUMBERS = tuple(f"I{i}" for i in range(1, 14))
_CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("click", *_NUMBERS, *_CATEGORIES)


def _open_source(source: Path) -> RawSource:
    files = find_files(source, "*.tsv", "*.tsv.gz", "*.txt", "*.txt.gz", "day_*")
    labeled = [
        file for file in files if not file.name.startswith(("test", "readme"))
    ]  # Kaggle's test file has no labels
    if not labeled:
        raise SourceError(f"{source}: only a test file, which has no labels; train.txt is needed")
    return RawSource(
        "criteo",
        lambda: chain.from_iterable(read_delimited(file, "\t", columns=COLUMNS, quoting=False) for file in labeled),
    )


CRITEO = PublicDataset(
    schema=LogSchema(
        name="criteo",
        features=(
            *(DenseFeature(name, transform="log1p") for name in _NUMBERS),
            *(CategoricalFeature(name, min_count=4, max_size=200_000) for name in _CATEGORIES),
        ),
        tasks=(TaskLabel("click"),),
    ),
    folder="criteo_kaggle_10k",
    split=OrderSplit(),
    open_source=_open_source,
)
