"""Rank a model's features without labels (SSFS): python -m jobs.select_features --bundle BUNDLE --log UNLABELED --keep 20.

Prints every feature's influence and the ``ignored_features`` of a student that keeps the most influential ones.
"""

from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from jobs.command_line import read
from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.errors import told
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.scoring import features_of
from rayrec.files import check_file_place, write_text_atomically
from rayrec.methods.feature_selection import (
    FeatureSelectionConfig,
    influences,
    keep_most_influential,
    permutation_importances,
)
from rayrec.typed_json import to_json


@dataclass(frozen=True)
class SelectFeatures:
    """Rank features by how much the predictions move when each is spoiled."""

    bundle: Path
    """Folder of the trained ranker."""
    log: Path
    """Any log with the model's features; its labels are used only if ``labeled`` asks for permutation importance, to
    compare."""
    keep: int
    """How many features to keep."""
    split: Literal["train", "valid", "test"] = "train"
    """Whose rows are read."""
    rows: int = 65_536
    """At most that many are looked at, in shuffled order."""
    batch_size: int = 4096
    """Rows a pass."""
    labeled: bool = False
    """Read the labeled rows only."""
    out: Path | None = None
    """Also write the result as JSON."""
    config: Annotated[FeatureSelectionConfig, tyro.conf.arg(name="")] = field(default_factory=FeatureSelectionConfig)
    """How features are perturbed."""


@dataclass(frozen=True)
class FeatureRanking:
    """influence: of a feature, the sum over tasks of its share of a task's total. kept, ignored: most influential first."""

    influence: dict[str, float]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]


def run(command: SelectFeatures) -> FeatureRanking:
    """Rank, print and (where asked) write."""
    if command.out is not None:
        check_file_place(command.out)
    bundle, log = load_bundle(command.bundle), Log.open(command.log)
    view = Log(log.path, features_of(bundle.schema, log.schema, log.path))
    rows = min(command.rows, view.rows(command.split))
    size = min(command.batch_size, rows)
    measure = permutation_importances if command.labeled else influences
    with closing(LogStream(view, command.split, StreamConfig(size))) as stream:
        found = measure(bundle.model, islice(stream.epoch_batches(), max(1, rows // size)), command.config)  # (F, T)
    shares = torch.nan_to_num(found / found.clamp_min(0.0).sum(0)).sum(1)  # tasks differ in scale
    schema = bundle.schema
    names = [feature.name for part in (schema.dense, schema.categorical, schema.sequences) for feature in part]
    influence = dict(sorted(zip(names, shares.tolist(), strict=True), key=lambda pair: -pair[1]))
    kept = keep_most_influential(influence, budget=command.keep)
    ranking = FeatureRanking(influence, kept, tuple(name for name in influence if name not in kept))
    for name, value in influence.items():
        print(f"{'keep' if name in kept else '    '}  {value:.6f}  {name}")
    print(f"--ignored-features {' '.join(ranking.ignored)}")
    if command.out is not None:
        write_text_atomically(command.out, to_json(ranking))
    return ranking


def main() -> None:
    with told():
        run(read(SelectFeatures, description=__doc__))


if __name__ == "__main__":
    main()
