"""An application against its own OpenAPI document: requests drawn from it and beside it, replies held to it (schemathesis)."""

import json
import re

import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

BASE = "http://127.0.0.1"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUICK, MANY = 4, 100  # cases an operation and kind of data


def conforms(app: FastAPI, cases: int) -> int:
    """Draw so many cases of each operation, right ones and wrong ones, and hold the replies to the document; how many there
    were."""
    document = TestClient(app, base_url=BASE).get("/openapi.json").json()
    assert all(
        part in document["components"]["schemas"]
        for part in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    )
    assert "#/$defs" not in json.dumps(document)
    schema = schemathesis.openapi.from_dict(document)
    schema.app = app
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        asks_something = bool(list(found.ok().iter_parameters())) or bool(found.ok().body)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + asks_something]:

            @settings(
                max_examples=cases, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=found.ok().as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                nonlocal asked
                case.validate_response(case.call(base_url=BASE), checks=CHECKS)
                asked += 1

            ask()
    return asked
