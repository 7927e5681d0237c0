"""The study of code accuracy: its table, and what it says where there is nothing to judge."""

from pathlib import Path

import pytest
import torch

from rayrec.retrieval.code_accuracy import RightCodes
from rayrec.typed_json import ConfigError
from studies.code_accuracy import CodeAccuracy, run, table


def test_the_table_has_each_codes_accuracy_over_seeds_and_how_many_codes_there_were() -> None:
    choices = torch.tensor([[4, 1], [4, 2]])
    one = RightCodes(torch.tensor([[True, True], [False, True]]), choices)
    other = RightCodes(torch.tensor([[False, True], [False, False]]), choices)
    (line,) = table({"depth": [one, other]})[2:]
    assert line == "| depth | 2 | 0.2500 (0.2500) of 4.0 | 0.7500 (0.2500) of 1.5 | 0.2500 (0.2500) |"
    (line,) = table({"depth": [one]})[2:]
    assert line == "| depth | 1 | 0.5000 of 4.0 | 1.0000 of 1.5 | 0.5000 |"


def test_a_comparison_that_is_not_there_is_told(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"comparison.json: no such file; make the comparison with jobs.compare"):
        run(CodeAccuracy("absent"))
