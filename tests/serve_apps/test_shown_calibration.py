"""What a ranker expects among what is shown, against feedback: by hand, and in the metrics of a cascade."""

import re
from pathlib import Path

import numpy as np
import pytest

from rayrec.data.log.schema import TaskLabel
from rayrec.traffic.calibration import expected_positives
from tests.serve_apps.cascade_parts import Parts, small_parts
from tests.serve_apps.test_arms import Service
from tests.serve_apps.test_cascade import ASK, post

SHOWN = np.array([2, 0])


def test_of_a_task_that_needs_another_the_yes_of_both_is_expected() -> None:
    tasks = (TaskLabel("pay", observed_when="buy"), TaskLabel("click"), TaskLabel("buy", observed_when="click"))
    p = {"click": np.array([0.5, 0.9, 0.25]), "buy": np.array([0.5, 0.9, 1.0]), "pay": np.array([0.1, 0.9, 0.2])}
    expected = {"click": 0.75, "buy": 0.5 * 0.5 + 0.25, "pay": 0.5 * 0.5 * 0.1 + 0.25 * 0.2}
    assert expected_positives(p, SHOWN, tasks) == pytest.approx(expected)
    assert expected_positives({"buy": p["buy"], "pay": p["pay"]}, SHOWN, tasks) == {}


def test_tasks_that_wait_for_each_other_are_left_out() -> None:
    tasks = (TaskLabel("a", observed_when="b"), TaskLabel("b", observed_when="a"), TaskLabel("c"))
    p = {name: np.array([0.5, 0.5, 0.5]) for name in "abc"}
    assert expected_positives(p, SHOWN, tasks) == {"c": 1.0}


def test_simulated_answers_are_as_many_as_expected() -> None:
    """Labels drawn by the probabilities: positives over expectation is 1 within its standard error."""
    generator = np.random.default_rng(0)
    tasks = (TaskLabel("click"), TaskLabel("buy", observed_when="click"))
    p = {"click": generator.random(20_000), "buy": generator.random(20_000)}
    click = generator.random(20_000) < p["click"]
    buy = click & (generator.random(20_000) < p["buy"])
    expected = expected_positives(p, np.arange(20_000), tasks)
    assert click.sum() / expected["click"] == pytest.approx(1, abs=0.03)
    assert buy.sum() / expected["buy"] == pytest.approx(1, abs=0.05)


def test_the_metrics_hold_what_was_expected_and_told_by_task_and_version(small_log: Path, tmp_path: Path) -> None:
    parts: Parts = small_parts(tmp_path / "parts", small_log)
    service = Service(parts.references(), tmp_path)
    replies = [service.ask({**ASK, "user": f"user-{i}"}) for i in range(4)]
    items = [item for reply in replies for item in reply["items"]]
    for reply in replies[:3]:
        for labels in ({"click": 1}, {"click": 1, "buy": 1}, {"click": 1}):  # the click counts once
            event = {"request": reply["request"], "item": reply["items"][0]["item"], "labels": labels}
            assert post(service.app, event, "/v1/feedback").status_code == 200
    event = {"request": replies[3]["request"], "item": replies[3]["items"][0]["item"], "labels": {"click": 0}}
    assert post(service.app, event, "/v1/feedback").status_code == 200
    page = post(service.app, None, "/metrics").text
    clicks = [item["probabilities"]["click"] for item in items]
    buys = [item["probabilities"]["click"] * item["probabilities"]["buy"] for item in items]
    labels = 'model="late/1",task="{}"'
    assert value(page, "rayrec_shown_items_total", labels.format("click")) == 20
    assert value(page, "rayrec_shown_predicted_total", labels.format("click")) == pytest.approx(sum(clicks))
    assert value(page, "rayrec_shown_predicted_total", labels.format("buy")) == pytest.approx(sum(buys))
    assert value(page, "rayrec_feedback_positives_total", labels.format("click")) == 3
    assert value(page, "rayrec_feedback_positives_total", labels.format("buy")) == 3


def value(page: str, name: str, labels: str) -> float:
    found = re.search(rf"^{name}\{{{re.escape(labels)}\}} (\S+)$", page, re.MULTILINE)
    assert found is not None, [line for line in page.splitlines() if line.startswith(name)]
    return float(found[1])


def test_after_a_restart_feedback_counts_for_the_version_that_ranked(small_log: Path, tmp_path: Path) -> None:
    parts = small_parts(tmp_path / "parts", small_log)
    before = Service(parts.references(), tmp_path)
    reply = before.ask(ASK)
    before.owner.ledger.close()
    after = Service(parts.references(late=True), tmp_path)
    event = {"request": reply["request"], "item": reply["items"][0]["item"], "labels": {"click": 1}}
    assert post(after.app, event, "/v1/feedback").status_code == 200
    page = post(after.app, None, "/metrics").text
    assert value(page, "rayrec_feedback_positives_total", 'model="late/1",task="click"') == 1
