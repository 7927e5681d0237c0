"""The declared schema of a log: one JSON file drives validation, batching, the model's inputs and the serving request.

A *declared* schema says what the columns are. A *fitted* one also holds what one streaming pass over the raw data found:
vocabularies and dense statistics. Logs on disk always carry a fitted schema (``schema.json``).
"""

import codecs
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from rayrec.data.log.times import TimeSpelling, TimeUnit
from rayrec.files import write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json

_STRICT = ConfigDict(extra="forbid")


MAX_COLUMNS = 10_000  # features of a schema, or tasks
QUANTILE_STEPS = 64  # of a number's quantiles, one more than steps
_MAX_IDS = 2**31 - 2  # ids are int32, and 0 is taken
_MAX_LENGTH = 100_000
_MAX_CHARACTERS = 10_000_000


class SchemaError(ConfigError):
    """A schema that contradicts itself, or a log that does not fit its schema."""


@dataclass(frozen=True)
class DenseStatistics:
    """Of the observed values *after* log1p where the feature asks for it: mean, standard deviation, and the quantiles at
    .001, 1/64, 2/64, ..., 63/64, .999. A log from before there were quantiles has none.
    """

    mean: float
    std: float
    missing_share: float
    quantiles: Annotated[tuple[float, ...], Field(exclude_if=lambda quantiles: not quantiles)] = ()
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        rising = all(low <= high for low, high in pairwise(self.quantiles))
        if self.quantiles and (len(self.quantiles) != QUANTILE_STEPS + 1 or not rising):
            raise SchemaError(f"quantiles are {QUANTILE_STEPS + 1} rising numbers, or none")


@dataclass(frozen=True)
class DenseFeature:
    """A number. Logs store it in raw units (float32, null = missing); the model's input layer applies the transform.

    transform: "standardize" (x - mean) / std; "log1p" standardizes sign(x) * log1p(|x|); "none" passes x on.
    missing_values: spellings of missing besides the empty one; of a number ("-999") every spelling.
    """

    name: str
    kind: Literal["dense"] = "dense"
    transform: Literal["standardize", "log1p", "none"] = "standardize"
    allow_missing: bool = True
    missing_values: tuple[str, ...] = ()
    statistics: DenseStatistics | None = None
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def without_quantiles(self) -> "DenseFeature":
        """As a log from before there were quantiles has it."""
        return self if self.statistics is None else replace(self, statistics=replace(self.statistics, quantiles=()))


@dataclass(frozen=True)
class CategoricalFeature:
    """A string or integer code. Logs store int32 ids; id 0 = missing or (vocabulary) unknown.

    encoding "vocabulary": ids 1..len(vocabulary) by falling frequency (ties by value), values seen fewer than ``min_count``
    times and all beyond the ``max_size`` most frequent are unknown. encoding "hash": ids 1..buckets, a stable hash.
    missing_values: spellings of missing; blanks around them do not count.
    """

    name: str
    kind: Literal["categorical"] = "categorical"
    encoding: Literal["vocabulary", "hash"] = "vocabulary"
    buckets: Annotated[int, Field(le=_MAX_IDS)] | None = None
    min_count: int = 1
    max_size: Annotated[int, Field(le=_MAX_IDS)] = 1_000_000
    allow_missing: bool = True
    missing_values: tuple[str, ...] = ("",)
    vocabulary: tuple[str, ...] | None = None
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    @property
    def missing_spellings(self) -> tuple[str, ...]:
        """``missing_values``, also without the blanks around them."""
        return tuple(dict.fromkeys((*self.missing_values, *(value.strip() for value in self.missing_values))))

    @property
    def size(self) -> int:
        """Number of ids, the 0 of missing included. Raises SchemaError when a vocabulary is not fitted yet."""
        if self.encoding == "hash":
            assert self.buckets is not None  # LogSchema checks it
            return self.buckets + 1
        if self.vocabulary is None:
            raise SchemaError(f"feature {self.name!r} has no vocabulary yet: fit the schema first")
        return len(self.vocabulary) + 1


