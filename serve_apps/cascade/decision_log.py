"""A cascade's decisions as its log keeps them: in the columns of one of its rankers, which is trained on them. Knows no Ray."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import LogSchema
from rayrec.item_features import ItemTable
from rayrec.item_features.encoded import encode_items
from rayrec.traffic.decisions import LoggedDecision, decision_schema
from rayrec.traffic.ledger import Book, WrittenDecision, written
from serve_apps.cascade.decision import Decision, Reached
from serve_apps.cascade.stages import Scored

STAGES = ("retrieve", "early", "late")
_KEPT: frozenset[Reached] = frozenset({"retrieved", "early", "late", "shown"})  # what a ranker saw, or would have seen


class DecisionWriter:
    """Encodes decisions for one book. Immutable; may be shared by threads."""

    def __init__(self, schema: LogSchema, items: ItemTable, mapped: Path) -> None:
        """schema: of the ranker that is trained on the log. items: features of the decisions' items, which fit it. mapped: where
        they lie encoded, see ``encode_items``."""
        self.book = Book(schema, STAGES)
        self._name = self.book.name
        self._columns = decision_schema(schema, STAGES)
        self._encoded, encoder = encode_items(items, schema, mapped), LogEncoder(schema)
        names = {feature.name for feature in schema.features} - self._encoded.names
        self._by_item = names & {*items.schema.kinds, *(pair.name for pair in items.schema.pairs)}
        self._of_request = names - self._by_item
        self._item_encoder, self._request_encoder = encoder.part(self._by_item), encoder.part(self._of_request)

    def told(self) -> dict[str, Any]:
        """For those who ask: the folder of this log inside the traffic folder, and the tasks that feedback may name."""
        return {"folder": self._name, "tasks": list(self.book.schema.task_names)}

    def written(self, decision: Decision) -> WrittenDecision | None:
        """None for one without candidates. Raises EncodingError, LogError for values that the schema does not take."""
        rows = [i for i, reached in enumerate(decision.reached) if reached in _KEPT]
        if not rows:
            return None
        last = next((stage for stage in ("late", "early") if stage in decision.probabilities), None)
        logged = LoggedDecision(
            request=decision.request,
            time_ms=decision.time_ms,
            user=decision.user,
            arm=decision.arm,
            models=decision.models,
            items=[decision.items[i] for i in rows],
            stages=[decision.reached[i] for i in rows],
            position=decision.position[rows],
            scores={stage: scores[rows] for stage, scores in decision.scores.items()},
            features=self._features(decision, rows),
            predicted={
                task: values[rows]
                for task, values in (decision.probabilities[last] if last is not None else {}).items()
                if task in self.book.schema.task_names
            },
            asked=asked(decision.user, decision.history, decision.preference, decision.context),
        )
        return written(logged, self._name, self._columns, STAGES)

    def _features(self, decision: Decision, rows: list[int]) -> pa.Table:
        """Items' numbers and codes are encoded already; what the request says is encoded once and repeated."""
        found: dict[str, pa.Array | pa.ChunkedArray] = {
            name: pa.array(values if values.dtype == np.float32 else np.maximum(values, 0), from_pandas=True)
            for name, values in self._encoded.rows(decision.rows[rows]).items()
        }
        if self._by_item:
            by_item = {name: decision.columns[name] for name in self._by_item}
            own = self._item_encoder.encode_values({name: [vs[i] for i in rows] for name, vs in by_item.items()})
            found |= {name: own.column(name) for name in own.column_names}
        if self._of_request:
            once = self._request_encoder.encode_values({n: [decision.context.get(n)] for n in self._of_request})
            repeated = once.take(pa.array(np.zeros(len(rows), np.int64)))
            found |= {name: repeated.column(name) for name in repeated.column_names}
        return pa.table(found)


class ShadowWriter:
    """What a shadow ranker said, in a book of its own: a row a candidate without features, nothing of it shown.

    Its rows are those of the decision's log with the same ``served_request`` and ``served_item``."""

    def __init__(self, schema: LogSchema) -> None:
        """schema: of the shadow ranker."""
        self.schema = schema
        tasks = LogSchema(f"{schema.name}-shadow", (), schema.tasks)
        self.book = Book(tasks, ("shadow",))
        self._name, self._columns = self.book.name, decision_schema(tasks, ("shadow",))

    def written(self, decision: Decision, rows: Sequence[int], scored: Scored) -> WrittenDecision:
        """rows: of the decision's candidates, that were scored."""
        logged = LoggedDecision(
            request=decision.request,
            time_ms=decision.time_ms,
            user=decision.user,
            arm=decision.arm,
            models={"shadow": scored.model},
            items=[decision.items[i] for i in rows],
            stages=["shadow"] * len(rows),
            position=np.full(len(rows), -1),
            scores={"shadow": scored.scores},
            features=pa.table({}),
            predicted=scored.probabilities,
            asked=asked(decision.user, decision.history, decision.preference, decision.context),
        )
        return written(logged, self._name, self._columns, ("shadow",))


def asked(user: str | None, history: Sequence[str], preference: str, context: Mapping[str, Any]) -> str:
    """The same for the same user, history, preference and context, whatever else a request says."""
    question = [user, list(history), preference, dict(context)]
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()
