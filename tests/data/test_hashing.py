"""The stable hash: pinned values, a plain-Python reference, independence of how strings lie in memory."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.hashing import hash_strings, mix, uniform

_64 = (1 << 64) - 1
PINNED = ["e220a8397b1dcdaf", "5e025f9ade9eaf3e", "afd2ea734b8e1a17", "ebf79cb8c0c1eee0", "acd402a4baea085e"]


def reference_mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64
    return value ^ (value >> 31)


def reference_hash(text: str) -> int:
    data = text.encode()
    value = reference_mix(len(data))
    for start in range(0, len(data), 8):
        value = reference_mix(value ^ int.from_bytes(data[start : start + 8], "little"))
    return value


def test_hashes_of_known_strings_never_change() -> None:
    hashes = hash_strings(pa.array(["", "a", "68fd1e64", "a longer string than one word", "münchen"]))
    assert [f"{h:016x}" for h in hashes.tolist()] == PINNED


@given(st.lists(st.text(max_size=40)))
def test_the_vectorized_hash_equals_the_plain_reference(texts: list[str]) -> None:
    assert hash_strings(pa.array(texts, pa.string())).tolist() == [reference_hash(text) for text in texts]


@given(st.lists(st.text(max_size=20), min_size=3), st.data())
def test_a_slice_hashes_like_a_fresh_array(texts: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(texts) - 1))
    whole = pa.array(texts, pa.string())
    assert hash_strings(whole.slice(start)).tolist() == hash_strings(pa.array(texts[start:], pa.string())).tolist()


def test_a_null_hashes_like_the_empty_string() -> None:
    hashes = hash_strings(pa.array(["x", None, ""]))
    assert hashes[1] == hashes[2] != hashes[0]


def test_hashes_of_counters_are_uniform() -> None:
    numbers = uniform(hash_strings(pa.array([str(i) for i in range(100_000)])))
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: the 0.001 % and 99.99 % points


def test_mix_is_injective_on_near_inputs() -> None:
    assert len(np.unique(mix(np.arange(1_000_000, dtype=np.uint64)))) == 1_000_000


def test_few_long_strings_among_short_ones_hash_word_by_word_as_all_do() -> None:
    texts = ["ab" * 3000 + "é", "x" * 5001, "short", "", "x" * 257, *("y" * k for k in range(20))]
    expected = []
    for text in map(str.encode, texts):
        state = reference_mix(len(text))
        for at in range(0, len(text), 8):
            state = reference_mix(state ^ int.from_bytes(text[at : at + 8], "little"))
        expected.append(state)
    assert hash_strings(pa.array(texts)).tolist() == expected
