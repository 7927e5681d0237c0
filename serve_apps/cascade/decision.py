"""One answered request, whole: what is handed over when the reply is made, to be logged, compared or learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reached = Literal["without_features", "filtered", "unavailable", "retrieved", "early", "late", "shown"]
"""How far a candidate came: left out for want of a row of features, by the request's ``where``, or because it was taken out;
ranked by nobody but the retriever; scored last by that ranker, and cut; in the reply."""


@dataclass(frozen=True)
class Decision:
    """N candidates in the retriever's order.

    request: its id, as in the reply. time_ms: Unix time of its arrival, in ms. models: "name/version" by stage ("retrieve",
    "early", "late", "features"), of the stages that answered. late: stages that did not answer in time.
    items: (N,) names. reached: (N,). position: (N,) int64, place in the reply from 0, -1 = not in it.
    scores: by stage, (N,) float64, NaN where a candidate was not scored. probabilities: by stage and task, the same.
    rows: (N,) of the table of the items' features, -1 = none. columns: raw values of those that the rankers read, by name, (N,),
    None where an item has no row or no value.
    arm: of the experiment in traffic that the user is in.
    """

    request: str
    time_ms: int
    user: str | None
    history: Sequence[str]
    preference: str
    context: Mapping[str, Any]
    models: Mapping[str, str]
    late: tuple[str, ...]
    items: Sequence[str]
    reached: Sequence[Reached]
    position: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]
    probabilities: Mapping[str, Mapping[str, NDArray[np.float64]]]
    rows: NDArray[np.int64]
    columns: Mapping[str, Sequence[Any]]
    arm: str = "all"
