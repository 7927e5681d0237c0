"""serve_apps/retriever.yaml on a real Ray Serve: answers of two replicas, and an item that all of them know at once."""

import socket
import time
from pathlib import Path

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.serve_apps.retriever_bundle import small_encoder, small_retriever

CONFIG = Path(__file__).parents[2] / "serve_apps" / "retriever.yaml"


@pytest.mark.slow
def test_two_replicas_answer_and_share_added_items(ray_session: None, tmp_path: Path) -> None:
    bundle = small_retriever(tmp_path / "liger", small_encoder(tmp_path / "encoder"))
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config["applications"]
    application["deployments"][0]["user_config"] = {"model": str(bundle), "version": "7"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": config["applications"]}))
        deadline = time.monotonic() + 120
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
