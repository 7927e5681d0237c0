"""Judge a trained retriever by every method it has: python -m jobs.evaluate runs/first/bundle.

On the data and split that it was trained with, or other sequences of the same items.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from rayrec.bundle import BundleError
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import Judgement, judge, methods_of
from rayrec.registry import RegistryError, resolve_model
from rayrec.typed_json import ConfigError, from_plain

SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class Evaluate:
    """Judge a retriever.

    model: a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION. beams: widths of the beam search.
    sequences: None = those it was trained on.
    """

    model: tyro.conf.Positional[str]
    split: Literal["valid", "test"] = "test"
    beams: tuple[int, ...] = (20,)
    sequences: Path | None = None


def run(command: Evaluate) -> list[Judgement]:
    """Judge by each method and print the table."""
    bundle = load_retriever(resolve_model(command.model).path)
    experiment = from_plain(RetrieverExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
    if command.sequences is not None:
        experiment = replace(experiment, sequences=command.sequences.resolve())
    task = experiment.task()
    if task.catalogue.num_items != bundle.saved.num_items:
        raise ConfigError(f"{experiment.sequences}: other items than those of {bundle.path}")
    found = []
    for method in methods_of(bundle.model):
        for beams in (None,) if method == "dense" else command.beams:
            found.append(judge(experiment, task, bundle.model, method, split=command.split, beams=beams))
    print_table(found)
    return found


def print_table(found: list[Judgement]) -> None:
    print(f"{'method':<18}{'targets':<10}{'users':>8}" + "".join(f"{name:>12}" for name in SHOWN) + f"{'ms/user':>10}")
    for one in found:
        name = one.method if one.beams is None else f"{one.method} {one.beams}"
        for group, metrics in one.metrics.items():
            cells = "".join(f"{'n/a' if metrics[m] is None else format(metrics[m], '.4f'):>12}" for m in SHOWN)
            print(f"{name:<18}{group:<10}{metrics['users']:>8,.0f}{cells}{one.milliseconds:>10.3f}")


def main() -> None:
    try:
        run(tyro.cli(Evaluate, description=__doc__))
    except (BundleError, ConfigError, RegistryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
