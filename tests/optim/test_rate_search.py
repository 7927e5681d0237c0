"""The search over two learning rates in the benchmark of optimizers."""

import pytest

from benchmarks.lm_optimizers import Rates, next_rates


def climbed(lowest: Rates, start: Rates, trials: int) -> list[Rates]:
    tried: dict[Rates, float] = {}
    rates = start
    for _ in range(trials):
        tried[rates] = (rates[0] - lowest[0]) ** 2 + (rates[1] - lowest[1]) ** 2
        rates = next_rates(tried)
    return list(tried)


@pytest.mark.parametrize(
    ("lowest", "trials"), [((-3, -4), 3), ((-5, -4), 2), ((-4, -2), 5), ((-6, -4), 4), ((-5, -5), 5)]
)
def test_the_search_reaches_the_lowest_of_a_bowl_in_few_trials(lowest: Rates, trials: int) -> None:
    assert lowest in climbed(lowest, (-5, -4), trials)


def test_the_search_goes_on_the_way_that_helped() -> None:
    assert climbed((-2, -4), (-5, -4), 4) == [(-5, -4), (-4, -4), (-3, -4), (-2, -4)]


def test_the_search_tries_no_pair_twice_and_the_neighbours_of_the_best_before_others() -> None:
    order = climbed((-5, -4), (-5, -4), 7)
    assert order == [(-5, -4), (-4, -4), (-6, -4), (-5, -3), (-5, -5), (-4, -3), (-4, -5)]
