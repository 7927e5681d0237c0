"""How a deployment that does not come up is told."""

import threading

import pytest
from ray.serve._private.application_state import ApplicationStatusInfo, StatusOverview
from ray.serve._private.common import DeploymentStatus, DeploymentStatusInfo, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from jobs.serve import Serve, run
from jobs.serve_cascade import ServeCascade, run_cascade
from rayrec.typed_json import ConfigError
from serve_apps import deploying
from serve_apps.deploying import DeployedService, DeploymentError
from serve_apps.ranker.application import RankerService
from serve_apps.service.model_reference import ModelReference


class Client:
    """Of a Serve whose application stays in one state."""

    def __init__(self, status: ApplicationStatus) -> None:
        self.status = status

    def deploy_apps(self, config: ServeDeploySchema) -> None:
        self.name = config.applications[0].name

    def get_serve_status(self, name: str) -> StatusOverview:
        assert name == self.name
        replica = DeploymentStatusInfo(
            "Ranker", DeploymentStatus.UNHEALTHY, DeploymentStatusTrigger.REPLICA_STARTUP_FAILED, "no such folder"
        )
        return StatusOverview(ApplicationStatusInfo(self.status, "a deployment failed", 0.0), name, [replica])


@pytest.mark.parametrize("port", [-1, 0, 70_000])
def test_a_port_that_there_is_not_is_told_before_anything_is_loaded(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port must lie in .*65535, not {port}"):
        run(Serve(RankerService(), "models:/nothing@serving", port=port), threading.Event())
    with pytest.raises(ConfigError, match=f"port must lie in .*65535, not {port}"):
        run_cascade(ServeCascade(port=port), threading.Event())


@pytest.mark.parametrize("status", [ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DEPLOYING])
def test_a_service_that_does_not_come_up_is_told_with_all_that_serve_says(
    monkeypatch: pytest.MonkeyPatch, status: ApplicationStatus
) -> None:
    monkeypatch.setattr(deploying, "_get_global_client", lambda: Client(status))
    service = DeployedService("http://127.0.0.1:1", RankerService())
    wanted = rf"^the service is {status.value}: a deployment failed; no such folder$"
    with pytest.raises(DeploymentError, match=wanted):
        service.deploy(ModelReference("/models/1", "m", "1"), timeout_s=0.2)
