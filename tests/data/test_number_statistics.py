"""What one pass over the training rows finds of their numbers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.fitting import Observed, Sample
from rayrec.data.log.schema import DenseFeature, DenseStatistics, SchemaError, encoded_alike
from rayrec.typed_json import from_json, to_json

SHARES = np.linspace(0, 1, 65).clip(0.001, 0.999)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_statistics_do_not_depend_on_the_chunks_and_are_numpys(values: Sequence[float], cuts: Sequence[int]) -> None:
    observed = Observed()
    for chunk in np.split(np.array([*values, np.nan]), sorted(min(cut, len(values)) for cut in cuts)):
        observed.update(chunk)
    found = observed.statistics()
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.std == pytest.approx(np.std(values) or 1.0, abs=1e-4)
    assert found.missing_share == 1 / (len(values) + 1)
    np.testing.assert_allclose(found.quantiles, np.quantile(values, SHARES), atol=1e-9)


def test_a_long_stream_is_sampled_alike_in_any_chunks_and_within_its_error() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    whole, parts = Sample(4096), Sample(4096)
    whole.update(values)
    for part in np.array_split(values, 97):
        parts.update(part)
    assert whole.quantiles() == parts.quantiles()
    rank = np.searchsorted(np.sort(values), whole.quantiles()) / len(values)
    assert np.abs(rank - SHARES).max() < 4 * 0.5 / np.sqrt(4096)


def test_a_wild_value_does_not_stretch_the_last_bin() -> None:
    sample = Sample(4096)
    sample.update(np.append(np.random.default_rng(1).normal(size=3_000), 1e9))
    assert 2 < sample.quantiles()[-1] < 5


def test_a_schema_without_quantiles_is_written_as_before_there_were_any_and_fits_one_with_them() -> None:
    old = DenseStatistics(0.5, 2.0, 0.25)
    assert to_json(old, indent=None) == '{"mean":0.5,"std":2.0,"missing_share":0.25}'
    new = replace(old, quantiles=tuple(map(float, range(65))))
    for statistics in (old, new):
        assert from_json(DenseStatistics, to_json(statistics)) == statistics
    fitted, as_before = DenseFeature("age", statistics=new), DenseFeature("age", statistics=old)
    assert encoded_alike(fitted, as_before)
    assert encoded_alike(as_before, fitted)
    assert not encoded_alike(fitted, DenseFeature("age", statistics=replace(old, mean=0.0)))
    other = replace(new, quantiles=tuple(map(float, range(1, 66))))
    assert not encoded_alike(fitted, DenseFeature("age", statistics=other))
    assert not encoded_alike(fitted, DenseFeature("age"))


def test_what_was_never_observed_has_quantiles_too() -> None:
    observed = Observed()
    observed.update(np.full(3, np.nan))
    assert observed.statistics() == DenseStatistics(0.0, 1.0, 1.0, (0.0,) * 65)


@pytest.mark.parametrize("quantiles", [(0.0, 1.0), tuple(map(float, range(65, 0, -1))), (float("nan"),) * 65])
def test_quantiles_of_a_schema_are_checked(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(SchemaError, match="quantiles are 65 rising numbers"):
        DenseStatistics(0.0, 1.0, 0.0, quantiles)
