"""What a shadow ranker would have shown in place of what was: its own first k of the candidates that the late ranker scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.traffic.arm_sums import Period, ShownRows, whole_decisions
from rayrec.traffic.calibration import joint_probabilities
from rayrec.traffic.decisions import PREDICTED, SCORE, TIME, decision_tables
from rayrec.traffic.over_users import Estimate, ratio_of_sums

_KEYS = ["served_request", "served_item"]
_SCORE = f"{SCORE}shadow"


@dataclass(frozen=True)
class ShadowOfArm:
    """Beside the answers of one arm (also "all", "mixed"); intervals over users, a request without a user being one.

    decisions: that the shadow scored. other: share of them in which it would have shown at least one other item. overlap: share
    of an answer's k items that are among its own first k. mean_rank: of the shown items in its order, from 1; own_rank: the same
    in the order in which they were shown. calibration: by task, yes over those that it predicted of what was shown.
    """

    decisions: int
    other: Estimate
    overlap: Estimate
    mean_rank: Estimate
    own_rank: float
    calibration: Mapping[str, Estimate]


def compare_shadow(
    book: Path, shown: ShownRows, tasks: tuple[str, ...], period: Period, level: float = 0.95
) -> dict[str, ShadowOfArm]:
    """By arm. book: of the shadow. shown, tasks: of ``TrafficSums``. Memory: a rank and two names a candidate of the shadow."""
    schema = read_schema(book / "decisions" / "schema.json")
    ranked = _ranked(book, schema, period)
    if ranked is None:
        return {}
    place = pa.array(np.arange(shown.table.num_rows))
    rows = ranked.join(shown.table.append_column("row", place), _KEYS, join_type="inner").sort_by("row")
    found = {}
    for arm in sorted(rows["served_arm"].unique().to_pylist()):
        mine = rows.filter(pc.equal(rows["served_arm"], arm))
        found[arm] = _of_arm(mine, shown.positives[mine["row"].to_numpy()], schema, tasks, level)
    return found


def _ranked(book: Path, schema: LogSchema, period: Period) -> pa.Table | None:
    """Request, item, rank from 1 (ties in the order of the log), predictions."""
    predicted = [f"{PREDICTED}{task}" for task in schema.task_names]
    tables = []
    for table in whole_decisions(
        decision_tables(book / "decisions", [TIME, *_KEYS, _SCORE, *predicted], period.since_ms)
    ):
        codes = table["served_request"].combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.lexsort((-table[_SCORE].to_numpy(), codes))
        first = np.searchsorted(codes[order], codes[order])
        rank = np.empty(len(codes), np.int64)
        rank[order] = np.arange(len(codes)) - first + 1
        tables.append(table.drop_columns([TIME, _SCORE]).append_column("rank", pa.array(rank)))
    return pa.concat_tables(tables) if tables else None


def _of_arm(
    rows: pa.Table, positives: NDArray[np.float64], schema: LogSchema, tasks: tuple[str, ...], level: float
) -> ShadowOfArm:
    request = rows["served_request"].combine_chunks().dictionary_encode()
    code, count = request.indices.to_numpy(), len(request.dictionary)
    rank = rows["rank"].to_numpy().astype(np.float64)
    k = np.bincount(code, minlength=count)
    hits = np.bincount(code, rank <= k[code], minlength=count)
    unit = _units(rows, code, count)
    users = int(unit.max()) + 1

    def ratio(y: NDArray[Any], n: NDArray[Any]) -> Estimate:
        """Of sums by decision."""
        return ratio_of_sums(np.bincount(unit, y, users), np.bincount(unit, n, users)).estimate(level)

    one, shown = np.ones(count), k.astype(np.float64)
    predicted = {
        task: rows[f"{PREDICTED}{task}"].to_numpy(zero_copy_only=False).astype(np.float64) for task in schema.task_names
    }
    joint = joint_probabilities(predicted, schema.tasks)
    calibration = {
        task: ratio(np.bincount(code, positives[:, i], count), np.bincount(code, joint[task], count))
        for i, task in enumerate(tasks)
        if task in joint
    }
    own = float((shown * (shown + 1) / 2).sum() / shown.sum())
    ranks = ratio(np.bincount(code, rank, count), shown)
    other = ratio((hits < k).astype(np.float64), one)
    return ShadowOfArm(count, other, ratio(hits / k, one), ranks, own, calibration)


def _units(rows: pa.Table, code: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) the user of each decision as a number; a request without one is its own."""
    users = rows["served_user_name"].combine_chunks().dictionary_encode()
    of_row = pc.fill_null(users.indices, -1).to_numpy(zero_copy_only=False)
    of_request = np.empty(count, np.int64)
    of_request[code] = of_row
    nobody = of_request < 0
    of_request[nobody] = len(users.dictionary) + np.arange(nobody.sum())
    return np.unique(of_request, return_inverse=True)[1]
