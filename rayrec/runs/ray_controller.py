"""Ray Train's controller without what a run can do without. Imports Ray Train only.

An own cluster's processes have the driver's environment already; Ray Train gives its actors their settings as an environment of
their own, so that none of them can take a process that stands by.
"""

from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group

_Barrier = worker_group.SynchronizationActor


class _Answer:
    """A method of an actor that is none."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def remote(self, *given: Any, **named: Any) -> ray.ObjectRef:
        return ray.put(self._answer(*given, **named))


class NoBarrier:
    """For a group of one worker, in place of the actor at which workers wait for each other: a process, and 1.3 s of CPU."""

    broadcast_from_rank_zero = _Answer(lambda *, data, **how: data)
    set_required_ranks = _Answer(lambda ranks: True)
    reset = _Answer(lambda: None)

    @classmethod
    def options(cls, **how: Any) -> type["NoBarrier"]:
        return cls

    @classmethod
    def remote(cls, **how: Any) -> "NoBarrier":
        return cls()


def _end_barrier(barrier: Any) -> None:
    if not isinstance(barrier, NoBarrier):
        ray.kill(barrier)


class LoneWorkerGroup(WorkerGroup):
    """One worker alone has no barrier."""

    def _start_impl(self, builder: Any) -> None:
        alone = self._worker_group_context.num_workers == 1
        starts: Any = worker_group
        ends: Any = state
        starts.SynchronizationActor = NoBarrier if alone else _Barrier
        ends._shutdown_sync_actor = _end_barrier
        super()._start_impl(builder)


class PlainWorkerGroup(LoneWorkerGroup):
    """Its workers may run in any process."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class LoneController(TrainController):
    """Of such workers, in a cluster of others."""

    worker_group_cls = LoneWorkerGroup


class PlainController(TrainController):
    """Of such workers."""

    worker_group_cls = PlainWorkerGroup


class OwnWorkers(FixedScalingPolicy):
    """An own cluster does not grow: no one is asked for room, who would be an actor and two seconds of imports."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
