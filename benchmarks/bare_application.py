"""What a Serve application does at least for the same request: it parses the body and answers a list; for benchmarks.serving."""

import json

from fastapi import FastAPI, Request
from ray import serve

_APP = FastAPI()


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=4096,
    ray_actor_options={
        "num_cpus": 0.1,
        "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}},
    },
    logging_config={"log_level": "WARNING", "enable_access_log": False},
)
@serve.ingress(_APP)
class Bare:
    """As many replicas as the ranker has."""

    @_APP.post("/v1/rank")
    async def rank(self, request: Request) -> dict[str, list[int]]:
        return {"order": list(range(len(json.loads(await request.body())["candidates"])))}
