"""Raw columns of any sensible Arrow type as numbers, codes, lists of codes, text or integers, with a mask of what is wrong.

Nothing here raises for a bad value: it is marked, so that its row can be set aside. A type that can never fit (a list where a
number belongs) raises ColumnTypeError.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.hashing import hash_strings, mix

_NULL_HASH = np.uint64(1)
_SMALL = 512  # below this many rows, looking up each value is faster than finding the distinct ones first
_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[nN][aA][nN]|[iI][nN][fF]([iI][nN][iI][tT][yY])?)$"
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
_COUNT = r"^-?(0|[1-9]\d{0,17}|[1-8]\d{18})$"  # nanoseconds since 1970 have 19 digits
_ISO_TIME = r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?"
_ZONE = r":\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)$"
Bad = NDArray[np.bool_]


class ColumnTypeError(TypeError):
    """A column whose type cannot hold what the schema expects."""


@dataclass(frozen=True)
class Numbers:
    """values: (n,) float64, NaN where missing, not a number or bad. null: missing; bad: not a number. Both (n,) bool."""

    values: NDArray[np.float64]
    null: Bad
    bad: Bad


@dataclass(frozen=True)
class NumberSpelling:
    """How text files write numbers."""

    decimal: str = "."
    """Character before the fraction."""
    thousands: str = ""
    """What stands between groups of three digits; empty = nothing."""


PLAIN = NumberSpelling()


@dataclass(frozen=True)
class Codes:
    """Row i holds ``values[index[i]]``; index -1 = missing. values: strings, usually distinct. bad: (n,) bool."""

    values: pa.StringArray
    index: NDArray[np.int32]
    bad: Bad


@dataclass(frozen=True)
class CodeLists:
    """Row i holds the codes ``offsets[i]`` to ``offsets[i + 1]``, (n + 1,) int32; a missing list is empty."""

    offsets: NDArray[np.int32]
    codes: Codes


@dataclass(frozen=True)
class Integers:
    """values: (n,) int64, 0 where null or bad. null: missing; bad: not an integer (or time). Both (n,) bool."""

    values: NDArray[np.int64]
    null: Bad
    bad: Bad


def as_numbers(
    column: pa.ChunkedArray | pa.Array, missing: tuple[str, ...] = (), spelling: NumberSpelling = PLAIN
) -> Numbers:
    """Integers, floats, decimals, booleans, or strings that spell a number (empty = missing).

    missing: further spellings of missing; one that spells a number stands for that number, however it is written.
    """
    array = _plain(column)
    kind = array.type
    none = np.zeros(len(array), np.bool_)
    if pa.types.is_null(kind):
        return Numbers(np.full(len(array), np.nan), ~none, none)
    if _is_string(kind):
        array, bad = _spelled_numbers(array, missing, spelling)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        array, bad = array.cast(pa.float64(), safe=False), none
    elif pa.types.is_boolean(kind):
        array, bad = array.cast(pa.uint8()).cast(pa.float64()), none
    else:
        raise ColumnTypeError(f"is {kind}, expected numbers")
    null = none if array.null_count == 0 else array.is_null().to_numpy(zero_copy_only=False)
    values = array.to_numpy(zero_copy_only=False)
    if missing:
        numbers = pa.array([value.strip() for value in missing if re.match(_NUMBER, value.strip())], pa.string())
        absent = np.isin(values, numbers.cast(pa.float64()).to_numpy(zero_copy_only=False))
        null, values = null | absent, np.where(absent, np.nan, values)
    return Numbers(values, null & ~bad, bad)


def as_codes(column: pa.ChunkedArray | pa.Array, *, strip: bool = False) -> Codes:
    """Strings, integers (their decimal digits), whole floats (as integers), booleans (true, false), dates and times (ISO).

    strip: without the blanks around them; values may then be there more than once.
    """
    array = _whole(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        values, bad_values = _as_strings(array.dictionary)
        index = _index_of(array.indices)
    elif len(array) < _SMALL:
        values, bad_values = _as_strings(array)
        index = np.arange(len(array), dtype=np.int32)
    elif pa.types.is_null(kind):
        values, bad_values, index = pa.array([], pa.string()), None, np.full(len(array), -1, np.int32)
    else:
        _check_code_type(kind)
        encoded = array.dictionary_encode()
        values, bad_values = _as_strings(encoded.dictionary)
        index = _index_of(encoded.indices)
    if strip and _is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    # the value appended for index -1 makes these gathers valid
    bad = np.zeros(len(array), np.bool_) if bad_values is None else np.append(bad_values, False)[index]
    if values.null_count:
        index[np.append(values.is_null().to_numpy(zero_copy_only=False), True)[index]] = -1
    return Codes(values, index, bad)


def as_code_lists(column: pa.ChunkedArray | pa.Array, separator: str, *, strip: bool = False) -> CodeLists:
    """Lists of codes, or strings of codes with a separator between them (empty = no codes)."""
    array = _plain(column)
    if _is_string(array.type):
        array = pc.split_pattern(pc.if_else(pc.equal(array, ""), None, array), pattern=separator)
    elif pa.types.is_null(array.type):
        array = array.cast(pa.list_(pa.string()))
    if not _is_list(array.type):
        raise ColumnTypeError(f"is {array.type}, expected lists or text with {separator!r} between the values")
    return CodeLists(_offsets(array), as_codes(array.flatten(), strip=strip))


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """Strings as they are."""
    array = _plain(column)
    if not (_is_string(array.type) or pa.types.is_null(array.type)):
        raise ColumnTypeError(f"is {array.type}, expected text")
    return array.cast(pa.string())


def as_times(column: pa.ChunkedArray | pa.Array) -> Integers:
    """Integers as they are; Arrow times and ISO 8601 strings (UTC where no zone is given) in milliseconds since 1970."""
    array = _plain(column)
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(array.type):
        return _integers(_milliseconds(array))
    if not _is_string(array.type):
        return _typed_integers(array)
    if _are_counts(array):
        return _integers(array.cast(pa.int64()))
    array = pc.utf8_trim_whitespace(array)
    array = pc.if_else(pc.equal(array, ""), None, array)
    null = array.is_null().to_numpy(zero_copy_only=False)
    whole = pc.fill_null(pc.match_substring_regex(array, _COUNT), False)
    parsed = pc.if_else(whole, array, None).cast(pa.int64())
    if parsed.null_count > array.null_count:
        rest = pc.if_else(whole, None, array)
        iso = pc.match_substring_regex(rest, _ISO_TIME)
        zone = pc.match_substring_regex(rest, _ZONE)
        for wanted, kind in (
            (pc.and_not(iso, zone), pa.timestamp("ns")),
            (pc.and_(iso, zone), pa.timestamp("ns", "UTC")),
        ):
            times = _cast_or_null(pc.if_else(wanted, rest, None), kind)
            parsed = pc.coalesce(parsed, _milliseconds(times))
    result = _integers(parsed)
    return Integers(result.values, null, result.null & ~null)


def _are_counts(array: pa.Array) -> bool:
    """Whether all strings are 1 to 18 digits, the first no 0: a look at their bytes, ten times as fast as reading one by one."""
    if not pa.types.is_string(array.type) or not len(array):
        return False
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: len(array) + 1]
    there = array.is_valid().to_numpy(zero_copy_only=False)
    lengths, starts = np.diff(offsets)[there], offsets[:-1][there]
    if not len(lengths) or lengths.min() < 1 or lengths.max() > 18:
        return False
    letters = np.frombuffer(array.buffers()[2], np.uint8)
    digits = letters[offsets[0] : offsets[-1]] - np.uint8(ord("0")) < 10
    return bool(digits.all() and (letters[starts] != ord("0")).all())


def as_identifiers(column: pa.ChunkedArray | pa.Array) -> Integers:
    """Integers as they are (also spelled in a string); any other string, without blanks around it, as a negative 63-bit hash."""
    array = _plain(column)
    if not _is_string(array.type):
        return _typed_integers(array)
    array = pc.utf8_trim_whitespace(array)
    whole = pc.fill_null(pc.match_substring_regex(array, _INTEGER), False)
    numbers = _integers(pc.if_else(whole, array, None).cast(pa.int64()))
    hashed = (hash_strings(array.cast(pa.string())) | np.uint64(1 << 63)).view(np.int64)
    null = pc.fill_null(pc.equal(array, ""), True).to_numpy(zero_copy_only=False)
    values = np.where(whole.to_numpy(zero_copy_only=False), numbers.values, hashed)
    return Integers(np.where(null, 0, values), null, np.zeros(len(array), np.bool_))


def hash_rows(table: pa.Table, *, strip: bool = False) -> NDArray[np.uint64]:
    """A hash of all values of each row, (n,) uint64, in column order: a number hashes like its digits, a list by its elements.

    strip: blanks around a value do not count.
    Raises ColumnTypeError, the column's name first, for nested types other than lists.
    """
    hashes = np.zeros(table.num_rows, np.uint64)
    for name in table.column_names:
        array = _whole(table.column(name))
        try:
            if _is_list(array.type):
                of_column = _hash_lists(array, strip)
            else:
                of_column = _hash_codes(array, strip)
        except ColumnTypeError as error:
            raise ColumnTypeError(f"{name!r} {error}") from None
        hashes = mix(hashes ^ of_column)
    return hashes


def _hash_codes(array: pa.Array, strip: bool) -> NDArray[np.uint64]:
    if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):  # fractions are no codes
        array = array.cast(pa.string())
    codes = as_codes(array, strip=strip)
    return np.append(hash_strings(codes.values), _NULL_HASH)[codes.index]


def _hash_lists(array: pa.Array, strip: bool) -> NDArray[np.uint64]:
    """The sum of the elements' hashes, each mixed with its position, and of the length; modulo 2^64."""
    offsets = _offsets(array)
    lengths = np.diff(offsets)
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    elements = mix(_hash_codes(array.flatten(), strip) ^ mix(positions.astype(np.uint64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(elements, dtype=np.uint64)])
    return mix(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = _whole(column)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _offsets(lists: pa.Array) -> NDArray[np.int32]:
    """(n + 1,) where each list begins in ``lists.flatten()``; null lists are empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _index_of(indices: pa.Array) -> NDArray[np.int32]:
    return np.array(pc.fill_null(indices.cast(pa.int32()), -1))  # a copy: callers change it


def _check_code_type(kind: pa.DataType) -> None:
    if not (
        _is_string(kind)
        or pa.types.is_null(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        raise ColumnTypeError(f"is {kind}, expected strings or integers")


def _as_strings(values: pa.Array) -> tuple[pa.StringArray, Bad | None]:
    """Values as strings, and which of them (fractions, infinities) are no codes; those and NaN are null."""
    kind = values.type
    if pa.types.is_string(kind):
        return values, None
    _check_code_type(kind)
    if not pa.types.is_floating(kind):
        try:
            return values.cast(pa.string()), None
        except pa.ArrowInvalid as error:
            raise ColumnTypeError(f"holds bytes that are not UTF-8: {error}") from None
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    whole = np.isfinite(numbers) & (np.abs(numbers) < 2.0**63)
    whole[whole] = numbers[whole] == np.floor(numbers[whole])
    digits = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole).cast(pa.string())
    return digits, ~whole & ~np.isnan(numbers)


def _spelled_numbers(array: pa.Array, missing: tuple[str, ...], spelling: NumberSpelling) -> tuple[pa.DoubleArray, Bad]:
    if spelling == PLAIN:
        try:
            return array.cast(pa.float64()), np.zeros(len(array), np.bool_)
        except pa.ArrowInvalid:
            pass
    array = pc.utf8_trim_whitespace(array)
    empty = pa.array(["", *(value.strip() for value in missing)], array.type)
    array = pc.if_else(pc.is_in(array, value_set=empty), None, array)
    if spelling != PLAIN:
        array = _plainly_spelled(array, spelling)
    spelled = pc.fill_null(pc.match_substring_regex(array, _NUMBER), True)
    parsed = pc.utf8_ltrim(pc.if_else(spelled, array, None), characters="+").cast(pa.float64())
    return parsed, ~spelled.to_numpy(zero_copy_only=False)


def _plainly_spelled(array: pa.StringArray, spelling: NumberSpelling) -> pa.StringArray:
    """1.234,5 as 1234.5; what is not spelled so becomes text that is no number."""
    point, groups = re.escape(spelling.decimal), r"\d+"
    if spelling.thousands:
        groups = rf"(\d{{1,3}}({re.escape(spelling.thousands)}\d{{3}})+|\d+)"
    pattern = rf"^[+-]?({groups}({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$"
    spelled = pc.match_substring_regex(array, pattern)
    if spelling.thousands:
        array = pc.replace_substring(array, pattern=spelling.thousands, replacement="")
    return pc.if_else(spelled, pc.replace_substring(array, pattern=spelling.decimal, replacement="."), "no number")


def _milliseconds(times: pa.TimestampArray) -> pa.Int64Array:
    return pc.floor_temporal(times, unit="millisecond").cast(pa.timestamp("ms", times.type.tz)).cast(pa.int64())


def _cast_or_null(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast, with null for what cannot be cast: halves are tried until the bad values stand alone (they are few)."""
    try:
        return array.cast(kind)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return pa.nulls(1, kind)
    half = len(array) // 2
    return pa.concat_arrays([_cast_or_null(array[:half], kind), _cast_or_null(array[half:], kind)])


def _integers(array: pa.Int64Array) -> Integers:
    none = np.zeros(len(array), np.bool_)
    null = none if array.null_count == 0 else array.is_null().to_numpy(zero_copy_only=False)
    return Integers(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), null, none)


def _typed_integers(array: pa.Array) -> Integers:
    kind = array.type
    if pa.types.is_null(kind):
        return _integers(array.cast(pa.int64()))
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return _integers(array.cast(pa.int64()))
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ColumnTypeError(f"is {kind}, expected integers or strings")
    numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    null = array.is_null().to_numpy(zero_copy_only=False)
    whole = np.isfinite(numbers) & (np.abs(numbers) <= 2.0**53)
    whole[whole] = numbers[whole] == np.floor(numbers[whole])
    return Integers(np.where(whole, numbers, 0).astype(np.int64), null, ~whole & ~null)