@dataclass(frozen=True)
class SequenceFeature:
    """A list of categorical values, oldest first; the last ``max_length`` are kept. Logs store list<int32>.

    shares: name of a categorical feature whose encoding and embedding rows it uses (then its own encoding fields are unused).
    separator: how a text file writes the list in one field.
    """

    name: str
    kind: Literal["sequence"] = "sequence"
    max_length: Annotated[int, Field(le=_MAX_LENGTH)] = 50
    shares: str | None = None
    encoding: Literal["vocabulary", "hash"] = "vocabulary"
    buckets: Annotated[int, Field(le=_MAX_IDS)] | None = None
    min_count: int = 1
    max_size: Annotated[int, Field(le=_MAX_IDS)] = 1_000_000
    separator: str = "|"
    vocabulary: tuple[str, ...] | None = None
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True)
class TextFeature:
    """Free text, stored as it is (string); for the text encoders."""

    name: str
    kind: Literal["text"] = "text"
    max_characters: Annotated[int, Field(le=_MAX_CHARACTERS)] = 10_000
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


Feature = Annotated[DenseFeature | CategoricalFeature | SequenceFeature | TextFeature, Field(discriminator="kind")]


@dataclass(frozen=True)
class TaskLabel:
    """One binary task. ``label`` is its column (default: the task's name), float32 in {0, 1}, null = not observed.

    observed_when: name of another task; where that task's label is not 1, this label is masked (conversion after click).
    positive, negative: how raw files spell 1 and 0 ("yes", "no"); both or neither. Neither: numbers 0 and 1, or true and false.
    missing_values: spellings of "not observed" besides the empty one.
    """

    name: str
    label: str | None = None
    observed_when: str | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    missing_values: tuple[str, ...] = ()
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    @property
    def column(self) -> str:
        return self.label if self.label is not None else self.name


