"""Raylets on this machine: training over two of them, and one lost in the middle while a third is idle. Run by test_lost_node.py.

python -m tests.training.lost_node FOLDER
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.runs.fitting import fit
from rayrec.runs.run_folder import FinishedRun
from rayrec.training.experiment import ScalingOptions
from rayrec.training.loop import LoopConfig
from rayrec.training.worker import RunOptions
from tests.conftest import write_small_log

NODE = {"num_cpus": 2, "object_store_memory": 150_000_000}
APART, TOGETHER = ScalingOptions(workers=2, cpus_per_worker=1.5), ScalingOptions(workers=2, cpus_per_worker=0.5)
STEPS = 3 * (12_000 // 2 // 64)


def main(folder: Path) -> None:
    began = time.monotonic()
    os.environ["RAYREC_RUNS"] = str(folder / "runs")
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as a Ray that a job starts for itself
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150_000_000})
    for _ in range(3):
        cluster.add_node(**NODE)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        told("four raylets", began)
        experiment = RankerExperiment(
            log=write_small_log(folder / "log"),
            loop=LoopConfig(epochs=3, checkpoint_every_steps=50, patience=None),
            stream=StreamConfig(batch_size=64),
        )
        together = trained("together", experiment, TOGETHER, 1)
        apart = trained("apart", experiment, APART, 2)
        assert apart.progress.curve == together.progress.curve
        assert apart.progress.evaluations == together.progress.evaluations
        killer = threading.Thread(target=lose, args=(cluster, folder / "runs" / "lost"), daemon=True)
        killer.start()
        lost = trained("lost", experiment, APART, 2)
        killer.join()
        assert lost.progress.evaluations == together.progress.evaluations
    finally:
        ray.shutdown()
        cluster.shutdown()


def trained(name: str, experiment: RankerExperiment, scaling: ScalingOptions, nodes: int) -> FinishedRun:
    """To its end; its workers lay on so many nodes at once."""
    began, seen, done = time.monotonic(), set(), threading.Event()

    def look() -> None:
        while not done.wait(0.3):
            places = workers_lie_on()
            if len(places) == scaling.workers:
                seen.add(frozenset(places))

    watch = threading.Thread(target=look)
    watch.start()
    try:
        finished = fit(name, experiment, scaling, RunOptions(threads=1, progress_seconds=0.5))
    finally:
        done.set()
        watch.join()
    assert seen, "no workers were seen"
    assert {len(each) for each in seen} == {nodes}, seen
    assert finished.progress.step == STEPS
    told(f"{name}: {len(seen)} placing of workers", began)
    return finished


def lose(cluster: Cluster, run: Path) -> None:
    """Kill a node with a worker once the run has checkpoints behind it."""
    while newest_step(run) < 100:
        time.sleep(0.05)
    step, lost = newest_step(run), workers_lie_on()[0]
    (node,) = [node for node in cluster.worker_nodes if node.node_id == lost]
    cluster.remove_node(node, allow_graceful=False)
    print(f"a node was killed behind step {step} of {STEPS}", flush=True)
    assert step < STEPS


def workers_lie_on() -> list[str]:
    """Ids of the nodes, one a worker."""
    found = actors().values() if ray.is_initialized() else ()
    return [a["Address"]["NodeID"] for a in found if a["State"] == "ALIVE" and "RayTrainWorker" in a["ActorClassName"]]


def newest_step(run: Path) -> int:
    steps = [0]
    for file in (run / "train").glob("checkpoint_*/progress.json"):
        try:
            steps.append(json.loads(file.read_text())["step"])
        except (OSError, ValueError):  # being written, or just removed
            continue
    return max(steps)


def told(what: str, began: float) -> None:
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
