"""From simulated blocks to log rows: the schema, fitted on training requests, and the Arrow tables written with it."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.fitting import SchemaFitter
from rayrec.data.log.raw_columns import CodeLists, Codes, Numbers
from rayrec.data.log.row_checks import CheckedColumns
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel
from rayrec.data.simulation.config import SimulationConfig
from rayrec.data.simulation.funnel import STAGES, Block
from rayrec.data.simulation.world import DEVICES, WEEKDAYS, Floats, Indices

LATE_SIGNAL = "late_signal_"
"""Features whose names begin so are seen by the late stage (the teacher) only, see ``student_schema``."""
EARLY_SIGNAL = "early_signal_"
NOISE_SIGNAL = "noise_signal_"
CROSSED_IDS, CROSSED_SIGNALS = "segment_category", "signal_product"
EXTRA_TYPES = {
    "true_click_probability": pa.float32(),
    "true_conversion_probability": pa.float32(),
    "early_stage_score": pa.float32(),
    "early_stage_logit": pa.float32(),
    "late_stage_score": pa.float32(),
    "bid": pa.float32(),
}
"""Numeric columns beside the features. true_conversion_probability: of a conversion given a click. The scores are the click
probabilities by which the funnel selected; the value of showing a candidate is bid * click probability."""


def declared_schema(config: SimulationConfig) -> LogSchema:
    """The columns of a simulated log, its vocabularies and statistics not fitted yet."""
    world = config.world
    early = tuple(
        DenseFeature(f"{EARLY_SIGNAL}{i}", transform="log1p" if i % 2 else "standardize")
        for i in range(world.early_signals)
    )
    return LogSchema(
        name="simulated-ads",
        features=(
            CategoricalFeature("user", encoding="hash", buckets=config.user_buckets, allow_missing=False),
            *(
                CategoricalFeature(name, allow_missing=False)
                for name in ("ad", "campaign", "advertiser", "category", "segment", "device", "hour", "weekday")
            ),
            *((CategoricalFeature(CROSSED_IDS, allow_missing=False),) if config.crossed_features else ()),
            SequenceFeature("history", max_length=world.history_length, shares="category"),
            DenseFeature("interest_match", allow_missing=False),
            *early,
            *((DenseFeature(CROSSED_SIGNALS),) if config.crossed_features and world.early_signals > 1 else ()),
            *(DenseFeature(f"{NOISE_SIGNAL}{i}", allow_missing=False) for i in range(world.noise_signals)),
            *(DenseFeature(f"{LATE_SIGNAL}{i}", allow_missing=False) for i in range(world.late_signals)),
        ),
        tasks=(TaskLabel("click"), TaskLabel("conversion", observed_when="click")),
        timestamp="timestamp",
        request_id="request",
        stage="stage",
        extras=tuple(EXTRA_TYPES),
    )


def fit_schema(config: SimulationConfig, blocks: Iterable[Block]) -> LogSchema:
    """The schema with vocabularies and dense statistics of all candidates of the training requests in the given blocks."""
    fitter = SchemaFitter(declared_schema(config))
    names = {name: pa.array(values) for name, values in _raw_values(config).items()}
    training_requests = config.split_requests["train"][1]
    for block in blocks:
        requests, pool = block.stage.shape
        rows = np.arange(min(requests, training_requests - block.first_request) * pool)
        every = np.ones(len(rows), np.bool_)
        checked = CheckedColumns(len(rows))
        for name, index in _indices(block, rows, config).items():
            checked.columns[name] = _codes(names[name], index)
        for name, values in _numbers(block, rows, config).items():
            checked.columns[name] = Numbers(values.astype(np.float64), np.isnan(values), ~every)
        offsets, categories = _histories(block, rows)
        checked.columns["history"] = CodeLists(offsets, _codes(names["category"], categories))
        fitter.update(checked, every)
    return fitter.fit()


class RowEncoder:
    """Encodes candidates with a fitted schema. Holds the id of every raw value, so that a row costs one look-up a feature."""

    def __init__(self, schema: LogSchema, config: SimulationConfig) -> None:
        self.schema = schema
        self._config = config
        coders = {feature.name: feature for feature in schema.categorical}
        self._ids = {name: _ids(coders[name], values) for name, values in _raw_values(config).items()}
        self._stages = pa.array(STAGES)

    def table(self, block: Block, rows: Indices, *, labels: bool) -> pa.Table:
        """Log rows of the candidates ``rows``, (n,) flat numbers request * P + position. Without ``labels`` these are null."""
        columns = {
            name: pa.array(self._ids[name][index]) for name, index in _indices(block, rows, self._config).items()
        }
        offsets, categories = _histories(block, rows)
        columns["history"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(self._ids["category"][categories]))
        for name, values in _numbers(block, rows, self._config).items():
            columns[name] = pa.array(values, from_pandas=True)  # NaN becomes null
        click = block.click.ravel()[rows]
        hidden = np.zeros_like(click) if labels else np.ones_like(click)
        columns["click"] = pa.array(click.astype(np.float32), mask=hidden)
        conversion = block.conversion.ravel()[rows].astype(np.float32)
        columns["conversion"] = pa.array(conversion, mask=hidden | ~click)
        request = rows // block.stage.shape[1]
        columns["timestamp"] = pa.array(block.requests.timestamp[request])
        columns["request"] = pa.array(block.first_request + request)
        columns["stage"] = self._stages.take(pa.array(block.stage.ravel()[rows]))
        extras = {
            "true_click_probability": block.click_probability,
            "true_conversion_probability": block.conversion_probability,
            "early_stage_score": block.early_score,
            "early_stage_logit": block.early_logit,
            "late_stage_score": block.late_score,
            "bid": block.bid,
        }
        return pa.table(columns | {name: pa.array(values.ravel()[rows]) for name, values in extras.items()})


def _raw_values(config: SimulationConfig) -> dict[str, list[str]]:
    """What a raw file or a serving request would write, by index, for each categorical feature."""
    world = config.world
    crossed = [f"segment-{s} category-{c}" for s in range(world.segments) for c in range(world.categories)]
    return {
        "user": [f"user-{i}" for i in range(world.users)],
        "ad": [f"ad-{i}" for i in range(2 * world.ads)],
        "campaign": [f"campaign-{i}" for i in range(world.campaigns)],
        "advertiser": [f"advertiser-{i}" for i in range(world.advertisers)],
        "category": [f"category-{i}" for i in range(world.categories)],
        "segment": [f"segment-{i}" for i in range(world.segments)],
        "device": list(DEVICES),
        "hour": [str(hour) for hour in range(24)],
        "weekday": list(WEEKDAYS),
    } | ({CROSSED_IDS: crossed} if config.crossed_features else {})


def _ids(feature: CategoricalFeature, values: list[str]) -> NDArray[np.int32]:
    """The id of each raw value, as importing or serving it would give."""
    alone = LogSchema(name=feature.name, features=(feature,), tasks=(TaskLabel("none"),))
    encoded = LogEncoder(alone).encode(pa.table({feature.name: values}))
    return encoded.column(feature.name).to_numpy()


def _indices(block: Block, rows: Indices, config: SimulationConfig) -> dict[str, Indices]:
    """(n,) indices into the raw values, by categorical feature."""
    requests, candidates, request = block.requests, block.candidates, rows // block.stage.shape[1]
    of_request = {
        "user": requests.user,
        "segment": requests.segment,
        "device": requests.device,
        "hour": requests.hour,
        "weekday": requests.weekday,
    }
    of_candidate = {
        "ad": candidates.ad,
        "campaign": candidates.campaign,
        "advertiser": candidates.advertiser,
        "category": candidates.category,
    }
    indices = {name: index[request] for name, index in of_request.items()}
    indices |= {name: index.ravel()[rows] for name, index in of_candidate.items()}
    if config.crossed_features:
        indices[CROSSED_IDS] = indices["segment"] * config.world.categories + indices["category"]
    return indices


def _numbers(block: Block, rows: Indices, config: SimulationConfig) -> dict[str, Floats]:
    """(n,) values of each dense feature, NaN = missing."""
    candidates = block.candidates
    numbers = {"interest_match": candidates.interest_match}
    for prefix, signals in (
        (EARLY_SIGNAL, candidates.early_signals),
        (NOISE_SIGNAL, candidates.noise_signals),
        (LATE_SIGNAL, candidates.late_signals),
    ):
        numbers |= {f"{prefix}{i}": signal for i, signal in enumerate(signals)}
    if config.crossed_features and config.world.early_signals > 1:
        first, second = candidates.early_signals[:2]  # the second one is logged as a count
        numbers[CROSSED_SIGNALS] = first * (np.log1p(second) - np.float32(2.0))
    return {name: values.ravel()[rows] for name, values in numbers.items()}


def _histories(block: Block, rows: Indices) -> tuple[NDArray[np.int32], Indices]:
    """Offsets (n + 1,) and category indices of the history of each row."""
    requests, request = block.requests, rows // block.stage.shape[1]
    lengths = requests.history_lengths[request]
    inside = np.arange(requests.history.shape[1]) < lengths[:, None]
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), requests.history[request][inside]


def _codes(names: pa.StringArray, index: Indices) -> Codes:
    return Codes(names, index.astype(np.int32), np.zeros(len(index), np.bool_))
