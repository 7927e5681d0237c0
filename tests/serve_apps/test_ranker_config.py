"""The config file for ``serve deploy``, and the limits a service is built with."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rayrec.typed_json import ConfigError, from_plain
from serve_apps.ranker.application import RankerService, build
from serve_apps.service.access import is_loopback
from serve_apps.service.model_reference import ModelReference

CONFIG = Path(__file__).parents[2] / "serve_apps" / "ranker.yaml"


def test_the_config_file_is_one_that_serve_deploys_on_loopback() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert from_plain(RankerService, application.args) == RankerService()
    (deployment,) = application.deployments
    assert from_plain(ModelReference, deployment.user_config) == ModelReference("models:/ranker@serving")
    assert is_loopback(config.http_options.host)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_candidats": 5}, "max_candidats"),
        ({"max_running": 0}, "max_running must be at least 1"),
        ({"max_candidates": 5000}, "max_batch_candidates must be at least max_candidates"),
    ],
)
def test_wrong_args_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(args)
