"""What ``POST /v1/rank`` takes: types made from a fitted schema, so that a wrong field is an error that names it.

A body holds raw feature values, as in the user's log:

    {"context": {"user": "u7"}, "candidates": [{"item": "b1", "price": 3.5}, {"item": "b2", "price": null}], "order_by": "click"}

Each feature stands in the context (then it holds for all candidates) or in the candidates; a candidate's own value wins. null
says that a value is missing; a feature given nowhere is an error, but for text, which rankers do not read.
``order_by``: a task, or exponents by task; the score is the product over tasks of probability ** exponent. Default: the schema's
first task.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from rayrec.data.log.schema import CategoricalFeature, DenseFeature, Feature, LogSchema, SequenceFeature
from serve_apps.service.refusals import SHOWN_PROBLEMS, Problem, RequestError

_FLOAT32_LIMIT = float(np.finfo(np.float32).max)
# A context value counts once for each candidate, so what it may hold is bounded, alone and times the candidates.
_CODE_CHARACTERS = 1_024
_LEAST_ELEMENTS = 1_000
_REPEATED_CHARACTERS = 32 * 1024 * 1024


@dataclass(frozen=True)
class RankRequest:
    """shared: raw values of features that hold for all candidates. columns: of the others, one raw value a candidate.

    exponents: (T,) float64, by task of the schema. encoded: of further features, one encoded value a candidate, see
    ``rayrec.item_features.encoded``.
    """

    shared: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    candidates: int
    exponents: NDArray[np.float64]
    encoded: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def column(self, feature: str) -> Sequence[Any]:
        """One value a candidate."""
        return self.columns[feature] if feature in self.columns else [self.shared[feature]] * self.candidates


class RankRequests:
    """Parses bodies for one schema. Immutable; may be shared by threads."""

    def __init__(self, schema: LogSchema, max_candidates: int) -> None:
        self._tasks = schema.task_names
        self._features = frozenset(feature.name for feature in schema.features)
        self._texts = frozenset(feature.name for feature in schema.texts)
        self._lengths = {feature.name: _read_length(feature) for feature in schema.features}
        values = {feature.name: _value_type(feature) for feature in schema.features}
        task: Any = Literal[self._tasks]
        exponent = Annotated[float, Strict(), Field(ge=-10, le=10)]
        order_by = Annotated[
            task | Annotated[dict[task, exponent], Field(min_length=1)],
            _Expected(
                "order_by", f"a task ({', '.join(self._tasks)}) or an object of exponents from -10 to 10 by task"
            ),
        ]
        candidate = _closed("Candidate", values)
        body = _closed(
            "RankRequest",
            {
                "context": NotRequired[_closed("Context", values)],
                "candidates": Annotated[list[candidate], Field(min_length=1, max_length=max_candidates)],  # type: ignore[valid-type]
                "order_by": NotRequired[order_by],
            },
        )
        self._body: TypeAdapter[Any] = TypeAdapter(body)
        self._order_by: TypeAdapter[Any] = TypeAdapter(order_by)
        self._values = {name: TypeAdapter(kind) for name, kind in values.items()}
        self.max_candidates = max_candidates

    def parse(self, body: bytes) -> RankRequest:
        """A request of a JSON body. Raises RequestError."""
        try:
            given = self._body.validate_json(body)
        except ValidationError as error:
            raise RequestError.of(error) from None
        candidates = given["candidates"]
        context = self._as_read(given.get("context", {}), len(candidates))
        needed = self._features - self._texts - context.keys()
        own = candidates[0].keys()
        if all(candidate.keys() == own for candidate in candidates) and needed <= own:
            columns = {name: [candidate[name] for candidate in candidates] for name in own}
        else:
            own = set[str]().union(*candidates)
            self._check_given(candidates, needed)
            columns = {name: [c[name] if name in c else context.get(name) for c in candidates] for name in own}
        shared = {name: context.get(name) for name in self._features - own}
        return RankRequest(shared, columns, len(candidates), self._exponents(given.get("order_by", self._tasks[0])))

    def of_columns(
        self,
        context: Mapping[str, Any],
        columns: Mapping[str, Sequence[Any]],
        candidates: int,
        encoded: Mapping[str, NDArray[Any]],
        order_by: Any = None,
    ) -> RankRequest:
        """A request whose candidates' own values, ``columns`` and ``encoded``, fit the schema already. Raises RequestError.

        context: as in a body, and of it what no column gives; values that this schema does not name are passed over. order_by: as
        in a body, None = default.
        """
        given, problems = {}, []
        for name in sorted(self._features - columns.keys() - encoded.keys()):
            if name in context:
                try:
                    given[name] = self._values[name].validate_python(context[name])
                except ValidationError as error:
                    problems += [
                        Problem(("body", "context", name, *p.loc[1:]), p.msg, p.type)
                        for p in RequestError.of(error).problems
                    ]
            elif name not in self._texts:
                what = "Given neither in the context nor by the items' features (null says that a value is missing)"
                problems.append(Problem(("body", "context", name), what, "missing"))
        try:
            exponents = self._exponents(
                self._tasks[0] if order_by is None else self._order_by.validate_python(order_by)
            )
        except ValidationError as error:
            problems += [
                Problem(("body", "order_by", *p.loc[1:]), p.msg, p.type) for p in RequestError.of(error).problems
            ]
        if problems:
            raise RequestError(problems)
        shared = dict.fromkeys(self._texts - columns.keys()) | self._as_read(given, candidates)
        own = {name: values for name, values in columns.items() if name in self._features}
        return RankRequest(shared, own, candidates, exponents, encoded)

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of a body; types that it refers to lie in ``components/schemas`` of the OpenAPI document ("$defs" here)."""
        return self._body.json_schema(ref_template="#/components/schemas/{model}")

    @staticmethod
    def _check_given(candidates: Sequence[Mapping[str, Any]], needed: Set[str]) -> None:
        """Raises RequestError for candidates without a feature that they need."""
        absent: list[tuple[int, str]] = []
        for index, candidate in enumerate(candidates):
            absent += [(index, name) for name in sorted(needed - candidate.keys())]
            if len(absent) >= SHOWN_PROBLEMS:
                break
        if absent:
            what = "Given neither in the context nor in the candidate (null says that a value is missing)"
            raise RequestError([Problem(("body", "candidates", i, name), what, "missing") for i, name in absent])

    def _as_read(self, context: Mapping[str, Any], candidates: int) -> dict[str, Any]:
        """``context`` without what the model does not read, before it is repeated for each candidate. Raises RequestError."""
        cut, problems = {}, []
        for name, value in context.items():
            length = self._lengths[name]
            cut[name] = value if length is None or value is None else _ends(value, length)
            if (characters := _characters(cut[name])) * candidates > _REPEATED_CHARACTERS:
                what = f"{characters:,} characters for each of {candidates:,} candidates are too many"
                problems.append(Problem(("body", "context", name), f"{what}; send fewer candidates", "too_long"))
        if problems:
            raise RequestError(problems)
        return cut

    def _exponents(self, order_by: str | Mapping[str, float]) -> NDArray[np.float64]:
        by_task = {order_by: 1.0} if isinstance(order_by, str) else order_by
        return np.array([by_task.get(task, 0.0) for task in self._tasks])


