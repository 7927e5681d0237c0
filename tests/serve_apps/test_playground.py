"""The page in a browser, beside a service without Ray; skipped where there is no Chromium."""

import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from serve_apps.cascade.api import build_cascade_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from tests.serve_apps.cascade_parts import PlainStages, served_cascade, small_parts
from tests.serve_apps.chromium import CHROMIUM
from tests.serve_apps.test_cascade import ASK, InProcess

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
LINK = (
    "history=item-3,item-9&retrieve=40&early=12&k=5&context.age=0.3&context.user=u1&context.history=item-3,item-9&ask"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, small_log: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("playground")
    parts = small_parts(folder, small_log)
    stages = PlainStages(parts.references(), folder)
    service = InProcess(served_cascade(parts.references(), stages), stages)
    with served(build_cascade_app(service, ServingMetrics(), ServiceLimits())) as found:
        yield found


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Its address, while it is served over HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def browse(url: str, *options: str) -> str:
    """What the page has become once its script has come to rest."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        *options,
        url,
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_a_link_asks_and_the_page_shows_each_stage_in_its_order_and_who_was_cut(url: str) -> None:
    page = browse(f"{url}/play?{LINK}", "--dump-dom")
    answer = httpx.post(f"{url}/v1/recommend", json={**ASK, "trace": True}).json()
    captions = re.findall(r"<caption>([^<]*)</caption>", page)
    assert [caption.split(",")[0] for caption in captions] == [
        "Retrieved: 40 candidates", "Early ranker: 39 candidates", "Late ranker: 12 candidates"
    ]  # fmt: skip
    late = page[page.index("<caption>Late") :]
    shown = re.findall(r'<span class="name">([^<]*)</span>', late)
    assert shown[:5] == [item["item"] for item in answer["items"]]
    assert late.count('class="cut"') == 7
    assert "5 items in" in page
    assert "of 40 candidates" in page
    assert "no features" in page  # of the one item without a row
    title = next(row["title"] for row in answer["trace"] if row["item"] == "item-9")
    assert re.search(rf"<li>item-9 <button[^>]*>remove</button><small>{title}</small></li>", page)


def test_what_the_service_says_is_text_and_never_markup(url: str) -> None:
    page = browse(f"{url}/play?history=%3Cimg%20src%3Dx%3E&context.age=0&context.user=u&ask", "--dump-dom")
    assert "&lt;img src=x&gt;" in page
    assert "<img" not in page
    assert "history: holds no item that this model knows" in page


def test_a_wrong_value_is_told_beside_the_form(url: str) -> None:
    page = browse(f"{url}/play?{LINK.replace('context.age=0.3', 'where=colour%3Dred')}", "--dump-dom")
    assert "where &gt; colour: The items have no feature of this name" in page
