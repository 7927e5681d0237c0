"""Two raylets on this machine: what changes about items on one node is known on the other. Run by test_two_nodes.py.

python -m tests.serve_apps.two_nodes FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from rayrec.typed_json import to_plain
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.retriever_stage import RetrieverStageSize
from serve_apps.items.keeper import keeper_of
from serve_apps.retriever.application import RetrieverService
from serve_apps.service.model_reference import ModelReference
from tests.conftest import write_small_log
from tests.serve_apps.cascade_parts import small_parts
from tests.serve_apps.retriever_bundle import small_encoder, small_retriever
from tests.serve_apps.test_cascade import ASK
from tests.serve_apps.test_retriever_serving import free_port

HISTORY = ["red shoe", "blue lamp"]


def main(folder: Path) -> None:
    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150_000_000})
    cluster.add_node(num_cpus=2, object_store_memory=150_000_000)
    ray.init(address=cluster.address)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            told("two nodes and Serve", began)
            began = time.monotonic()
            check_retriever(client, folder)
            told("retriever", began)
            began = time.monotonic()
            check_cascade(client, folder)
            told("cascade", began)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def check_retriever(client: httpx.Client, folder: Path) -> None:
    """Two replicas, one on each node."""
    bundle = small_retriever(folder / "liger", small_encoder(folder / "encoder"))
    items = str(folder / "items")
    service = RetrieverService(replicas=2, items_folder=items, metrics_folder=str(folder / "metrics"))
    deploy(
        "retriever",
        "serve_apps.retriever.application:build",
        service,
        ["Retriever"],
        ModelReference(str(bundle), "liger", "1"),
    )
    nodes_of("Retriever", 2)
    ask = {"history": HISTORY, "k": 57, "method": "dense"}
    first = client.post("/v1/retrieve", json=ask).json()["items"][0]
    added = client.post("/v1/items", json={"item": "new", "text": "red tea"})
    assert added.status_code == 201, added.text
    assert added.json()["everywhere"], added.text
    assert client.put(f"/v1/items/{first}", json={"available": False}).json()["everywhere"]
    for _ in range(40):  # both replicas get some of these
        found = client.post("/v1/retrieve", json=ask).json()["items"]
        assert "new" in found
        assert first not in found
    os.kill(ray.get(keeper_of(items).process.remote()), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while client.put(f"/v1/items/{first}", json={"available": True}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while not all(first in client.post("/v1/retrieve", json=ask).json()["items"] for _ in range(20)):
        assert time.monotonic() < deadline
    assert all("new" in client.post("/v1/retrieve", json=ask).json()["items"] for _ in range(20))


def check_cascade(client: httpx.Client, folder: Path) -> None:
    """The retriever stage on both nodes."""
    parts = small_parts(folder, write_small_log(folder / "log"))
    service = CascadeService(
        retriever=RetrieverStageSize(replicas=2),
        state_folder=str(folder / "state"),
        metrics_folder=str(folder / "metrics-of-cascade"),
    )
    deploy("cascade", "serve_apps.cascade.application:build", service, CascadeService.deployments, parts.references())
    nodes_of("Retrieve", 2)
    ask = {**ASK, "retrieve": 57, "method": "dense", "trace": True}
    six = [item["item"] for item in client.post("/v1/recommend", json=ask).json()["items"]]
    assert client.post("/v1/items", json={"item": "new", "text": "red tea"}).json()["everywhere"]
    assert client.put(f"/v1/items/{six[0]}", json={"available": False}).json()["everywhere"]
    for _ in range(40):
        found = {row["item"] for row in client.post("/v1/recommend", json=ask).json()["trace"]}
        assert "new" in found
        assert six[0] not in found


def deploy(name: str, path: str, service: Any, deployments: Any, reference: Any) -> None:
    client = _get_global_client()
    assert client is not None
    parts = [{"name": part, "user_config": to_plain(reference)} for part in deployments]
    application = {
        "name": name,
        "route_prefix": "/",
        "import_path": path,
        "args": to_plain(service),
        "deployments": parts,
    }
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    deadline = time.monotonic() + 240
    while serve.status().applications[name].status != "RUNNING":
        assert time.monotonic() < deadline, serve.status().applications[name]
        time.sleep(0.2)
    client.wait_for_proxies_serving()


def nodes_of(deployment: str, count: int) -> None:
    """The replicas of a deployment lie on so many nodes."""
    alive = [a for a in actors().values() if a["State"] == "ALIVE" and f"#{deployment}#" in a["Name"]]
    assert len({a["Address"]["NodeID"] for a in alive}) == count, alive


def told(what: str, began: float) -> None:
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
