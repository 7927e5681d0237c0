"""What Ray Train does without on an own cluster, by Ray's own names."""

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, scaling_policy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayrec.errors import UserError
from rayrec.runs.ray_controller import LoneController, NoBarrier, OwnWorkers, PlainController, PlainWorkerGroup
from rayrec.runs.ray_train import Trainer, ray_train_settings
from rayrec.training.experiment import ScalingOptions


def test_an_own_cluster_is_asked_for_all_workers_and_no_one_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Client:
        def __init__(self, name: str) -> None:
            asked.append(name)

        def send_resource_request(self, scaling_config: ScalingConfig, workers: int) -> None:
            asked.append(f"{workers} workers")

        maybe_send_resource_request = send_resource_request

        def cancel_resource_request(self) -> None:
            asked.append("none")

    class Context:
        run_id = "1"

    monkeypatch.setattr(scaling_policy, "TrainAutoscalingCoordinatorClient", Client)
    for policy in (OwnWorkers(ScalingConfig(num_workers=3)), FixedScalingPolicy(ScalingConfig(num_workers=3))):
        assert not asked
        policy.after_controller_start(Context())
        assert policy.make_decision_for_non_running_worker_group().num_workers == 3
        policy.before_controller_abort()
    assert asked[:2] == ["train-1", "3 workers"]  # Ray's own does


def test_the_controllers_workers_take_any_process_and_the_settings_they_were_given() -> None:
    assert TrainController.worker_group_cls is WorkerGroup
    assert PlainController.worker_group_cls is PlainWorkerGroup
    assert "env_vars" in WorkerGroup._get_worker_runtime_env({})
    assert PlainWorkerGroup._get_worker_runtime_env({}) == {}


def test_one_worker_is_answered_as_by_ray_trains_barrier(ray_session: None) -> None:
    barrier = SynchronizationActor.options().remote(timeout_s=5, warn_interval_s=5)
    how = {"world_rank": 0, "world_size": 1, "data": "name", "caller_method_name": "report"}
    for asked in (
        lambda of: of.broadcast_from_rank_zero.remote(**how, collective_seq=3, relaxable=True),
        lambda of: of.set_required_ranks.remote([0]),
        lambda of: of.reset.remote(),
    ):
        assert ray.get(asked(NoBarrier.options().remote(timeout_s=5))) == ray.get(asked(barrier))
    ray.kill(barrier)


def test_all_that_ray_train_asks_of_its_barrier_is_answered_for_one_worker() -> None:
    sources = "".join(file.read_text() for file in (Path(ray.train.__file__).parent / "v2").rglob("*.py"))
    asked = set(re.findall(r"sync\w*_actor(?:\(\))?\s*\.(\w+)\.remote", sources))
    assert "broadcast_from_rank_zero" in asked
    assert not {name for name in asked if not hasattr(NoBarrier, name)}


def test_on_a_cluster_of_others_ray_trains_own_way_runs_the_controller_that_leaves_a_lone_worker_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")
    monkeypatch.setattr(
        DataParallelTrainer,
        "_initialize_and_run_controller",
        lambda self, **settings: used.append(data_parallel_trainer.TrainController),
    )
    object.__new__(Trainer)._initialize_and_run_controller()
    assert used == [LoneController]
    assert data_parallel_trainer.TrainController is TrainController
    assert "env_vars" in LoneController.worker_group_cls._get_worker_runtime_env({})


@pytest.mark.parametrize(("workers", "alone"), [(1, True), (2, False)])
def test_only_a_group_of_one_goes_without_ray_trains_barrier(
    monkeypatch: pytest.MonkeyPatch, workers: int, alone: bool
) -> None:
    theirs, made, killed = worker_group.SynchronizationActor, [], []
    monkeypatch.setattr(worker_group, "SynchronizationActor", theirs)  # put back after the test, as the next
    monkeypatch.setattr(state, "_shutdown_sync_actor", state._shutdown_sync_actor)
    monkeypatch.setattr(
        WorkerGroup, "_start_impl", lambda self, builder: made.append(worker_group.SynchronizationActor)
    )
    monkeypatch.setattr(ray, "kill", killed.append)
    group: Any = object.__new__(PlainWorkerGroup)
    group._worker_group_context = type("Context", (), {"num_workers": workers})
    group._start_impl(None)
    assert made == [NoBarrier if alone else theirs]
    state._shutdown_sync_actor(NoBarrier() if alone else "actor")
    assert killed == ([] if alone else ["actor"])


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        (
            ScalingOptions(workers=2, cpus_per_worker=40),
            "2 workers with 40 CPUs each ask for 80, and this machine has 4",
        ),
        (ScalingOptions(device="gpu"), "1 workers with 1 GPUs each ask for 1, and this machine has 0"),
    ],
)
def test_more_than_this_machine_has_is_refused_and_not_waited_for(
    ray_session: None, tmp_path: Path, scaling: ScalingOptions, told: str
) -> None:
    with pytest.raises(UserError, match=f"scaling: {told}"):
        ray_train_settings(tmp_path, scaling)
