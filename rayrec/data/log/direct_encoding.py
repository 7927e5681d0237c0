"""A few rows of Python values to a batch, without Arrow between: the same ids and numbers as ``LogEncoder`` and ``collate`` give.

Arrow is fast by the row and slow by the call; the twenty candidates of a request are 27 columns of 20 rows.
"""

from collections.abc import Mapping, Sequence
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
        self._encoder, schema = encoder, encoder.schema
        self._dense = [f.name for f in schema.dense]
        self._must_be_there = np.array([not f.allow_missing for f in schema.dense], bool)
        self._coders: list[CategoricalFeature] = [
            *schema.categorical,
            *(schema.encoder_of(f) for f in schema.sequences),
        ]
        self._missing = [frozenset((None, *(c.missing_spellings if c.missing_values else ()))) for c in self._coders]
        self._hashed = [i for i, c in enumerate(self._coders) if c.encoding == "hash"]
        self._buckets = np.array([self._coders[i].buckets for i in self._hashed], np.uint64)

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Batch, dict[str, NDArray[np.int64]]]:
        """A batch without labels, and the unknown values by feature and row, as ``LogEncoder.encode_and_count`` has them.

        columns: n values a feature, None = missing. Raises EncodingError for a value that the schema does not allow.
        """
        batch = self._encode(columns)
        if batch is not None:
            return batch
        table, unknown = self._encoder.encode_and_count(columns)  # which says what is wrong, and where
        return collate(table, self._encoder.schema, labels=False), unknown

    def _encode(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Batch, dict[str, NDArray[np.int64]]] | None:
        """None when something may be wrong."""
        schema, strip = self._encoder.schema, self._encoder.schema.strips_blanks
        try:
            n = len(columns[schema.features[0].name])
            dense = np.array([columns[name] for name in self._dense], np.float64).reshape(len(self._dense), n)
            for row, number in enumerate(schema.dense):
                if number.missing_values:
                    dense[row] = as_numbers(pa.array(dense[row]), number.missing_values).values
            texts = [[spelled(value, strip) for value in columns[f.name]] for f in schema.categorical]
            lists = [
                [[spelled(value, strip) for value in (values or ())[-f.max_length :]] for values in columns[f.name]]
                for f in schema.sequences
            ]
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if any(isinstance(values, str) for f in schema.sequences for values in columns[f.name]):
            return None
        if any(len(values) != n for values in texts) or any(len(rows) != n for rows in lists):
            return None
        if (np.abs(dense) >= _EXACT).any() or np.isnan(dense[self._must_be_there]).any():
            return None
        texts += [[value for values in rows for value in values] for rows in lists]
        ids = self._ids(texts)
        fields = len(schema.categorical)
        unknown: dict[str, NDArray[np.int64]] = {}
        for i, feature in enumerate(schema.categorical):
            if not feature.allow_missing and not ids[i].all():
                return None
            if ids[i].min(initial=0) < 0:
                unknown[feature.name] = (ids[i] < 0).astype(np.int64)
        sequences = []
        for sequence, rows, flat in zip(schema.sequences, lists, ids[fields:], strict=True):
            matrix = np.zeros((n, sequence.max_length), np.int64)
            lengths = np.array([len(values) for values in rows])
            matrix[np.arange(sequence.max_length) < lengths[:, None]] = flat
            if flat.min(initial=0) < 0:
                unknown[sequence.name] = (matrix < 0).sum(1)
            sequences.append(torch.from_numpy(np.maximum(matrix, 0)))
        categorical = np.stack(ids[:fields], axis=1) if fields else np.zeros((n, 0), np.int64)
        batch = Batch(
            dense=torch.from_numpy(np.ascontiguousarray(dense.T, np.float32)),
            categorical=torch.from_numpy(np.maximum(categorical, 0)),
            labels=torch.full((n, len(schema.tasks)), torch.nan),
            sequences=tuple(sequences),
        )
        return batch, unknown

    def _ids(self, texts: list[list[str | None]]) -> list[NDArray[np.int64]]:
        """Of each coder's texts, int64: 0 = missing, -1 = unknown; all hashes in one pass."""
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(texts)
        for i, coder in enumerate(self._coders):
            if coder.encoding == "vocabulary":
                known = self._encoder.vocabulary_of(coder.name)
                ids[i] = np.array([0 if text is None else known.get(text, -1) for text in texts[i]], np.int64)
        if not self._hashed:
            return ids
        sizes = [len(texts[i]) for i in self._hashed]
        joined = [text for i in self._hashed for text in texts[i]]
        found = (hash_strings(pa.array(joined, pa.string())) % np.repeat(self._buckets, sizes)).astype(np.int64) + 1
        there = [text not in self._missing[i] for i in self._hashed for text in texts[i]]
        found *= np.array(there, np.int64)
        for i, part in zip(self._hashed, np.split(found, np.cumsum(sizes)[:-1]), strict=True):
            ids[i] = part
        return ids
