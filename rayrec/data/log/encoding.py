"""Raw columns to the encoded feature columns of a log: the one way from raw values to ids, at import and in serving.

encoder = LogEncoder(bundle.schema)                 # once: builds the dictionaries
table = encoder.encode_values({"age": [31, None], "item": ["b7", 12], "history": [["b7"], []]})
batch = collate(table, bundle.schema, labels=False)
"""

from collections.abc import Mapping, Sequence, Set
from copy import copy
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.hashing import bucket_ids, hash_strings
from rayrec.data.log.raw_columns import CodeLists, Codes, Numbers
from rayrec.data.log.row_checks import CheckedColumns, ColumnError, check_features
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, Feature, LogSchema, SchemaError, SequenceFeature
from rayrec.errors import UserError


class EncodingError(UserError):
    """Raw values that do not fit the schema; names the column and the first wrong row."""


class LogEncoder:
    """Encodes features by a fitted schema. Immutable after construction; may be shared by threads.

    Dense values stay in raw units, float32, null = missing. A category becomes its int32 id: 0 = missing or unknown, 1.. by
    vocabulary or by 1 + hash % buckets. A sequence keeps its last ``max_length`` ids (list<int32>). Text is cut to
    ``max_characters``. Raises SchemaError when the schema is not fitted.
    """

    def __init__(self, schema: LogSchema) -> None:
        if not schema.fitted:
            raise SchemaError(f"schema {schema.name!r}: vocabularies or statistics are missing; it was not fitted yet")
        self.schema = schema
        self._coders: dict[str, CategoricalFeature] = {f.name: f for f in schema.categorical}
        self._coders |= {f.name: schema.encoder_of(f) for f in schema.sequences}
        self._missing = {c.name: pa.array(c.missing_spellings, pa.string()) for c in self._coders.values()}
        self._ids: dict[str, dict[str, int]] = {}
        for coder in self._coders.values():
            if coder.encoding == "vocabulary" and coder.name not in self._ids:
                assert coder.vocabulary is not None  # a fitted schema has it
                self._ids[coder.name] = {value: i for i, value in enumerate(coder.vocabulary, start=1)}
                self._ids[coder.name] |= dict.fromkeys(coder.missing_spellings, 0)

    def part(self, names: Set[str]) -> "LogEncoder":
        """Of these features alone, by the same dictionaries."""
        found, own = copy(self), []
        for feature in self.schema.features:
            if (
                isinstance(feature, SequenceFeature) and feature.shares is not None
            ):  # with what it shared, perhaps, elsewhere
                c = self._coders[feature.name]
                feature = replace(
                    feature, shares=None, encoding=c.encoding, buckets=c.buckets, vocabulary=c.vocabulary
                )  # fmt: skip
            if feature.name in names:
                own.append(feature)
        found.schema = self.schema.with_features(tuple(own))
        found._coders = {name: coder for name, coder in self._coders.items() if name in names}
        return found

    def vocabulary_of(self, coder: str) -> Mapping[str, int]:
        """The ids of a categorical feature's values, or of a sequence's own; those of missing ones are 0."""
        return self._ids[coder]

    def encode(self, raw: pa.Table) -> pa.Table:
        """The feature columns of ``rayrec.data.log.arrow_schema`` for all rows of ``raw`` (further columns are ignored).

        Raises EncodingError when a feature's column is absent, or holds a wrong type or a value that the schema does not allow.
        """
        return pa.table(self.encode_checked(self._checked(raw)))

    def encode_table_and_count(self, raw: pa.Table) -> tuple[dict[str, pa.Array], dict[str, NDArray[np.int64]]]:
        """``encode`` by column, and the unknown values of each row as ``encode_and_count`` has them."""
        unknown: dict[str, NDArray[np.int64]] = {}
        return self.encode_checked(self._checked(raw), unknown), unknown

    def encode_values(self, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
        """``encode`` for plain Python values, one sequence of equal length a feature; None = missing.

        Numbers for dense features; strings, integers or booleans for categories; lists of these for sequences.
        """
        return self.encode_and_count(columns)[0]

    def encode_and_count(self, columns: Mapping[str, Sequence[Any]]) -> tuple[pa.Table, dict[str, NDArray[np.int64]]]:
        """``encode_values``, and how many values of each row were unknown, (n,) int64, by feature.

        Unknown is what a vocabulary does not have; missing is not unknown, and a hash knows everything. Of a sequence the values
        that are kept count. Features without an unknown value are left out.
        """
        raw = {}
        for feature in self.schema.features:
            if feature.name not in columns:
                raise EncodingError(f"column {feature.name!r} is absent")
            raw[feature.name] = _array_of(feature, columns[feature.name], strip=self.schema.strips_blanks)
        try:
            checked = self._checked(pa.table(raw), stripped=True)
        except pa.ArrowInvalid as error:
            raise EncodingError(f"columns of different lengths: {error}") from None
        unknown: dict[str, NDArray[np.int64]] = {}
        return pa.table(self.encode_checked(checked, unknown)), unknown

    def _checked(self, raw: pa.Table, *, stripped: bool = False) -> CheckedColumns:
        try:
            checked = check_features(self.schema, raw, stripped=stripped)
        except ColumnError as error:
            raise EncodingError(str(error)) from None
        for problem in checked.problems:
            row = int(np.flatnonzero(problem.rows)[0])
            given = raw.column(problem.column)[row].as_py()
            raise EncodingError(f"column {problem.column!r}, row {row}: {problem.what} (given: {given!r:.80})")
        return checked

    def encode_checked(
        self, checked: CheckedColumns, unknown: dict[str, NDArray[np.int64]] | None = None
    ) -> dict[str, pa.Array]:
        """The feature columns by name, in schema order; bad values become missing ones. unknown: is filled in, see
        ``encode_and_count``."""
        hashes = self._hashes(checked)
        encoded: dict[str, pa.Array] = {}
        for feature in self.schema.features:
            column = checked.columns[feature.name]
            if isinstance(column, Numbers):
                encoded[feature.name] = pa.array(column.values.astype(np.float32), from_pandas=True)
            elif isinstance(column, Codes):
                ids = self._ids_of(feature.name, column, hashes)
                if unknown is not None and ids.min(initial=0) < 0:
                    unknown[feature.name] = (ids < 0).astype(np.int64)
                encoded[feature.name] = pa.array(np.maximum(ids, 0))
            elif isinstance(column, CodeLists):
                assert isinstance(feature, SequenceFeature)
                ids = self._ids_of(feature.name, column.codes, hashes)
                offsets, ids = _last(column.offsets, ids, feature.max_length)
                if unknown is not None and ids.min(initial=0) < 0:
                    before = np.concatenate([[0], np.cumsum(ids < 0)])
                    unknown[feature.name] = before[offsets[1:]] - before[offsets[:-1]]
                encoded[feature.name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.maximum(ids, 0)))
            else:
                encoded[feature.name] = column
        return encoded

    def _ids_of(self, name: str, codes: Codes, hashes: Mapping[str, NDArray[np.uint64]]) -> NDArray[np.int32]:
        """(n,) int32 ids, 0 = missing, -1 = unknown; ids are found for the distinct values and then spread over the rows."""
        coder = self._coders[name]
        ids = np.zeros(len(codes.values) + 1, np.int32)  # the last one is picked by index -1: missing
        if name in hashes:
            assert coder.buckets is not None  # LogSchema checks it
            ids[:-1] = bucket_ids(hashes[name], coder.buckets)
            if coder.missing_values:
                missing = pc.is_in(codes.values, value_set=self._missing[coder.name])
                ids[:-1][missing.to_numpy(zero_copy_only=False)] = 0
        else:
            found = map(self._ids[coder.name].get, codes.values.to_pylist(), repeat(-1))
            ids[:-1] = np.fromiter(found, np.int32, len(codes.values))
        return ids[codes.index]

    def _hashes(self, checked: CheckedColumns) -> dict[str, NDArray[np.uint64]]:
        """Hashes of the distinct values of all hashed features, in one pass: few calls matter for small requests."""
        values = {}
        for name, coder in self._coders.items():
            column = checked.columns[name]
            codes = column.codes if isinstance(column, CodeLists) else column
            if coder.encoding == "hash" and isinstance(codes, Codes):
                values[name] = codes.values
        if not values:
            return {}
        hashes = hash_strings(pa.concat_arrays(list(values.values())))
        ends = np.cumsum([len(v) for v in values.values()])
        return dict(zip(values, np.split(hashes, ends[:-1]), strict=True))


