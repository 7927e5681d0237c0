"""The page on a model of one's own: its files are a family that trains, is loaded, swept and served; its commands run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from jobs import train
from rayrec.errors import UserError
from rayrec.families.table import OTHERS, families, family_of, read_experiment
from serve_apps.ranker.served import Ranked, ServedRanker
from tests.conftest import write_small_log

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_model.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(scorecard/\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the page's files."""
    (tmp_path / "scorecard").mkdir()
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The family in this process."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(OTHERS, "scorecard:FAMILY")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "scorecard"]:
        del sys.modules[name]


def test_the_page_shows_six_files() -> None:
    assert list(FILES) == [
        f"scorecard/{name}.py" for name in ("model", "task", "experiment", "space", "serving", "__init__")
    ]


def test_the_family_trains_in_process_beside_those_that_are_here_and_its_bundle_comes_back(
    here: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_small_log(here / "log", rows=6_000)
    options = ["--name", "card", "--log", str(log), "--in-process", "--loop.epochs", "4", "--ridge", "0.001"]
    monkeypatch.setattr(sys, "argv", ["jobs.train", "scorecard", *options])
    train.main()
    bundle = family_of("scorecard").load_bundle(runs / "card" / "bundle")
    judged = bundle.metadata.metrics["test"]
    assert judged["click"]["auc"] > 0.6  # the item alone tells something; two features tell no more
    assert [f.name for f in bundle.schema.features] == ["user", "item"]
    served = ServedRanker(bundle, "card", "1", 100)
    body = {"candidates": [{"user": "7", "item": "item-3"}, {"user": "7", "item": "item-4"}], "order_by": "click"}
    (answer,) = served.rank([served.requests.parse(json.dumps(body).encode())])
    assert isinstance(answer, Ranked)
    logit = torch.from_numpy(answer.probabilities[:, 0]).logit()  # the user's points cancel between the two
    points = bundle.model.points[1].weight.detach()[:, 0].double()
    assert logit[0] - logit[1] == pytest.approx(float(points[4] - points[5]), abs=1e-5)
    again = read_experiment(json.dumps(bundle.metadata.run_config), "the bundle")
    assert (again.kind, again.task().objective_name) == ("scorecard", "valid/mean_normalized_entropy")


def test_without_the_variable_nothing_outside_is_imported_and_what_is_wrong_with_it_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OTHERS)
    with pytest.raises(
        UserError, match=r"no family of models is called 'scorecard'; there are ranker, .*RAYREC_FAMILIES"
    ):
        family_of("scorecard")
    assert "scorecard" not in sys.modules
    for value, told in (
        ("scorecard:FAMILIES", "scorecard:FAMILIES: .*no attribute"),
        ("cardboard:FAMILY", "cardboard:FAMILY: No module"),
        ("scorecard.model:Scorecard", "is no Family but type"),
        ("scorecard:FAMILY,scorecard:FAMILY", "there is a family 'scorecard'"),
    ):
        monkeypatch.setenv(OTHERS, value)
        with pytest.raises(UserError, match=told):
            families()


@pytest.mark.slow
def test_the_commands_of_the_page_train_sweep_and_serve_it(folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAYREC_RUNS": str(folder / "runs"),
        "RAY_worker_niceness": "0",  # by its default of 15 trials and replicas starve beside whatever else the machine does
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    setup, *lines = COMMANDS.strip().splitlines()
    assert setup.startswith("export PYTHONPATH=$PWD ")
    setup = setup.replace("$PWD", f"$PWD:{ROOT}")
    *jobs, service = lines
    for line in jobs:
        done = subprocess.run(
            ["bash", "-c", f"{setup}\n{line}"], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    port = _free_port()
    command = f"{setup}\nexec {service.replace('8123', str(port))}"
    serving = subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(trust_env=False, timeout=30) as client:
            model = _wait_for(client, f"{url}/v1/model", serving)
            assert model["name"] == "card"
            candidates = [{f["name"]: "1" for f in model["features"]} for _ in range(2)]
            body = {"candidates": candidates, "order_by": model["tasks"][0]["name"]}
            answer = client.post(f"{url}/v1/rank", json=body)
        assert answer.status_code == 200, answer.text
        probabilities = answer.json()["probabilities"][model["tasks"][0]["name"]]
        assert len(probabilities) == 2
        assert 0 < probabilities[0] < 1
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=60)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(client: httpx.Client, url: str, process: "subprocess.Popen[str]") -> dict:  # type: ignore[type-arg]
    for _ in range(600):
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read())
        try:
            return client.get(url).raise_for_status().json()  # type: ignore[no-any-return]
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
