"""What a schema learns from the training rows in one streaming pass: vocabularies and dense statistics.

Memory is bounded: counts of a vocabulary with more distinct values than ``_COUNTED`` times its ``max_size`` are pruned from the
rarest up (lossy counting: Manku and Motwani, VLDB 2002), moments are merged chunk by chunk (Chan, Golub and LeVeque, 1983), and
quantiles are those of a uniform sample of ``_SAMPLED`` values: all of them in a smaller log, else within a percent of the rows.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.raw_columns import Bad, CodeLists, Codes, Numbers
from rayrec.data.log.row_checks import CheckedColumns
from rayrec.data.log.schema import (
    QUANTILE_STEPS,
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    Feature,
    LogSchema,
    TextFeature,
)

_COUNTED = 4
_LEAST_COUNTED = 1_000_000
_PENDING = 100_000
_SAMPLED = 16_384


class SchemaFitter:
    """Sees the checked chunks of the training split, then fits. What the schema holds already stays as it is.

    A vocabulary that a sequence shares counts the values of both columns. The standard deviation of a feature that is constant
    or was never observed is taken as 1, so that it can be divided by.
    """

    def __init__(self, schema: LogSchema) -> None:
        self.schema = schema
        self.rows = 0
        self._observed = {f.name: Observed() for f in schema.dense if f.statistics is None}
        self._counts: dict[str, ValueCounts] = {}
        coders = {f.name: f for f in schema.categorical} | {f.name: schema.encoder_of(f) for f in schema.sequences}
        for name, coder in coders.items():
            if coder.encoding == "vocabulary" and coder.vocabulary is None:
                counts = self._counts.setdefault(coder.name, ValueCounts(coder))
                self._counts[name] = counts

    def update(self, checked: CheckedColumns, rows: Bad) -> None:
        """Count the given rows, (n,) bool, of a chunk."""
        self.rows += int(rows.sum())
        for feature in self.schema.features:
            column = checked.columns[feature.name]
            if isinstance(column, Numbers) and feature.name in self._observed:
                assert isinstance(feature, DenseFeature)
                self._observed[feature.name].update(transformed(column.values[rows], feature.transform))
            elif feature.name in self._counts:
                if isinstance(column, CodeLists):
                    inside = np.repeat(rows, np.diff(column.offsets))
                    self._counts[feature.name].update(column.codes, inside)
                elif isinstance(column, Codes):
                    self._counts[feature.name].update(column, rows)

    def fit(self) -> LogSchema:
        """The schema with what was found."""
        vocabularies = {name: counts.vocabulary() for name, counts in self._counts.items() if name == counts.coder.name}
        return self.schema.with_features(tuple(self._fitted(f, vocabularies) for f in self.schema.features))

    def _fitted(self, feature: Feature, vocabularies: dict[str, tuple[str, ...]]) -> Feature:
        if isinstance(feature, DenseFeature):
            observed = self._observed.get(feature.name)
            return feature if observed is None else replace(feature, statistics=observed.statistics())
        if isinstance(feature, TextFeature) or feature.name not in vocabularies:
            return feature
        return replace(feature, vocabulary=vocabularies[feature.name])


def transformed(values: NDArray[np.float64], transform: str) -> NDArray[np.float64]:
    """What statistics are taken of: sign(x) log1p(|x|) under log1p, else x."""
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


@dataclass
class Observed:
    """Count, mean, sum of squared deviations and a sample of a stream of numbers; NaN = missing."""

    observed: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    sample: "Sample" = field(default_factory=lambda: Sample(_SAMPLED))

    def update(self, values: NDArray[np.float64]) -> None:
        there = values[~np.isnan(values)]
        self.missing += len(values) - len(there)
        if not len(there):
            return
        mean = float(there.mean())
        squares = float(((there - mean) ** 2).sum())
        total = self.observed + len(there)
        step = mean - self.mean
        self.mean += step * len(there) / total
        self.squares += squares + step * step * self.observed * len(there) / total
        self.observed = total
        self.sample.update(there)

    def statistics(self) -> DenseStatistics:
        variance = self.squares / self.observed if self.observed else 0.0
        rows = self.observed + self.missing
        return DenseStatistics(
            mean=self.mean,
            std=float(np.sqrt(variance)) or 1.0,
            missing_share=self.missing / rows if rows else 0.0,
            quantiles=self.sample.quantiles(),
        )


class Sample:
    """A uniform sample of ``size`` values of a stream, without replacement: those of the lowest random keys. The same values in
    the same order give the same sample, in whatever chunks they come.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._draw = np.random.default_rng(0)
        self._values = self._keys = np.empty(0)
        self._limit = 1.0

    def update(self, values: NDArray[np.float64]) -> None:
        """Of (n,) observed values."""
        keys = self._draw.random(len(values))
        low = keys < self._limit
        self._values, self._keys = np.append(self._values, values[low]), np.append(self._keys, keys[low])
        if len(self._values) > self.size:
            kept = np.argpartition(self._keys, self.size)
            self._limit = float(self._keys[kept[self.size]])
            self._values, self._keys = self._values[kept[: self.size]], self._keys[kept[: self.size]]

    def quantiles(self) -> tuple[float, ...]:
        """See ``DenseStatistics``: the ends are not the least and the largest value, one of which may be wild. Zeros when nothing
        was seen."""
        shares = np.linspace(0, 1, QUANTILE_STEPS + 1).clip(0.001, 0.999)
        found = np.quantile(self._values if len(self._values) else np.zeros(1), shares)
        return tuple(np.maximum.accumulate(found).tolist())


class ValueCounts:
    """How often each value of a vocabulary was seen, exact until there are too many distinct ones."""

    def __init__(self, coder: CategoricalFeature) -> None:
        self.coder = coder
        self._limit = max(_COUNTED * coder.max_size, _LEAST_COUNTED)
        self._counted = pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def update(self, codes: Codes, rows: Bad) -> None:
        index = codes.index[rows]
        counts = np.bincount(index[index >= 0], minlength=len(codes.values))
        seen = np.flatnonzero(counts)
        self._pending.append(pa.table({"value": codes.values.take(pa.array(seen)), "count": counts[seen]}))
        self._pending_rows += len(seen)
        if self._pending_rows > max(_PENDING, len(self._counted)):
            self._merge()

    def vocabulary(self) -> tuple[str, ...]:
        """Values by falling count, ties by value (code points), without the rare, the missing and those beyond ``max_size``."""
        self._merge()
        known = self._counted.filter(pc.greater_equal(self._counted["count"], self.coder.min_count))
        missing = pa.array([*self.coder.missing_spellings, None], pa.string())
        known = known.filter(pc.invert(pc.is_in(known["value"], value_set=missing)))
        order = pc.sort_indices(known, sort_keys=[("count", "descending"), ("value", "ascending")])
        return tuple(known["value"].take(order[: self.coder.max_size]).to_pylist())

    def _merge(self) -> None:
        every = pa.concat_tables([self._counted, *self._pending])
        merged = every.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self._counted = merged.select(["value", "count_sum"]).rename_columns(["value", "count"])
        self._pending, self._pending_rows = [], 0
        if len(self._counted) > self._limit:
            kept = pc.sort_indices(self._counted, sort_keys=[("count", "descending"), ("value", "ascending")])
            self._counted = self._counted.take(kept[: self._limit // 2])
