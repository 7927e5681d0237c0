"""What one pass over the training rows finds of their numbers."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.fitting import Observed, Sample
from rayrec.data.log.schema import DenseStatistics, SchemaError


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_statistics_do_not_depend_on_the_chunks_and_are_numpys(values: Sequence[float], cuts: Sequence[int]) -> None:
    observed = Observed()
    for chunk in np.split(np.array([*values, np.nan]), sorted(min(cut, len(values)) for cut in cuts)):
        observed.update(chunk)
    found = observed.statistics()
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.std == pytest.approx(np.std(values) or 1.0, abs=1e-4)
    assert found.missing_share == 1 / (len(values) + 1)
    np.testing.assert_allclose(found.quantiles, np.quantile(values, np.linspace(0, 1, 65)), atol=1e-9)


def test_a_long_stream_is_sampled_alike_in_any_chunks_and_within_its_error() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    whole, parts = Sample(4096), Sample(4096)
    whole.update(values)
    for part in np.array_split(values, 97):
        parts.update(part)
    assert whole.quantiles() == parts.quantiles()
    rank = np.searchsorted(np.sort(values), whole.quantiles()) / len(values)
    assert np.abs(rank - np.linspace(0, 1, 65)).max() < 4 * 0.5 / np.sqrt(4096)
    assert (whole.quantiles()[0], whole.quantiles()[-1]) == (values.min(), values.max())


def test_what_was_never_observed_has_quantiles_too() -> None:
    observed = Observed()
    observed.update(np.full(3, np.nan))
    assert observed.statistics() == DenseStatistics(0.0, 1.0, 1.0, (0.0,) * 65)


@pytest.mark.parametrize("quantiles", [(0.0, 1.0), tuple(map(float, range(65, 0, -1)))])
def test_quantiles_of_a_schema_are_checked(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(SchemaError, match="quantiles are 65 rising numbers"):
        DenseStatistics(0.0, 1.0, 0.0, quantiles)