def _last(
    offsets: NDArray[np.int32], ids: NDArray[np.int32], length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lists, as offsets and ids, cut to their last ``length`` ids."""
    lengths = np.diff(offsets)
    if len(lengths) and lengths.max() > length:
        from_end = np.repeat(offsets[1:], lengths) - np.arange(len(ids), dtype=np.int32)  # 1 = the last of its list
        ids = ids[from_end <= length]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, length))]).astype(np.int32)
    return offsets, ids


def _array_of(feature: Feature, values: Sequence[Any], *, strip: bool) -> pa.Array:
    try:
        if isinstance(feature, DenseFeature):
            return pa.array(values, pa.float64())
        if isinstance(feature, CategoricalFeature):
            return pa.array([spelled(value, strip) for value in values], pa.string())
        if isinstance(feature, SequenceFeature):
            return pa.array([_spelled_list(value, strip) for value in values], pa.list_(pa.string()))
        return pa.array(values, pa.string())
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise EncodingError(f"column {feature.name!r}: {error}") from None


def spelled(value: Any, strip: bool) -> str | None:
    """A category as the string that a raw file of the same values would give."""
    if value is None or isinstance(value, str):
        return value.strip() if strip and value is not None else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value == value // 1:
        return str(int(value))
    raise TypeError(f"expected strings or integers, got {value!r:.80}")


def _spelled_list(values: Any, strip: bool) -> list[str | None] | None:
    if isinstance(values, str):
        raise TypeError(f"expected lists, got {values!r:.80}")
    return None if values is None else [spelled(value, strip) for value in values]