def _read_length(feature: Feature) -> int | None:
    """How much of a value is read: the last codes of a sequence, the first characters of a text; None: all of it."""
    if isinstance(feature, SequenceFeature):
        return feature.max_length
    return None if isinstance(feature, (DenseFeature, CategoricalFeature)) else feature.max_characters


def _ends(value: list[Any] | str, length: int) -> list[Any] | str:
    return value[:length] if isinstance(value, str) else value[-length:]


def _characters(value: Any) -> int:
    """Of a text or the texts of a list."""
    return sum(map(_characters, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0


@dataclass(frozen=True)
class _Expected:
    """One message in place of one for each member of a union."""

    kind: str
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type=self.kind, custom_error_message=f"Input should be {self.what}"
        )


def _closed(name: str, fields: dict[str, Any]) -> Any:
    """A TypedDict without required keys but those of RankRequest, and without others."""
    total = name == "RankRequest"
    made = TypedDict(name, fields, total=total)  # type: ignore[misc]
    return with_config(ConfigDict(extra="forbid"))(made)


def _value_type(feature: Feature) -> Any:
    if isinstance(feature, DenseFeature):
        number = Annotated[float, Strict(), Field(ge=-_FLOAT32_LIMIT, le=_FLOAT32_LIMIT, allow_inf_nan=False)]
        return number | None if feature.allow_missing else number
    if isinstance(feature, CategoricalFeature):
        return _code_type(feature)
    if isinstance(feature, SequenceFeature):
        codes, most = _CODE | None, max(_LEAST_ELEMENTS, 4 * feature.max_length)
        what = f"a list of at most {most:,} texts (of at most {_CODE_CHARACTERS:,} characters) or whole numbers"
        lists = Annotated[list[codes], Field(max_length=most), _Expected("codes", what)]  # type: ignore[valid-type]
        return lists | None
    return Annotated[str, Strict(), Field(max_length=4 * feature.max_characters)] | None


def _code_type(feature: CategoricalFeature) -> Any:
    if feature.allow_missing:
        return Annotated[_CODE | None, _Expected("code", f"{_TEXT}, a whole number, true, false or null")]
    expected = _Expected("code", f"{_TEXT}, a whole number, true or false; this feature may not be missing")
    missing = frozenset(feature.missing_spellings)

    def present(value: Any) -> Any:
        if value in missing:
            raise ValueError("is missing")
        return value

    return Annotated[_CODE, AfterValidator(present), expected]


_LEAST, _MOST = -(2**63), 2**64 - 1  # what a column of a log can hold
_WHOLE = Annotated[float, Strict(), Field(multiple_of=1, ge=_LEAST, le=2**63, allow_inf_nan=False)]
_TEXT = f"a text of at most {_CODE_CHARACTERS:,} characters"
_CODE: Any = (
    Annotated[str, Strict(), Field(max_length=_CODE_CHARACTERS)]
    | Annotated[int, Strict(), Field(ge=_LEAST, le=_MOST)]
    | Annotated[bool, Strict()]
    | _WHOLE
)
