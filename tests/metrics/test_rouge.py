"""ROUGE by hand."""

import pytest

from rayrec.metrics.rouge import rouge


def test_rouge_is_its_formula() -> None:
    found = rouge("The cat sat on the mat.", "the cat lay on a mat")
    assert found["rouge1"] == pytest.approx(2 * 4 / 12)  # the, cat, on, mat
    assert found["rouge2"] == pytest.approx(2 * 1 / 10)  # the cat
    assert found["rougeL"] == pytest.approx(2 * 4 / 12)
    assert rouge("a b c", "c b a")["rougeL"] == pytest.approx(2 * 1 / 6)
    assert rouge("b a a", "a a a b")["rouge1"] == pytest.approx(2 * 3 / 7)  # as often as in both


def test_rouge_of_equal_and_of_empty_texts() -> None:
    assert set(rouge("one two", "One, two!").values()) == {1.0}
    assert set(rouge("", "one two").values()) == {0.0}
    assert rouge("one", "one") == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0}
