"""Losses of every training method, step by step, as they were recorded before methods became parts (commit f482848).

``ranking_losses.json`` holds, by case, the JSON of a ranking config as it was written then and the totals of four SGD steps on
random rows: so each case also reads a config of that time. Weighted cases that perturb a share of the rows were recorded anew
when a copy came to stand for the rows that were not drawn (``PerturbationConfig.row_fraction``).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.batch import Batch
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.typed_json import from_plain

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("ranking_losses.json").read_text(encoding="utf-8"))
SCHEMA = LogSchema(
    "recorded",
    (
        DenseFeature("age", statistics=DenseStatistics(0.2, 1.5, 0.1)),
        DenseFeature("price", transform="log1p", statistics=DenseStatistics(0.5, 0.8, 0.0)),
        CategoricalFeature("user", encoding="hash", buckets=50),
        CategoricalFeature("item", encoding="hash", buckets=20),
        SequenceFeature("history", max_length=5, shares="item"),
    ),
    (TaskLabel("click"), TaskLabel("buy", observed_when="click"), TaskLabel("like")),
)


def rows(count: int, seed: int, *, weighted: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, 2, generator=generator)
    dense[torch.rand(count, generator=generator) < 0.1, 0] = torch.nan
    chances = torch.rand(count, 3, generator=generator)
    labels = (chances < torch.tensor([0.4, 0.2, 0.6])).float()
    labels[labels[:, 0] == 0, 1] = torch.nan
    names = ("teacher_click", "teacher_buy", "teacher_like", "propensity")
    return Batch(
        dense,
        torch.randint(0, 20, (count, 2), generator=generator),
        labels,
        (torch.randint(0, 20, (count, 5), generator=generator),),
        torch.rand(count, generator=generator) + 0.5 if weighted else None,
        {name: torch.rand(count, generator=generator) * 0.98 + 0.01 for name in names},
    )


def totals(config: RankingConfig, *, weighted: bool) -> list[float]:
    """The loss of four SGD steps."""
    torch.manual_seed(0)
    task = RankingTask(SCHEMA, config)
    model = task.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    found = []
    for step in range(4):
        loss = task.loss(model, rows(48, step, weighted=weighted), rows(96, 100 + step, weighted=weighted))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        found.append(float(loss.total.detach()))
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_losses_are_those_recorded_before(name: str) -> None:
    case = RECORDED[name]
    config = from_plain(RankingConfig, case["ranking"], name)
    assert totals(config, weighted=case["weighted"]) == pytest.approx(case["totals"], rel=1e-6, abs=1e-6)
