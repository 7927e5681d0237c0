"""The search over two learning rates in the benchmark of optimizers, and what half of its tokens are."""

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import lm_optimizers
from benchmarks.lm_optimizers import Benchmark, Rates, Study, next_rates
from rayrec.typed_json import ConfigError


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


def test_half_of_the_tokens_are_half_of_the_documents_or_of_the_passes(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "amazon2018_scientific_text"
    if not source.is_dir():
        pytest.skip(f"no item texts at {source}")
    once = Benchmark(source, tmp_path / "once", documents=60, vocabulary=300, batch_size=1)
    twice = replace(once, out=tmp_path / "twice", epochs=2)
    studies = [Study(benchmark, math.inf) for benchmark in (once, twice)]
    whole = studies[0].steps()
    assert [study.steps() for study in studies] == [whole, 2 * whole]
    assert studies[0].steps(half=True) == pytest.approx(whole / 2, rel=0.2)
    assert studies[1].steps(half=True) == whole
    assert studies[0].corpus(half=True) != studies[0].corpus(half=False)
    assert studies[1].corpus(half=True) == studies[1].corpus(half=False)
    with pytest.raises(ConfigError, match="epochs must be 1 or an even number, not 3"):
        Study(replace(once, out=tmp_path / "thrice", epochs=3), math.inf)


def test_calls_that_begin_together_make_the_corpora_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def write(benchmark: Benchmark, out: Mapping[bool, Path]) -> None:
        made.append(threading.current_thread())
        time.sleep(0.2)  # the other call comes meanwhile
        out[True].mkdir()

    monkeypatch.setattr(lm_optimizers, "_write_corpora", write)
    with ThreadPoolExecutor(2) as calls:
        found = list(calls.map(lm_optimizers.make_corpora, [Benchmark(out=tmp_path / "shared")] * 2))
    assert found[0] == found[1]
    assert len(made) == 1