@dataclass(frozen=True)
class MadeOfLabels:
    """A feature or extra, ``column``, that was made of the labels of ``tasks`` on other rows: it goes, or is made again, where
    these labels are taken away.

    rate_of: a categorical feature; the column is how often strictly earlier rows of its value were positive in the one task
    (``rayrec.data.log.running_rates``), and can be made again. None = it cannot.
    """

    column: str
    tasks: tuple[str, ...]
    rate_of: str | None = None
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True)
class LogSchema:
    """All that is known of a log's columns. ``extras`` are numeric columns carried along (float64 or int64, by name).

    timestamp_unit, timestamp_format: how raw files write the timestamp, see ``TimeSpelling``; a log holds milliseconds.
    made_of_labels: every feature and extra that was made of labels; of a log from before there was this field, none is known.
    version: in a schema of version 1, of logs and bundles that were made before there was 2, blanks around a category are part of
    it; since 2 they are not.
    """

    name: str
    features: Annotated[tuple[Feature, ...], Field(max_length=MAX_COLUMNS)]
    tasks: Annotated[tuple[TaskLabel, ...], Field(max_length=MAX_COLUMNS)]
    weight: str | None = None
    timestamp: str | None = None
    timestamp_unit: TimeUnit | None = None
    timestamp_format: str | None = None
    request_id: str | None = None
    stage: str | None = None
    extras: tuple[str, ...] = ()
    made_of_labels: tuple[MadeOfLabels, ...] = ()
    version: Literal[1, 2] = 2
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        columns = names + [task.column for task in self.tasks]
        columns += [c for c in (self.weight, self.timestamp, self.request_id, self.stage) if c is not None]
        columns += list(self.extras)
        repeated = sorted(name for name, times in Counter(columns).items() if times > 1)
        if repeated:
            raise SchemaError(f"schema {self.name!r}: columns used twice: {', '.join(repeated)}")
        if not self.tasks and not all(isinstance(feature, SequenceFeature) for feature in self.features):
            raise SchemaError(f"schema {self.name!r}: at least one task is needed (only token blocks have none)")
        task_names = [task.name for task in self.tasks]
        if len(set(task_names)) < len(task_names):
            raise SchemaError(f"schema {self.name!r}: two tasks have the same name")
        for task in self.tasks:
            spelled = (*task.positive, *task.negative, *task.missing_values)
            if bool(task.positive) != bool(task.negative):
                raise SchemaError(f"task {task.name!r}: positive and negative are declared together or not at all")
            if len(set(spelled)) < len(spelled):
                raise SchemaError(
                    f"task {task.name!r}: a label is spelled the same twice: {', '.join(map(repr, spelled))}"
                )
            if task.observed_when is not None and task.observed_when not in task_names:
                raise SchemaError(f"task {task.name!r}: observed_when names no task: {task.observed_when!r}")
        if self.timestamp_unit is not None and self.timestamp_format is not None:
            raise SchemaError(f"schema {self.name!r}: the timestamp has a unit or a format, not both")
        by_name: Mapping[str, Feature] = dict(zip(names, self.features, strict=True))
        for made in self.made_of_labels:
            if made.column not in (*by_name, *self.extras):
                raise SchemaError(f"made_of_labels names no feature or extra: {made.column!r}")
            if made.rate_of is not None:
                if not isinstance(by_name.get(made.rate_of), CategoricalFeature):
                    raise SchemaError(
                        f"made_of_labels {made.column!r}: rate_of names no categorical feature: {made.rate_of!r}"
                    )
                if len(made.tasks) != 1 or not isinstance(by_name.get(made.column), DenseFeature):
                    raise SchemaError(f"made_of_labels {made.column!r}: a rate is a dense feature made of one task")
        for feature in self.features:
            if isinstance(feature, CategoricalFeature | SequenceFeature):
                shared = isinstance(feature, SequenceFeature) and feature.shares is not None
                if feature.encoding == "hash" and not shared and (feature.buckets is None or feature.buckets < 1):
                    raise SchemaError(f"feature {feature.name!r}: encoding hash needs buckets >= 1")
            if isinstance(feature, SequenceFeature):
                if feature.max_length < 1:
                    raise SchemaError(f"feature {feature.name!r}: max_length must be at least 1")
                if feature.shares is not None and not isinstance(by_name.get(feature.shares), CategoricalFeature):
                    raise SchemaError(
                        f"feature {feature.name!r}: shares names no categorical feature: {feature.shares!r}"
                    )

    @property
    def dense(self) -> tuple[DenseFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, DenseFeature))

    @property
    def categorical(self) -> tuple[CategoricalFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, CategoricalFeature))

    @property
    def sequences(self) -> tuple[SequenceFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, SequenceFeature))

    @property
    def texts(self) -> tuple[TextFeature, ...]:
        return tuple(f for f in self.features if isinstance(f, TextFeature))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def time_spelling(self) -> TimeSpelling:
        return TimeSpelling(self.timestamp_unit, self.timestamp_format)

    @property
    def strips_blanks(self) -> bool:
        """Whether ``" de"`` is the category ``"de"``."""
        return self.version >= 2

    @property
    def fitted(self) -> bool:
        """Whether every vocabulary and every needed statistic is there."""
        return (
            all(f.statistics is not None or f.transform == "none" for f in self.dense)
            and all(f.encoding == "hash" or f.vocabulary is not None for f in self.categorical)
            and all(f.shares is not None or f.encoding == "hash" or f.vocabulary is not None for f in self.sequences)
        )

    def encoder_of(self, sequence: SequenceFeature) -> CategoricalFeature:
        """The categorical feature (real, or made of the sequence's own fields) that encodes a sequence's values."""
        if sequence.shares is not None:
            return next(f for f in self.categorical if f.name == sequence.shares)
        return CategoricalFeature(
            name=sequence.name,
            encoding=sequence.encoding,
            buckets=sequence.buckets,
            min_count=sequence.min_count,
            max_size=sequence.max_size,
            vocabulary=sequence.vocabulary,
        )

    def with_features(self, features: tuple[Feature, ...]) -> "LogSchema":
        """The schema with these features in place of its own; what was made of labels is told of those that are left."""
        names = {feature.name for feature in features}
        made = tuple(
            replace(m, rate_of=m.rate_of if m.rate_of in names else None)
            for m in self.made_of_labels
            if m.column in names or m.column in self.extras
        )
        return replace(self, features=features, made_of_labels=made)

    def without_columns(self, columns: frozenset[str]) -> "LogSchema":
        """Without these features and extras."""
        extras = tuple(name for name in self.extras if name not in columns)
        made = tuple(m for m in self.made_of_labels if m.column not in columns)
        features = tuple(f for f in self.features if f.name not in columns)
        return replace(self, extras=extras, made_of_labels=made).with_features(features)


def encoded_alike(feature: Feature, other: Feature) -> bool:
    """Whether columns of both say the same: equal, but for quantiles that only one of them has."""
    if isinstance(feature, DenseFeature) and isinstance(other, DenseFeature):
        known = [f.statistics is not None and bool(f.statistics.quantiles) for f in (feature, other)]
        if known[0] != known[1]:
            return feature.without_quantiles() == other.without_quantiles()
    return feature == other


def read_schema(path: Path) -> LogSchema:
    """Read a schema file. Raises SchemaError that names the file and the field."""
    if not path.is_file():
        raise SchemaError(f"{path}: no such schema file")
    try:
        return from_json(LogSchema, path.read_bytes().removeprefix(codecs.BOM_UTF8), str(path))
    except ConfigError as error:
        raise SchemaError(str(error)) from None


def write_schema(schema: LogSchema, path: Path) -> None:
    """Write a schema file, whole or not at all."""
    write_text_atomically(path, to_json(schema))
