"""A stable 64-bit hash of strings, vectorized: the same on every machine, in every process and every release.

Eight bytes at a time, mixed with the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014). Logs, vocabularies and served models depend on its values: never change them.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEW, _LONG = 4, 256


def hash_strings(strings: pa.StringArray) -> NDArray[np.uint64]:
    """The hash of the UTF-8 bytes of each string, (n,) uint64; a null hashes like the empty string."""
    offsets = np.frombuffer(strings.buffers()[1] or b"\0\0\0\0", np.int32)[strings.offset :][: len(strings) + 1]
    starts = offsets[:-1].astype(np.int64)
    lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
    if not len(strings):
        return np.empty(0, np.uint64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)  # eight bytes more, so that every string can be read in whole words
    if last > first:
        data[:-8] = np.frombuffer(strings.buffers()[2], np.uint8)[first:last]
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the word that begins at each byte
    hashes = mix(lengths.astype(np.uint64))
    longest = int(lengths.max())
    for position in range(0, longest, 8):
        active = np.flatnonzero(lengths > position)
        if len(active) <= _FEW and longest - position > _LONG:
            for i in active.tolist():
                start, end = int(starts[i]) - first + position, int(starts[i] + lengths[i]) - first
                hashes[i] = _hash_on(int(hashes[i]), data[start:end].tobytes())
            break
        word = words[starts[active] - first + position]
        bits = np.minimum(lengths[active] - position, 8).astype(np.uint64) * np.uint64(8)
        word &= ~np.uint64(0) >> (np.uint64(64) - bits)
        hashes[active] = mix(hashes[active] ^ word)
    return hashes


def _hash_on(state: int, text: bytes) -> int:
    """The same by Python's integers: of few long strings, ten times as fast as arrays of few elements."""
    everything = (1 << 64) - 1
    golden, mix_1, mix_2 = int(_GOLDEN), int(_MIX_1), int(_MIX_2)
    for word in np.frombuffer(text.ljust(-(-len(text) // 8) * 8, b"\0"), "<u8").tolist():
        state = ((state ^ word) + golden) & everything
        state = ((state ^ state >> 30) * mix_1) & everything
        state = ((state ^ state >> 27) * mix_2) & everything
        state ^= state >> 31
    return state


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of the 64-bit integers under which near inputs are far apart; elementwise, a new array."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def bucket_ids(hashes: NDArray[np.uint64], buckets: int) -> NDArray[np.int32]:
    """The ids 1 to ``buckets`` of a hashed feature; 0 is left for missing values."""
    return (hashes % np.uint64(buckets)).astype(np.int32) + np.int32(1)


def hash_ids(values: Sequence[str], buckets: int) -> NDArray[np.int32]:
    """The ids of strings under a hashed feature, (n,) int32: what ``LogEncoder`` gives for values that are not missing."""
    return bucket_ids(hash_strings(pa.array(values, pa.string())), buckets)


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1), 53 bits each."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
