"""Every field of every experiment is an option with its own line; optional parts are switched on by any of their options."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import (
    build_preference_benchmark,
    bundle_item_features,
    cluster,
    compare,
    compare_arms,
    compare_retrieval,
    compare_steering,
    demo,
    embed_content_items,
    embed_items,
    embed_users,
    generate_preferences,
    import_content,
    import_logs,
    import_preferences,
    import_sequences,
    import_text,
    keep_labels,
    kubernetes,
    memory,
    score_log,
    select_features,
    semantic_ids,
    simulate,
    summarize_users,
    tokenize_content,
)  # fmt: skip
from jobs.command_line import documentation, read, read_one_of
from jobs.sweep import Sweep
from jobs.train import Repeat, Train
from rayrec.families.ranker.experiment import RankerExperiment, TeacherConfig
from rayrec.families.ranker.scoring import CalibrationConfig
from rayrec.families.ranker.task import RankingConfig
from rayrec.families.table import FAMILIES, follow
from rayrec.methods.balancing import METHODS
from rayrec.methods.balancing.famo import Famo
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.runs.closing_the_loop import CloseTheLoop
from rayrec.typed_json import ConfigError
from studies.miscalibration import Miscalibration
from studies.perturbation_lab import Lab

COMMANDS: dict[str, Any] = {
    **{f"train {family.word}": Train[family.experiment] for family in FAMILIES},
    **{f"sweep {family.word}": Sweep[family.experiment] for family in FAMILIES},
    **{f"evaluate {f.word}": follow(f.evaluation_path) for f in FAMILIES if f.evaluation_path is not None},
    "repeat": Repeat,
}
JOBS: dict[str, Any] = {
    f"{job} {command.__name__}": command
    for job, commands in {
        "build_preference_benchmark": [build_preference_benchmark.BuildBenchmark],
        "bundle_item_features": [bundle_item_features.BundleItemFeatures],
        "close_the_loop": [CloseTheLoop],
        "cluster": [cluster.Start, cluster.Stop],
        "compare": [compare.Compare],
        "compare_arms": [compare_arms.CompareArms],
        "compare_retrieval": [compare_retrieval.CompareRetrieval],
        "compare_steering": [compare_steering.CompareSteering],
        "demo": [demo.Demo],
        "embed_content_items": [embed_content_items.EmbedContentItems],
        "embed_items": [embed_items.EmbedItems],
        "embed_users": [embed_users.EmbedUsers],
        "generate_preferences": [generate_preferences.Extractive, generate_preferences.Llm],
        "import_content": list(import_content.COMMANDS.values()),
        "import_logs": [import_logs.ImportPublic, import_logs.ImportTable],
        "import_preferences": [import_preferences.Tastes, import_preferences.Table],
        "import_sequences": [
            import_sequences.Amazon2014, import_sequences.Amazon2018, import_sequences.Amazon2018Raw,
            import_sequences.Steam, import_sequences.Yelp, import_sequences.MovieLens,
            import_sequences.MovieLensTastes, import_sequences.Table, import_sequences.FromLog,
        ],
        "import_text": [import_text.ImportParquet, import_text.ImportAmazon2018],
        "keep_labels": [keep_labels.KeepLabels],
        "kubernetes": [kubernetes.Job, kubernetes.Service],
        "memory": [memory.LanguageModelMemory, memory.RankerMemory],
        "miscalibration": [Miscalibration],
        "perturbation_lab": [Lab],
        "score_log": [score_log.ScoreLog],
        "select_features": [select_features.SelectFeatures],
        "semantic_ids": [semantic_ids.MakeSemanticIds],
        "simulate": [simulate.Simulate],
        "summarize_users": [summarize_users.Extractive, summarize_users.Llm, summarize_users.Table],
        "tokenize_content": [tokenize_content.TokenizeContent],
    }.items()
    for command in commands
}  # fmt: skip
FAMILY_JOBS = {"train", "sweep", "evaluate", "serve"}
SHORT = ("--name", "a", "--log", "logs/mine")


def helped(command: Any, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read(command, arguments=[*more, "--help"])
    assert ended.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def every_class(draft: Any) -> Iterator[type]:
    yield type(draft)
    for field in fields(draft):
        value = vars(draft).get(field.name)
        if is_dataclass(value):
            yield from every_class(value)


def classes_of(command: Any) -> set[type]:
    from jobs.command_line import _Draft

    return set(every_class(_Draft(["--help"]).of(command))) | set(METHODS)


def test_every_job_with_options_is_looked_at_here() -> None:
    jobs = {
        file.stem for file in Path(cluster.__file__).parent.glob("*.py") if '__name__ == "__main__"' in file.read_text()
    }
    assert jobs == {name.split()[0] for name in JOBS} | FAMILY_JOBS


@pytest.mark.parametrize("command", (COMMANDS | JOBS).values(), ids=(COMMANDS | JOBS).keys())
def test_every_field_has_a_line_of_its_own(command: Any) -> None:
    missing = [
        f"{cls.__name__}.{field.name}"
        for cls in classes_of(command)
        for field in fields(cls)
        if field.init and len(documentation(cls).get(field.name, "")) < 5
    ]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_help_shows_each_line_beside_its_option(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = helped(command, capsys)
    lines = {
        line
        for cls in classes_of(command) - set(METHODS)
        for field in fields(cls)
        if field.init and (line := documentation(cls)[field.name]) and "name=''" not in str(field.type)
    }
    assert len(lines) >= 3
    unseen = [line for line in lines if re.sub(r"\s", "", line) not in re.sub(r"\s", "", shown)]
    assert not unseen
    assert "{ranker}" not in shown  # what names the family is no option


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
def test_help_beside_a_balancer_shows_its_options(method: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.sub(r"\s", "", helped(Train[RankerExperiment], capsys, "--ranking.balancing.method", method.method))
    for field in fields(method):
        assert f"--ranking.balancing.{field.name.replace('_', '-')}" in shown
        assert re.sub(r"\s", "", documentation(method)[field.name]) in shown
    assert all(other.method in shown for other in METHODS)


@pytest.mark.parametrize(
    ("options", "part", "expected"),
    [
        ("--ranking.perturbation.loss lspr", "ranking.perturbation", PerturbationConfig()),
        ("--ranking.perturbation.loss=scr", "ranking.perturbation", PerturbationConfig("scr")),
        ("--ranking.distillation.unlabeled-weight 4", "ranking.distillation", DistillationConfig(unlabeled_weight=4)),
        ("--ranking.inverse-propensity.column p", "ranking.inverse_propensity", InversePropensity("p")),
        ("--ranking.inverse_propensity.column p", "ranking.inverse_propensity", InversePropensity("p")),
    ],
)  # fmt: skip
def test_any_option_of_a_part_switches_it_on(options: str, part: str, expected: Any) -> None:
    found: Any = read(Train[RankerExperiment], arguments=[*SHORT, *options.split()]).experiment
    for name in part.split("."):
        found = getattr(found, name)
    assert found == expected


def test_parts_inside_of_parts_are_switched_on_alike() -> None:
    distilled = ["--ranking.distillation.target", "teacher", "--teacher.bundle", "b"]
    taught = read(Train[RankerExperiment], arguments=[*SHORT, *distilled]).experiment
    assert taught.teacher == TeacherConfig(Path("b"))
    calibrated = read(Train[RankerExperiment], arguments=[*SHORT, *distilled, "--teacher.calibration.log", "l"])
    assert calibrated.experiment.teacher == TeacherConfig(Path("b"), CalibrationConfig(Path("l")))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
def test_every_balancer_is_named_by_a_plain_option(method: Any) -> None:
    shares = ["--ranking.balancing.shares", "1", "2"] if method.method == "fixed" else []
    found = read(Train[RankerExperiment], arguments=[*SHORT, "--ranking.balancing.method", method.method, *shares])
    assert found.experiment.ranking.balancing == (method(shares=(1.0, 2.0)) if shares else method())


def test_parts_that_are_not_named_stay_off() -> None:
    assert read(Train[RankerExperiment], arguments=SHORT).experiment == RankerExperiment(Path("logs/mine"))


def test_the_base_of_a_sweep_takes_the_same_options() -> None:
    base = "--base.ranking.balancing"
    swept = read(
        Sweep[RankerExperiment],
        arguments=f"--name a --base.log l {base}.method famo {base}.decay .5".split(),
    )
    assert swept.config.base.ranking.balancing == Famo(decay=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ranking.balancing.method famos", "must be one of cagrad, famo, .* not famos"),
        ("--ranking.balancing.decay .5", "method must be one of .* beside --ranking.balancing.decay"),
    ],
)
def test_a_part_asked_for_by_halves_is_one_line(options: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(Train[RankerExperiment], arguments=[*SHORT, *options.split()])


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        (generate_preferences.Extractive, "--sequences s --out o --recent 0", "recent must be at least 1, not 0"),
        (semantic_ids.MakeSemanticIds, "--sequences s --out o --components 0", "components must be at least 1, not 0"),
        (summarize_users.Extractive, "--content c --version v --words 0", "words must be at least 1, not 0"),
    ],
)
def test_values_that_a_command_refuses_are_a_users_error(command: Any, options: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(command, arguments=options.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ranking.perturbaton.loss lspr", "--ranking.perturbaton.loss"),
        ("--teacher.calibration.method platt", "--teacher.bundle"),
        ("ranking.perturbation:perturbation-config", "ranking.perturbation"),
        ("--kind ranker", "--kind"),
    ],
)
def test_what_is_no_option_or_lacks_one_ends_the_command(
    options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(Train[RankerExperiment], arguments=[*SHORT, *options.split()])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_first_word_names_the_command() -> None:
    commands = {"ranker": Train[RankerExperiment], "repeat": Repeat}
    found = read_one_of(commands, arguments=["ranker", *SHORT, "--ranking.perturbation.loss", "scr"])
    assert found == Train(
        "a", RankerExperiment(Path("logs/mine"), ranking=RankingConfig(perturbation=PerturbationConfig("scr")))
    )
    assert read_one_of(commands, arguments=["repeat", "abc", "--name", "b"]) == Repeat("abc", "b")


def test_lines_are_inherited_and_may_be_said_anew() -> None:
    @dataclass(frozen=True)
    class Base:
        one: int = 1
        """The first."""
        two: int = 2
        """The second,
        on two lines."""

    @dataclass(frozen=True)
    class Derived(Base):
        one: int = 3
        three: int = 3
        """The third."""

    assert documentation(Derived) == {"one": "The first.", "two": "The second, on two lines.", "three": "The third."}
