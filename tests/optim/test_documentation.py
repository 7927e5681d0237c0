"""The page on optimizers: its code runs, its settings exist."""

import re
from pathlib import Path

import pytest

from jobs.command_line import read
from jobs.train import Train
from rayrec.families.ranker.experiment import RankerExperiment

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


def test_the_python_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})


def test_the_training_command_of_the_page_is_understood() -> None:
    (command,) = re.findall(r"jobs.train ranker (.*)", PAGE.read_text())
    parsed = read(Train[RankerExperiment], arguments=command.split())
    assert parsed.experiment.optimizer.optimizer == "apollo"
    for option in re.findall(r"`(--optimizer[a-z.-]+) ([\d.]+)`", PAGE.read_text()):
        read(Train[RankerExperiment], arguments=[*command.split(), *option])
