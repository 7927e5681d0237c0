"""A few rows of Python values to a batch, without Arrow between: the same ids and numbers as ``LogEncoder`` and ``collate`` give.

Arrow is fast by the row and slow by the call; the twenty candidates of a request are 27 columns of 20 rows.
"""

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayrec.batch import Batch
from rayrec.data.log.collate import collate
from rayrec.data.log.encoding import LogEncoder, spelled
from rayrec.data.log.hashing import hash_strings
from rayrec.data.log.raw_columns import as_numbers
from rayrec.data.log.schema import CategoricalFeature

_EXACT = 2.0**53  # beyond it an integer may not be what was given


class DirectEncoder:
    """Encodes by a fitted schema. Immutable; may be shared by threads."""

    def __init__(self, encoder: LogEncoder) -> None:
        self._encoder, self._schema = encoder, encoder.schema
        self._dense, self._categorical, self._sequences = (
            self._schema.dense,
            self._schema.categorical,
            self._schema.sequences,
        )
        self._numbers_needed = np.array([not f.allow_missing for f in self._dense], bool)
        self._ids_needed = np.array([not f.allow_missing for f in self._categorical], bool)
        self._coders: list[CategoricalFeature] = [
            *self._categorical,
            *(self._schema.encoder_of(f) for f in self._sequences),
        ]
        self._coded = [*(f.name for f in self._categorical), *(f.name for f in self._sequences)]
        self._missing = [frozenset((None, *(c.missing_spellings if c.missing_values else ()))) for c in self._coders]

    def encode(
        self,
        columns: Mapping[str, Sequence[Any]],
        shared: Mapping[str, Sequence[Any]] | None = None,
        repeats: Sequence[int] = (),
        encoded: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> tuple[Batch, dict[str, NDArray[np.int64]]]:
        """A batch without labels, and the unknown values by feature and row, as ``LogEncoder.encode_and_count`` has them.

        columns: n values a feature, None = missing. shared: of other features, one value for each of the ``repeats``, which
        holds for so many rows and is encoded once; ``repeats`` add up to n. encoded: further numbers and codes, (n,), as
        ``rayrec.item_features.encoded`` has them.
        Raises EncodingError for a value that the schema does not allow.
        """
        shared = shared or {}
        times = np.asarray(repeats, np.int64)
        found = self._encode({**columns, **shared}, shared.keys(), times, encoded)
        if found is not None:
            return found
        spread = {name: [v for v, n in zip(vs, repeats, strict=True) for _ in range(n)] for name, vs in shared.items()}
        instead = {name: [self._allowed(name)] * len(values) for name, values in encoded.items()}
        # which says what is wrong, and where
        table, unknown = self._encoder.encode_and_count({**columns, **spread, **instead})
        for name, values in encoded.items():
            column = pa.array(np.maximum(values, 0) if name in self._coded else values, from_pandas=True)
            table = table.set_column(table.schema.get_field_index(name), name, column)
            if name in self._coded and values.min(initial=0) < 0:
                unknown[name] = (values < 0).astype(np.int64)
        return collate(table, self._schema, labels=False), unknown

    def _allowed(self, name: str) -> float | str:
        """Some value that a feature takes."""
        if name not in self._coded:
            return 0.0
        vocabulary = self._coders[self._coded.index(name)].vocabulary
        return vocabulary[0] if vocabulary else "x"

    def _encode(
        self,
        given: Mapping[str, Sequence[Any]],
        shared: Set[str],
        repeats: NDArray[np.int64],
        encoded: Mapping[str, NDArray[Any]],
    ) -> tuple[Batch, dict[str, NDArray[np.int64]]] | None:
        """None when something may be wrong. shared: names of what is given once for each of ``repeats``."""
        try:
            n = int(repeats.sum()) if len(repeats) else len(given[self._schema.features[0].name])
            dense = self._numbers(given, shared, repeats, n, encoded)
            texts = [self._spelled(given[f.name]) if f.name not in encoded else [] for f in self._categorical]
            lists = [
                [self._spelled((values or ())[-f.max_length :]) for values in given[f.name]] for f in self._sequences
            ]
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if any(isinstance(values, str) for f in self._sequences for values in given[f.name]):
            return None
        if any(
            len(given[name]) != (len(repeats) if name in shared else n) for name in self._coded if name not in encoded
        ):
            return None
        raw = [i for i, f in enumerate(self._dense) if f.name not in encoded]
        if (np.abs(dense[raw]) >= _EXACT).any() or np.isnan(dense[self._numbers_needed]).any():
            return None
        ids = self._ids([*texts, *([value for values in rows for value in values] for rows in lists)])
        categorical = np.empty((len(texts), n), np.int64)
        for i, feature in enumerate(self._categorical):
            if feature.name in encoded:
                categorical[i] = encoded[feature.name]
            else:
                categorical[i] = ids[i].repeat(repeats) if feature.name in shared else ids[i]
        if not categorical[self._ids_needed].all():
            return None
        unknown: dict[str, NDArray[np.int64]] = {}
        if categorical.min(initial=0) < 0:
            unknown = {
                self._categorical[i].name: (categorical[i] < 0).astype(np.int64)
                for i in np.flatnonzero((categorical < 0).any(axis=1))
            }
            categorical.clip(0, out=categorical)
        sequences = []
        for sequence, rows, flat in zip(self._sequences, lists, ids[len(texts) :], strict=True):
            matrix = np.zeros((len(rows), sequence.max_length), np.int64)
            lengths = np.array([len(values) for values in rows])
            matrix[np.arange(sequence.max_length) < lengths[:, None]] = flat
            if sequence.name in shared:
                matrix = matrix.repeat(repeats, axis=0)
            if flat.min(initial=0) < 0:
                unknown[sequence.name] = (matrix < 0).sum(1)
            sequences.append(torch.from_numpy(np.maximum(matrix, 0)))
        batch = Batch(
            dense=torch.from_numpy(np.ascontiguousarray(dense.T, np.float32)),
            categorical=torch.from_numpy(np.ascontiguousarray(categorical.T)),
            labels=torch.full((n, len(self._schema.tasks)), torch.nan),
            sequences=tuple(sequences),
        )
        return batch, unknown

    def _numbers(
        self,
        given: Mapping[str, Sequence[Any]],
        shared: Set[str],
        repeats: NDArray[np.int64],
        n: int,
        encoded: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.float64]:
        """(dense features, n), NaN = missing."""
        dense = np.empty((len(self._dense), n))
        own = [i for i, f in enumerate(self._dense) if f.name not in shared and f.name not in encoded]
        once = [i for i, f in enumerate(self._dense) if f.name in shared]
        for i, f in enumerate(self._dense):
            if f.name in encoded:
                dense[i] = encoded[f.name]
        if own:
            dense[own] = np.array([given[self._dense[i].name] for i in own], np.float64).reshape(len(own), n)
        if once:
            dense[once] = np.array([given[self._dense[i].name] for i in once], np.float64).repeat(repeats, axis=1)
        for row, number in enumerate(self._dense):
            if number.missing_values and number.name not in encoded:
                dense[row] = as_numbers(pa.array(dense[row]), number.missing_values).values
        return dense

    def _spelled(self, values: Sequence[Any]) -> list[str | None]:
        if self._schema.strips_blanks:
            return [value.strip() if type(value) is str else spelled(value, True) for value in values]
        return [value if type(value) is str else spelled(value, False) for value in values]

    def _ids(self, texts: list[list[str | None]]) -> list[NDArray[np.int64]]:
        """Of each coder's texts, int64: 0 = missing, -1 = unknown; all hashes in one pass."""
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(texts)
        joined: list[str | None] = []
        there: list[bool] = []
        buckets: list[int] = []
        hashed = []
        for i, (coder, missing) in enumerate(zip(self._coders, self._missing, strict=True)):
            if coder.encoding == "vocabulary":
                known = self._encoder.vocabulary_of(coder.name)
                ids[i] = np.array([0 if text is None else known.get(text, -1) for text in texts[i]], np.int64)
            else:
                hashed.append(i)
                joined += texts[i]
                there += [text not in missing for text in texts[i]]
                buckets += [coder.size - 1] * len(texts[i])
        if hashed:
            found = (hash_strings(pa.array(joined, pa.string())) % np.array(buckets, np.uint64)).astype(np.int64) + 1
            found *= np.array(there, np.int64)
            start = 0
            for i in hashed:
                ids[i] = found[start : start + len(texts[i])]
                start += len(texts[i])
        return ids
