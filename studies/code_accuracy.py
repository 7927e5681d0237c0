"""Accuracy of each code of generative retrievers given the right codes before it: python -m studies.code_accuracy NAME.

Of a comparison that jobs.compare made: for each arm that emits codes, over the seeds that are done, on the test targets seen in
training. Beside it how many codes continue the right prefix to an item, in the mean, and all codes right one after the other
(greedy search finds the target). Means over seeds with their standard errors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from rayrec.errors import told
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.metrics.paired import mean_estimate
from rayrec.registry import runs_folder
from rayrec.retrieval.code_accuracy import RightCodes, right_codes
from rayrec.retrieval.trie import ItemTrie
from rayrec.runs.comparison import TrialKey, kept_comparison, trial_folder
from rayrec.runs.further import bundle_folder
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class CodeAccuracy:
    """Options of the study."""

    name: tyro.conf.Positional[str]
    """The comparison's folder."""


def run(command: CodeAccuracy) -> dict[str, list[RightCodes]]:
    """By arm the codes of each seed; printed as Markdown. Raises ConfigError when no arm with codes is done."""
    folder, comparison = runs_folder() / command.name, kept_comparison(command.name)
    found: dict[str, list[RightCodes]] = {}
    for arm in comparison.arms:
        for seed in comparison.seeds:
            experiment, key = comparison.trial(arm, seed), TrialKey(arm, seed)
            bundle = bundle_folder(trial_folder(folder, key))
            if isinstance(experiment, RetrieverExperiment) and bundle.is_dir():
                codes = codes_of(experiment, bundle)
                if codes is not None:
                    found.setdefault(arm, []).append(codes)
    if not found:
        raise ConfigError(f"{folder}: no arm that emits codes is done")
    print(*table(found), sep="\n")
    return found


def codes_of(experiment: RetrieverExperiment, bundle: Path) -> RightCodes | None:
    """On test targets that training saw; None for a model without a generative head."""
    head = load_retriever(bundle).model.eval().generative
    if head is None:
        return None
    trie, parts = ItemTrie.of(head.item_tokens), []
    for batch in experiment.data(Worker()).open_evaluation("test", 1).epoch_batches():
        rows = head.seen[batch.target].nonzero().squeeze(1)
        with torch.no_grad():
            decoding = head.decoding(batch.take(rows).asked)
        parts.append(right_codes(trie, decoding, head.item_tokens[batch.target[rows]]))
    return RightCodes(torch.cat([one.first for one in parts]), torch.cat([one.choices for one in parts]))


def table(found: dict[str, list[RightCodes]]) -> list[str]:
    """Markdown: by arm and level, of all targets."""
    levels = max(one.first.shape[1] for codes in found.values() for one in codes)
    names = [f"code {level}" for level in range(1, levels + 1)]
    lines = [f"| arm | seeds | {' | '.join(names)} | all right |", "| --- " * (3 + levels) + "|"]
    for arm, codes in found.items():
        shares = [[float(one.first[:, level].double().mean()) for one in codes] for level in range(levels)]
        choices = [float(codes[0].choices[:, level].double().mean()) for level in range(levels)]
        cells = [f"{_mean(values)} of {count:.1f}" for values, count in zip(shares, choices, strict=True)]
        whole = _mean([float(one.first.all(1).double().mean()) for one in codes])
        lines.append(f"| {arm} | {len(codes)} | {' | '.join(cells)} | {whole} |")
    return lines


def _mean(values: list[float]) -> str:
    estimate = mean_estimate(values, None)
    error = "" if estimate.standard_error is None else f" ({estimate.standard_error:.4f})"
    return f"{estimate.mean:.4f}{error}"


def main() -> None:
    with told():
        run(tyro.cli(CodeAccuracy, description=__doc__))


if __name__ == "__main__":
    main()
