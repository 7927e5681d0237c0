"""A retriever on a real Ray Serve: by ``jobs.serve``, and by serve_apps/retriever.yaml; items that all replicas know at once."""

import shlex
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from jobs.serve import Serve, run
from serve_apps.retriever.application import RetrieverService
from tests.serve_apps.retriever_bundle import small_encoder, small_retriever

CONFIG = Path(__file__).parents[2] / "serve_apps" / "retriever.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_jobs_serve_answers_for_a_retriever_and_the_next_request_finds_an_added_item(
    ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = small_retriever(tmp_path / "liger", small_encoder(tmp_path / "encoder"))
    stop, port = threading.Event(), free_port()
    command = Serve(RetrieverService(items_folder=str(tmp_path / "items")), str(bundle), port=port)
    server = threading.Thread(target=run, args=(command, stop))
    server.start()
    try:
        shown, deadline = "", time.monotonic() + 300
        while "curl" not in shown:
            assert server.is_alive(), shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
            shown += capfd.readouterr().out
        words = shlex.split(shown[shown.index("curl") :].splitlines()[0])
        url, body = words[2], words[words.index("-d") + 1]
        assert url == f"http://127.0.0.1:{port}/v1/retrieve"
        with httpx.Client(headers={"Content-Type": "application/json"}, timeout=60) as client:
            reply = client.post(url, content=body)
            assert (reply.status_code, len(reply.json()["items"])) == (200, 5), reply.text
            added = client.post(f"http://127.0.0.1:{port}/v1/items", json={"item": "new", "text": "red tea"})
            assert added.status_code == 201, added.text
            for method in ("dense", "hybrid", "dense", "hybrid"):
                found = client.post(url, json={"history": ["red shoe", "new"], "k": 57, "method": method}).json()
                assert "new" in found["items"]
                assert found["ignored"] == []
    finally:
        stop.set()
        server.join(60)
    assert not server.is_alive()


@pytest.mark.slow
def test_two_replicas_answer_and_share_added_items(ray_session: None, tmp_path: Path) -> None:
    bundle = small_retriever(tmp_path / "liger", small_encoder(tmp_path / "encoder"))
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config["applications"]
    application["deployments"][0]["user_config"] = {"model": str(bundle), "version": "7"}
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": config["applications"]}))
        deadline = time.monotonic() + 300
        while serve.status().applications["retriever"].status != "RUNNING":
            assert time.monotonic() < deadline, serve.status().applications["retriever"].message
            time.sleep(0.2)
        client.wait_for_proxies_serving()
        url = f"http://127.0.0.1:{port}"
        ask = {"history": ["red shoe", "blue lamp"], "k": 57}
        reply = httpx.post(f"{url}/v1/retrieve", json=ask, timeout=30)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "liger/7"
        added = httpx.post(f"{url}/v1/items", json={"item": "new", "text": "red tea"}, timeout=60)
        assert added.status_code == 201, added.text
        for _ in range(20):  # both replicas get some of these
            assert "new" in httpx.post(f"{url}/v1/retrieve", json=ask, timeout=30).json()["items"]
        assert httpx.post(f"{url}/v1/retrieve", json={"history": 3}).status_code == 422
    finally:
        serve.shutdown()
