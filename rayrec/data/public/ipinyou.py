"""iPinYou display ads in the libFM form of Zhang, Du and Wang, "Deep Learning over Multi-field Categorical Data" (ECIR 2016):
a click and one index a field on each line, made readable again through the index of features.

Test is the file for test; a tenth of the training rows, by a hash of the row, is for validation.
"""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import SourceError, find_files, read_delimited
from rayrec.data.log.raw_columns import as_numbers
from rayrec.data.log.schema import CategoricalFeature, LogSchema, TaskLabel
from rayrec.data.log.splitting import FileSplit

FIELDS = (
    "weekday",
    "hour",
    "useragent",
    "IP",
    "region",
    "city",
    "adexchange",
    "domain",
    "slotid",
    "slotwidth",
    "slotheight",
    "slotvisibility",
    "slotformat",
    "creative",
    "advertiser",
    "slotprice",
)
_RARE = 2  # values of high-cardinality fields seen once say nothing about the next row


def _open_source(source: Path) -> RawSource:
    train = find_files(source, "train.fm.txt")[0]
    test = find_files(source, "test.fm.txt")[0]
    index = FeatureIndex(find_files(source, "featindex.fm.txt")[0])
    columns = ("click", *FIELDS)
    return RawSource(
        "ipinyou",
        lambda: chain(
            read_delimited(train, " ", columns=columns, split="train", quoting=False),
            read_delimited(test, " ", columns=columns, split="test", quoting=False),
        ),
        columns_of=lambda raw: pa.table(
            {"click": raw.column("click")} | {field: index.values(raw.column(field), field) for field in FIELDS}
        ),
    )


class FeatureIndex:
    """Which field and value an index stands for; read from lines of ``field:value TAB index``."""

    def __init__(self, path: Path) -> None:
        lines = pa.concat_tables(
            chunk.table for chunk in read_delimited(path, "\t", columns=("name", "index"), quoting=False)
        )
        index = as_numbers(lines.column("index")).values
        names = lines.column("name").combine_chunks()
        parts = pc.split_pattern(names, ":", max_splits=1)
        if (
            not np.array_equal(np.sort(index), np.arange(len(index)))
            or pc.min(pc.list_value_length(parts)).as_py() != 2
        ):
            raise SourceError(f"{path}: expected lines of field:value TAB index, indices 0 to {len(index) - 1:,}")
        order = pa.array(np.argsort(index))
        self._fields = pc.list_element(parts, 0).take(order)
        self._values = pc.list_element(parts, 1).take(order)

    def values(self, column: pa.ChunkedArray, field: str) -> pa.DictionaryArray:
        """``index:1`` to the field's value; null where the index is no value of this field."""
        encoded = column.combine_chunks().dictionary_encode()
        index = as_numbers(pc.replace_substring_regex(encoded.dictionary, ":1$", "")).values
        known = np.isfinite(index) & (index >= 0) & (index < len(self._fields)) & (index == np.floor(index))
        rows = pa.array(np.where(known, index, 0).astype(np.int64), mask=~known)
        own = pc.equal(self._fields.take(rows), field)
        values = pc.if_else(own, self._values.take(rows), None)
        return pa.DictionaryArray.from_arrays(encoded.indices, values)


IPINYOU = PublicDataset(
    schema=LogSchema(
        name="ipinyou",
        features=tuple(
            CategoricalFeature(
                field,
                min_count=_RARE if field in ("IP", "domain", "slotid") else 1,
                allow_missing=False,
                missing_values=(),
            )
            for field in FIELDS
        ),
        tasks=(TaskLabel("click"),),
    ),
    folder="ipinyou_deepctr",
    split=FileSplit(),
    open_source=_open_source,
    signal="few rows a value",
)
