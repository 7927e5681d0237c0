"""What Ray Train does without on an own cluster, by Ray's own names."""

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, scaling_policy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from rayrec.runs.ray_controller import OwnWorkers, PlainController, PlainWorkerGroup


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
