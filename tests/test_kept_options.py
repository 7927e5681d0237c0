"""Studies that go on later refuse what was made with other options, in one line that names them, before anything is trained."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.lm_optimizers import Benchmark, Study
from rayrec.kept_options import hold_to_options, options_of, other_options
from rayrec.typed_json import ConfigError
from studies import census_selection, closed_loop, coat, content_rankers, funnel_study, miscalibration, wrong_teachers


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (4, 2)


@dataclass(frozen=True)
class Outer:
    folder: Path
    inner: Inner
    seeds: int = 3
    source: Path | None = None


def test_options_are_kept_once_and_the_same_ones_go_on(tmp_path: Path) -> None:
    file, options = tmp_path / "new" / "options.json", options_of(Outer(tmp_path, Inner()), but=("folder", "seeds"))
    assert options == {"inner": {"rate": 0.1, "sizes": [4, 2]}, "source": None}
    for _ in range(2):
        hold_to_options(file, options, "seed-*.json")
        (tmp_path / "new" / "seed-0.json").touch()
    assert json.loads(file.read_text()) == options


def test_every_option_that_is_another_one_is_named_with_both_values(tmp_path: Path) -> None:
    kept, now = Outer(tmp_path, Inner()), Outer(tmp_path, Inner(0.2, (4,)), seeds=5, source=tmp_path)
    first, second = (options_of(one, but=("folder", "seeds")) for one in (kept, now))
    hold_to_options(tmp_path / "options.json", first, "*")
    (tmp_path / "seed-0.json").touch()
    wanted = ["inner.rate 0.1, now 0.2", "inner.sizes [4, 2], now [4]"]
    assert other_options(first, second)[:2] == wanted
    with pytest.raises(
        ConfigError, match=r"results here were made with inner\.rate 0\.1, now 0\.2; inner\.sizes"
    ) as error:
        hold_to_options(tmp_path / "options.json", second, "*")
    assert "source null, now" in str(error.value)
    assert "\n" not in str(error.value)
    assert other_options({"a": 1, "b": {"c": 2}}, {"a": 1}) == ["b.c 2, now absent"]


def test_options_that_made_nothing_give_way_to_others(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    for source in ("typo", "data"):
        hold_to_options(file, {"source": source}, "*.json", "pairs")
        assert json.loads(file.read_text()) == {"source": source}
    (tmp_path / "pairs").mkdir()  # made from the source, before any result
    with pytest.raises(ConfigError, match='source "data", now "other"'):
        hold_to_options(file, {"source": "other"}, "*.json", "pairs")


def test_paths_are_the_same_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative, absolute = (Outer(tmp_path, Inner(), source=path) for path in (Path("data"), tmp_path / "data"))
    assert options_of(relative, but=("folder",)) == options_of(absolute, but=("folder",))


def test_results_of_which_nothing_says_what_made_them_are_refused(tmp_path: Path) -> None:
    (tmp_path / "seed-3.json").touch()
    with pytest.raises(ConfigError, match=r"seed-3\.json: nothing says with which options it was made"):
        hold_to_options(tmp_path / "options.json", {"ratio": 4.0}, "seed-*.json")
    assert not (tmp_path / "options.json").exists()


def test_a_name_that_is_no_field_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Outer has no seed"):
        options_of(Outer(tmp_path, Inner()), but=("seed",))


FUNNEL = funnel_study.FunnelStudyConfig()
LOOP = closed_loop.ClosedLoopConfig()


def _coat(folder: Path, changed: bool) -> None:
    coat.seed_metrics(coat.Command(folder, Path("none"), ratio=2.0 if changed else 4.0), 0)


def _census(folder: Path, changed: bool) -> None:
    census_selection.run(census_selection.Command(folder, Path("none"), epochs=3 if changed else 8))


def _wrong_teachers(folder: Path, changed: bool) -> None:
    study = replace(FUNNEL, candidates=1_000 if changed else 2_000)
    wrong_teachers.run(wrong_teachers.WrongTeachers(folder, study=study, stop_after=-1.0))


def _teachers(folder: Path, changed: bool) -> None:
    first, *_ = wrong_teachers.TEACHERS
    teacher = replace(first, epochs=1) if changed else first
    wrong_teachers.run(wrong_teachers.WrongTeachers(folder, stop_after=-1.0), (teacher,))


def _closed_loop(folder: Path, changed: bool) -> None:
    closed_loop.run_study(replace(LOOP, random_blocks=LOOP.random_blocks + changed), folder, ())


def _miscalibration(folder: Path, changed: bool) -> None:
    study = replace(FUNNEL, epochs=5 if changed else 4)
    miscalibration.run(miscalibration.Miscalibration(folder, seeds=1, stop_after=-1.0, requests=-1, study=study))


def _content_rankers(folder: Path, changed: bool) -> None:
    nowhere, out = Path("none"), folder / "runs.jsonl"
    content_rankers.run(content_rankers.ContentStudy(nowhere, nowhere, out, dim=32 if changed else 64))


def _lm_optimizers(folder: Path, changed: bool) -> None:
    Study(Benchmark(Path("none"), folder, documents=100 if changed else 200), 0.0)


@pytest.mark.parametrize(
    ("begin", "result", "named"),
    [
        (_coat, "seed-0.json", "ratio 4.0, now 2.0"),
        (_census, "census/log.json", "epochs 8, now 3"),
        (_wrong_teachers, "linear-0/past.json", "study.candidates 2000, now 1000"),
        (_teachers, "linear-0/past.json", "teachers.linear, crosses.epochs 6, now 1"),
        (_closed_loop, "seed-0/log", f"random_blocks {LOOP.random_blocks}, now {LOOP.random_blocks + 1}"),
        (_miscalibration, "world/seed-0/teacher.json", "epochs 4, now 5"),
        (_content_rankers, "runs.jsonl", "dim 64, now 32"),
        (_lm_optimizers, "corpus-half/log.json", "documents 200, now 100"),
    ],
)
def test_a_study_refuses_to_go_on_with_another_option(
    begin: Callable[[Path, bool], None], result: str, named: str, tmp_path: Path
) -> None:
    with suppress(Exception):  # most find no data where they are sent: options are kept before that
        begin(tmp_path, False)
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    with pytest.raises(ConfigError, match=f"results here were made with {named}: choose another place"):
        begin(tmp_path, True)
