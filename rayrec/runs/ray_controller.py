"""Ray Train's controller for an own cluster, whose processes have the driver's environment already. Imports Ray Train only.

Ray Train gives its actors their settings as an environment of their own, so that none of them can take a process that stands by.
"""

from typing import Any

from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class PlainWorkerGroup(WorkerGroup):
    """Its workers may run in any process."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class PlainController(TrainController):
    """Of such workers."""

    worker_group_cls = PlainWorkerGroup


class OwnWorkers(FixedScalingPolicy):
    """An own cluster does not grow: no one is asked for room, who would be an actor and two seconds of imports."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
