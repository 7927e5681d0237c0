"""A small ranker's schema, and decisions in it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel
from rayrec.traffic.decisions import LoggedDecision

SCHEMA = LogSchema(
    "small",
    (
        CategoricalFeature("genre", encoding="hash", buckets=10),
        SequenceFeature("history", shares="genre"),
        DenseFeature("price", transform="none"),
    ),
    (TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    weight="importance",
    extras=("teacher",),
)
STAGES = ("early", "late")


def decision(
    request: str, time_ms: int = 1_000, shown: int = 2, count: int = 4, user: str | None = "ann"
) -> LoggedDecision:
    """``count`` items item-0, item-1, ..., of which the first ``shown`` are in the reply."""
    places = np.arange(count)
    return LoggedDecision(
        request=request,
        time_ms=time_ms,
        user=user,
        arm="new",
        models={"early": "small/3"},
        items=[f"item-{i}" for i in range(count)],
        stages=["shown" if i < shown else "early" for i in range(count)],
        position=np.where(places < shown, places, -1),
        scores={"early": places / 10, "late": np.where(places < shown, 0.5, np.nan)},
        features=pa.table(
            {
                "genre": pa.array(places % 5, pa.int32()),
                "history": pa.array([[1, 2]] * count, pa.list_(pa.int32())),
                "price": pa.array(places + 0.5, pa.float32()),
            }
        ),
    )


def requests_of(tables: Sequence[pa.Table]) -> list[str]:
    """Requests in order, once each."""
    return list(dict.fromkeys(r for table in tables for r in table.column("served_request").to_pylist()))
