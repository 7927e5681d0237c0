"""The Grafana dashboard asks for what a service exports, and Grafana can lay it out."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from serve_apps.service.metrics import FOLDER_VARIABLE, ServingMetrics

FILE = Path(__file__).parents[2] / "serve_apps" / "grafana_dashboard.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """The labels of each series that a replica's page can hold, by name."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    series = {}
    for metric in vars(ServingMetrics()).values():
        if hasattr(metric, "_labelnames"):
            ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[metric._type]
            series |= {metric._name + end: metric._labelnames for end in ends}
    assert len(series) > 20
    return series


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    return [(target["expr"], target["legendFormat"]) for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_series_and_label_that_a_panel_asks_for_is_exported(
    dashboard: dict[str, Any], exported: dict[str, tuple[str, ...]]
) -> None:
    for expression, legend in expressions(dashboard):
        asked = re.findall(r"rayrec_\w+", expression)
        assert asked, expression
        for name in asked:
            assert name in exported, f"{name} in {expression}"
            by = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
            assert by - {"le"} <= set(exported[name]), f"{name} has {exported[name]}: {expression}"
            if "le" in by:
                assert name.endswith("_bucket")
        assert set(re.findall(r"{{(\w+)}}", legend)) <= set(exported[asked[0]])
        assert expression.count("(") == expression.count(")")
        assert all(
            name.endswith(("_total", "_bucket", "_sum", "_count"))
            for name in re.findall(r"(?:rate|increase)\((\w+)", expression)
        )


def test_every_metric_of_a_service_is_on_the_dashboard(
    dashboard: dict[str, Any], exported: dict[str, tuple[str, ...]]
) -> None:
    asked = {name for expression, _ in expressions(dashboard) for name in re.findall(r"rayrec_\w+", expression)}
    stems = {re.sub("_(bucket|sum|count)$", "", name) for name in exported}
    assert stems == {re.sub("_(bucket|sum|count)$", "", name) for name in asked}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_prometheus_reads_every_expression(dashboard: dict[str, Any], tmp_path: Path) -> None:
    asked = [text.replace("$job", ".*").replace("$__rate_interval", "5m") for text, _ in expressions(dashboard)]
    rules = [{"record": f"panel_{number}", "expr": text} for number, text in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    found = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert f"{len(asked)} rules found" in found.stdout


def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)  # Grafana's grid
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", FILE.read_text()))
    assert used - {"__rate_interval", "__all"} == names
