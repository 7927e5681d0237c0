"""Three raylets on this machine: one with a replica of a service is killed under load. Run by test_lost_serving_node.py.

python -m tests.serve_apps.lost_serving_node FOLDER
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

from rayrec.data.log import Log
from serve_apps.example_request import example_request
from serve_apps.ranker.application import RankerService
from serve_apps.service.model_reference import ModelReference
from tests.conftest import write_small_log
from tests.serve_apps.cascade_parts import small_ranker
from tests.serve_apps.test_retriever_serving import free_port
from tests.serve_apps.two_nodes import deploy, nodes_of, told

NODE: dict[str, Any] = {"object_store_memory": 150_000_000}
CLIENTS, EVERY_S, BEFORE_S, QUIET_S = 4, 0.1, 5.0, 10.0
RESTORED_S = 120.0


@dataclass
class Load:
    """Clients that ask the same again and again. asked: when, in seconds; what came: 200 and right, or what else."""

    url: str
    body: dict[str, Any]
    expected: dict[str, Any]
    asked: list[tuple[float, float, str]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
            while not self.done.wait(EVERY_S):
                began = time.monotonic()
                try:
                    reply = client.post("/v1/rank", json=self.body)
                    found = self.judge(reply) if reply.status_code == 200 else str(reply.status_code)
                except httpx.HTTPError as error:
                    found = type(error).__name__
                self.asked.append((began, time.monotonic(), found))

    def judge(self, reply: httpx.Response) -> str:
        given = reply.json()
        same = given["order"] == self.expected["order"] and given["model"] == self.expected["model"]
        return "right" if same and given["scores"] == pytest.approx(self.expected["scores"], rel=1e-5) else "wrong"


def main(folder: Path) -> None:
    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})  # replicas find no place there
    for _ in range(2):
        cluster.add_node(num_cpus=2, **NODE)
    ray.init(address=cluster.address)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        log = Log.open(write_small_log(folder / "log"))
        bundle = small_ranker(folder / "ranker", log.schema, 0)
        service = RankerService(replicas=2, metrics_folder=str(folder / "metrics"))
        deploy(
            "ranker",
            "serve_apps.ranker.application:build",
            service,
            ["Ranker"],
            ModelReference(str(bundle), "ranker", "1"),
        )
        nodes_of("Ranker", 2)
        told("three nodes and a service on two of them", began)
        lose_one(cluster, f"http://127.0.0.1:{port}", example_request(log, candidates=8))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def lose_one(cluster: Cluster, url: str, body: dict[str, Any]) -> None:
    expected = httpx.post(f"{url}/v1/rank", json=body, timeout=60, trust_env=False).raise_for_status().json()
    assert len(set(expected["scores"])) > 1  # else any order would be right
    load = Load(url, body, expected)
    clients = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        time.sleep(BEFORE_S)
        lost = replicas()[0]
        killed = time.monotonic()
        (node,) = [node for node in cluster.worker_nodes if node.node_id == lost]
        cluster.remove_node(node, allow_graceful=False)
        told("the node's processes were ended", killed)
        while len([place for place in replicas() if place != lost]) < 2 or not is_whole():
            assert time.monotonic() < killed + RESTORED_S, serve.status().applications["ranker"]
            time.sleep(0.1)
        restored = time.monotonic()
        told("two replicas again, after the kill", killed)
        time.sleep(QUIET_S)
    finally:
        load.done.set()
        for client in clients:
            client.join()
    nodes_of("Ranker", 1)
    report(load.asked, killed, restored)


def report(asked: list[tuple[float, float, str]], killed: float, restored: float) -> None:
    """Prints what came when, in seconds after the kill; asserts what must hold."""
    failed = sorted((began - killed, ended - killed, found) for began, ended, found in asked if found != "right")
    slow = max(ended - began for began, ended, found in asked if found == "right" and ended > killed)
    found = {
        "requests": len(asked),
        "failed": len(failed),
        "kinds": sorted({kind for _, _, kind in failed}),
        "last_failure_s": round(failed[-1][0], 1) if failed else None,
        "slowest_right_s": round(slow, 1),
        "restored_s": round(restored - killed, 1),
        "right_after": sum(1 for began, _, kind in asked if began > restored and kind == "right"),
    }
    print(json.dumps(found), flush=True)
    assert "wrong" not in found["kinds"]
    assert not [each for each in failed if each[1] < 0], "failures before anything was lost"
    assert not [each for each in failed if each[0] > restored - killed], "failures with both replicas there"
    assert len(failed) <= CLIENTS, "more failed than the lost replica can have had in work"
    assert found["right_after"] > CLIENTS


def replicas() -> list[str]:
    """Ids of the nodes of living replicas, one each."""
    return [a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE" and "#Ranker#" in a["Name"]]


def is_whole() -> bool:
    application = serve.status().applications["ranker"]
    return application.status == "RUNNING" and application.deployments["Ranker"].replica_states == {"RUNNING": 2}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
