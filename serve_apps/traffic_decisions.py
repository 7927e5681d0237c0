"""A cascade's decisions as its log keeps them: in the columns of one of its rankers, which is trained on them. Knows no Ray."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import LogSchema, SequenceFeature
from rayrec.traffic.decisions import LoggedDecision, decision_schema
from rayrec.traffic.ledger import Book, WrittenDecision, written
from serve_apps.cascade_stages import Scored
from serve_apps.decision import Decision, Reached

STAGES = ("retrieve", "early", "late")
_KEPT: frozenset[Reached] = frozenset({"retrieved", "early", "late", "shown"})  # what a ranker saw, or would have seen


class DecisionWriter:
    """Encodes decisions for one book. Immutable; may be shared by threads."""

    def __init__(self, schema: LogSchema) -> None:
        """schema: of the ranker that is trained on the log."""
        self.book = Book(schema, STAGES)
        self._name = self.book.name
        self._encoder, self._columns = LogEncoder(schema), decision_schema(schema, STAGES)
        self._lists = tuple(f.name for f in schema.features if isinstance(f, SequenceFeature))

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
        """Lists of the request, which are long, are encoded once and repeated."""
        own, of_request, lists = {}, {}, []
        for feature in self.book.schema.features:
            name = feature.name
            if name in decision.columns:
                values = decision.columns[name]
                own[name] = [values[i] for i in rows]
                continue
            value = decision.context.get(name)
            if name in self._lists:
                of_request[name] = value
                lists.append(name)
                value = None
            own[name] = [value] * len(rows)
        table = self._encoder.encode_values(own)
        if lists:
            first: dict[str, list[Any]] = {name: values[:1] for name, values in own.items()}
            once = self._encoder.encode_values(first | {name: [value] for name, value in of_request.items()})
            repeated = once.select(lists).take(pa.array(np.zeros(len(rows), np.int64)))
            for name in lists:
                table = table.set_column(table.column_names.index(name), name, repeated.column(name))
        return table


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
