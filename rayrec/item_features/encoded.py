"""The items' features as one ranker reads them: encoded once for all items, so that a candidate costs a row of two matrices.

Numbers and codes only; lists of codes are encoded with the request. The matrices lie beside the mapped table, one pair for each
table and schema, and are mapped like it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema
from rayrec.files import locked, make_folder, whole_file
from rayrec.item_features.pairs import ItemFeaturesError
from rayrec.item_features.table import ItemTable
from rayrec.typed_json import to_json

_BLOCK = 65_536  # rows encoded at a time


class EncodedItems:
    """dense, codes: names of the features, by column. Immutable; may be shared by threads."""

    def __init__(
        self, dense: tuple[str, ...], codes: tuple[str, ...], numbers: NDArray[np.float32], ids: NDArray[np.int32]
    ) -> None:
        self.dense, self.codes, self._numbers, self._ids = dense, codes, numbers, ids

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.dense, *self.codes))

    def rows(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """By feature, (n,): numbers float32, NaN = missing; ids int32, 0 = missing, -1 = unknown."""
        numbers, ids = self._numbers[rows], self._ids[rows]
        found: dict[str, NDArray[Any]] = {name: numbers[:, i] for i, name in enumerate(self.dense)}
        return found | {name: ids[:, i] for i, name in enumerate(self.codes)}


def encode_items(table: ItemTable, schema: LogSchema, mapped: Path) -> EncodedItems:
    """What ``schema`` reads of the table, whose types it must fit (``ItemTable.check``). Raises EncodingError, DiskError."""
    there = table.schema.kinds
    features = [f for f in schema.features if isinstance(f, DenseFeature | CategoricalFeature) and f.name in there]
    dense = tuple(f.name for f in features if isinstance(f, DenseFeature))
    codes = tuple(f.name for f in features if isinstance(f, CategoricalFeature))
    own = schema.with_features(tuple(features))
    digest = hashlib.sha256(f"{table.digest} {to_json(own)}".encode()).hexdigest()[:32]
    files = [make_folder(mapped) / f"encoded-{digest}-{part}.npy" for part in ("numbers", "ids")]
    with locked(mapped / "encoding.lock"):
        if not all(file.is_file() for file in files):
            _write(table, own, dense, codes, files)
    return EncodedItems(
        dense, codes, _map(files[0], (len(table), len(dense))), _map(files[1], (len(table), len(codes)))
    )


def _write(
    table: ItemTable, schema: LogSchema, dense: tuple[str, ...], codes: tuple[str, ...], files: list[Path]
) -> None:
    """Block by block, so that memory is that of one."""
    encoder = LogEncoder(schema)
    with whole_file(files[0]) as first, whole_file(files[1]) as second:
        numbers = _matrix(first, np.float32, len(table), len(dense))
        ids = _matrix(second, np.int32, len(table), len(codes))
        for start in range(0, len(table), _BLOCK):
            block, unknown = encoder.encode_table_and_count(table.block(start, _BLOCK))
            for i, name in enumerate(dense):
                numbers[start : start + _BLOCK, i] = block[name].to_numpy(zero_copy_only=False)
            for i, name in enumerate(codes):
                found = block[name].to_numpy()
                ids[start : start + _BLOCK, i] = found - unknown[name] if name in unknown else found
        for file, matrix in ((first, numbers), (second, ids)):
            if isinstance(matrix, np.memmap):
                matrix.flush()
            else:
                with file.open("wb") as stream:
                    np.save(stream, matrix)


def _matrix(file: Path, kind: Any, rows: int, columns: int) -> NDArray[Any]:
    """One in a file; an empty one, which cannot be mapped, in memory."""
    if rows and columns:
        return np.lib.format.open_memmap(file, "w+", kind, (rows, columns))
    return np.zeros((rows, columns), kind)


def _map(file: Path, shape: tuple[int, int]) -> NDArray[Any]:
    found: NDArray[Any] = np.load(file, mmap_mode="r" if all(shape) else None)
    if found.shape != shape:
        raise ItemFeaturesError(f"{file}: has shape {found.shape}, not {shape}")
    return found
