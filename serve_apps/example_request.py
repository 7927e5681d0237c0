"""Serving requests made of rows of a log: for demos, smoke checks and load generators; python -m serve_apps.example_request LOG
prints one.

Vocabulary ids are turned back into their values. A hash cannot be turned back, so a hashed feature gets a made-up value that is
the same for the same id.
"""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro

from rayrec.data.log import Log, LogError
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, SchemaError, SequenceFeature
from rayrec.errors import told
from rayrec.families.ranker.bundle import Bundle


def example_request(log: Log, split: str = "test", candidates: int = 5) -> dict[str, Any]:
    """A ``POST /v1/rank`` body of the first rows of a split (else of the first split). Features that agree on all rows become the
    context."""
    if split not in log.splits and log.splits:
        split = log.splits[0]
    rows = next(pq.ParquetFile(log.files(split)[0]).iter_batches(batch_size=candidates)).to_pylist()
    values = [{f.name: _raw(log, f, row[f.name]) for f in log.schema.features} for row in rows]
    shared = {n for n in values[0] if all(json.dumps(v[n]) == json.dumps(values[0][n]) for v in values)}
    return {
        "context": {name: values[0][name] for name in values[0] if name in shared},
        "candidates": [{name: value for name, value in row.items() if name not in shared} for row in values],
    }


def example_row(bundle: Bundle) -> dict[str, Any] | None:
    """Raw values of all features of a ranker, of the first row of the log that it was trained on; None where that is not at hand
    (moved, or on another machine)."""
    try:
        log = Log.open(Path(str(bundle.metadata.run_config.get("log"))))
        body = example_request(Log(log.path, bundle.schema), candidates=1)  # the log may have more than it reads
    except (LogError, SchemaError):
        return None
    return {**body["context"], **body["candidates"][0]}


def curl_command(url: str, body: dict[str, Any] | None = None, *, token: bool) -> str:
    """A line to paste into a shell: a POST of ``body``, or a GET. The token comes from the environment, never from the line."""
    authorization = ' -H "Authorization: Bearer $RAYREC_TOKEN"' if token else ""
    if body is None:
        return f"curl -s {url}{authorization}"
    data = shlex.quote(json.dumps(body, separators=(",", ":")))
    return f"curl -s {url} -H 'Content-Type: application/json'{authorization} -d {data}"


def _raw(log: Log, feature: Any, value: Any) -> Any:
    if isinstance(feature, DenseFeature):
        # float32 on disk: the shortest digits that give the same float32
        return None if value is None or math.isnan(value) else float(str(np.float32(value)))
    if isinstance(feature, CategoricalFeature):
        return _decode(feature, value)
    if isinstance(feature, SequenceFeature):
        encoder = log.schema.encoder_of(feature)
        return [word for item in value or [] if (word := _decode(encoder, item)) is not None]
    return value


def _decode(feature: CategoricalFeature, index: int | None) -> str | None:
    if not index:  # missing, or unknown to the vocabulary
        return None if feature.allow_missing else f"another {feature.name}"
    if feature.encoding == "hash":
        return f"{feature.name}-{index}"
    assert feature.vocabulary is not None  # an opened log is fitted
    return feature.vocabulary[index - 1]


def main(log: tyro.conf.Positional[Path], /, candidates: int = 5) -> None:
    """Print the body of a request to rank: the first test rows of a log."""
    with told():
        print(json.dumps(example_request(Log.open(log), candidates=candidates)))


if __name__ == "__main__":
    tyro.cli(main)
