"""A table of item features out of a log: what its rows say of each item."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.data.log import Log
from rayrec.data.log.schema import CategoricalFeature, DenseFeature
from rayrec.item_features.pairs import ItemFeaturesError


def item_table(log: Log, split: str, item: str, codes: Sequence[str], means: Sequence[str]) -> pa.Table:
    """One row for each item of the split, raw values. codes: features of which each item's last value is taken; means: numbers
    that are averaged over its rows. Both name features or patterns of names ("early_signal_*").

    Files are read one after the other, so that memory is that of one of them and of the table. Raises ItemFeaturesError for a
    feature that is absent, of another kind, or hashed: a hash cannot be turned back.
    """
    coders = {feature.name: feature for feature in log.schema.categorical}
    numbers = [feature.name for feature in log.schema.features if isinstance(feature, DenseFeature)]
    wanted = _named(codes, list(coders), "a categorical feature", log), _named(means, numbers, "a number", log)
    last, averaged = [name for name in wanted[0] if name != item], wanted[1]
    for name in (item, *last):
        if name not in coders:
            raise ItemFeaturesError(f"{log.path}: {name!r} is no categorical feature")
        if coders[name].vocabulary is None:
            raise ItemFeaturesError(
                f"{log.path}: {name!r} is hashed, and a hash cannot be turned back; give a table of items"
            )
    wishes = [(name, "last") for name in last]
    wishes += [(name, how) for name in averaged for how in ("sum", "count")]
    parts = []
    for file in log.files(split):
        rows = pq.read_table(file, columns=[item, *last, *averaged])
        known = rows.filter(pc.greater(rows.column(item), 0))
        parts.append(known.group_by(item, use_threads=False).aggregate(wishes))
    again = [(f"{name}_last", "last") for name in last] + [
        (f"{name}_{how}", "sum") for name, how in wishes if how != "last"
    ]
    joined = pa.concat_tables(parts).group_by(item, use_threads=False).aggregate(again)
    columns = {item: _decoded(coders[item], joined.column(item))}
    for name in last:
        columns[name] = _decoded(coders[name], joined.column(f"{name}_last_last"))
    for name in averaged:
        counts = joined.column(f"{name}_count_sum")
        observed = pc.if_else(pc.equal(counts, 0), None, counts)
        columns[name] = pc.divide(joined.column(f"{name}_sum_sum"), observed)
    return pa.table(columns)


def _named(patterns: Iterable[str], names: Sequence[str], what: str, log: Log) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise ItemFeaturesError(
                f"{log.path}: {pattern!r} names no feature that is {what} (there: {', '.join(names[:50])})"
            )
        found += [name for name in fitting if name not in found]
    return found


def _decoded(feature: CategoricalFeature, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of a vocabulary; null for id 0, missing or unknown."""
    values = pa.array([None, *(feature.vocabulary or ())], pa.string())
    return values.take(ids.combine_chunks())
