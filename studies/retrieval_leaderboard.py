"""The leaderboard of retrievers: python -m studies.retrieval_leaderboard NAME, of a comparison that jobs.compare made.

Beside its trained models: popularity, neighbours by text untrained (their one number, how fast older items of a history fade, is
chosen on validation), and sums of the scores of two models, whose shares are chosen on validation for each seed. Every model with
the history's items ranked and excluded; Markdown tables of means with their errors over seeds and users, and of differences to
the baseline. Run it again when more trials are done.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import tyro
from torch import Tensor

from rayrec.errors import told
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.evaluation import EvaluateRetriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.item_scores import Scores, dense_scores, popularity, summed, text_neighbours
from rayrec.families.retriever.score_ranking import best_decay, best_share, judge_scores
from rayrec.families.retriever.task import HistoryItems
from rayrec.metrics.paired import mean_estimate, paired_difference
from rayrec.registry import runs_folder
from rayrec.runs.comparison import ComparisonRecord, ComparisonState, TrialKey, open_comparison, trial_folder
from rayrec.runs.further import bundle_folder
from rayrec.training.judging import Judged
from rayrec.typed_json import ConfigError, from_json

PROTOCOLS: tuple[HistoryItems, ...] = ("ranked", "excluded")
SHOWN = ("recall@10", "ndcg@10")
TEXT = "text"


@dataclass(frozen=True)
class Leaderboard:
    """Options of the study."""

    name: tyro.conf.Positional[str]
    """The comparison's folder; its plan asks for history ranked and excluded."""
    sums: tuple[str, ...] = ("sasrec-repeat+text",)
    """ARM+ARM of models with dense heads, or ARM+text: with the untrained neighbours."""
    beams: int = 20
    """Width of the beam searches, as in the plan."""
    targets: Literal["all", "in_set", "cold"] = "all"
    """Of the tables: all, those seen in training, those never seen."""


@dataclass
class Entry:
    """A line: how it was judged by protocol and seed (seed None = nothing was drawn), and the trials' seconds of training."""

    judged: dict[HistoryItems, dict[int | None, Judged]] = field(default_factory=lambda: {p: {} for p in PROTOCOLS})
    seconds: list[float] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)


def run(command: Leaderboard) -> dict[str, Entry]:
    """Judge and print. Raises ConfigError when no trial is done, or a sum names no arm."""
    file = runs_folder() / command.name / "comparison.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; make the comparison with jobs.compare")
    comparison = from_json(ComparisonRecord, file.read_bytes(), str(file)).comparison
    pairs = [_pair(text, tuple(comparison.arms)) for text in command.sums]
    state = open_comparison(command.name, comparison, EvaluateRetriever(beams=(command.beams,), history=PROTOCOLS))
    if not state.done:
        raise ConfigError(f"{state.folder}: no trial is done that was judged at beams {command.beams} both ways")
    entries = {**_untrained(_experiment(state)), **_trained(state)}
    for first, second in pairs:
        entries[f"{first} + {second}"] = _sum(state, first, second)
    print(*table(entries, command.targets, comparison.baseline), sep="\n")
    for name, entry in entries.items():
        if entry.chosen:
            print(f"chosen on validation, {name}: {', '.join(entry.chosen)}")
    return entries


def _pair(text: str, arms: Sequence[str]) -> tuple[str, str]:
    first, plus, second = text.partition("+")
    if not plus or first not in arms or second not in (*arms, TEXT):
        raise ConfigError(f"sums: ARM+ARM or ARM+{TEXT}, not {text!r}; arms: {', '.join(arms)}")
    return first, second


def _experiment(state: ComparisonState) -> RetrieverExperiment:
    comparison = state.record.comparison
    experiment = comparison.trial(next(iter(comparison.arms)))
    assert isinstance(experiment, RetrieverExperiment)
    return experiment


def _trained(state: ComparisonState) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for arm in state.record.comparison.arms:
        for key in (key for key in state.done if key.arm == arm):
            for way, judged in state.further[key].items():
                words = way.split()
                name = " ".join([arm, *(word for word in words if word != "excluded")])
                entry = entries.setdefault(name, Entry())
                entry.judged["excluded" if "excluded" in words else "ranked"][key.seed] = judged
                if "excluded" not in words:
                    entry.seconds.append(state.done[key].seconds)
    return entries


def _untrained(experiment: RetrieverExperiment) -> dict[str, Entry]:
    found = {"popularity": Entry()}
    for protocol in PROTOCOLS:
        scores = popularity(experiment.task().catalogue.counts)
        found["popularity"].judged[protocol][None] = judge_scores(experiment, scores, split="test", history=protocol)
    if experiment.semantic_ids is not None:
        found["neighbours by text"] = Entry()
        for protocol in PROTOCOLS:
            scores = _neighbours(experiment, protocol, found["neighbours by text"])
            judged = judge_scores(experiment, scores, split="test", history=protocol)
            found["neighbours by text"].judged[protocol][None] = judged
    return found


def _neighbours(experiment: RetrieverExperiment, protocol: HistoryItems, entry: Entry) -> Scores:
    text = _text(experiment)
    decay = best_decay(experiment, text, history=protocol)
    entry.chosen.append(f"{protocol} decay {decay:g}")
    return text_neighbours(text, decay)


def _text(experiment: RetrieverExperiment) -> Tensor:
    """(N + 1, E) as models that read text have it."""
    features = replace(experiment, retrieval=replace(experiment.retrieval, model="dense")).task().catalogue.features
    assert features is not None
    return features.text


def _sum(state: ComparisonState, first: str, second: str) -> Entry:
    """Of the seeds that are done in both."""
    entry, experiment = Entry(), _experiment(state)
    for key in (key for key in state.done if key.arm == first):
        other = TrialKey(second, key.seed)
        if second != TEXT and other not in state.done:
            continue
        one = _dense(state, key)
        for protocol in PROTOCOLS:
            two = _dense(state, other) if second != TEXT else _neighbours(experiment, protocol, entry)
            share = best_share(experiment, one, two, history=protocol)
            entry.chosen.append(f"seed {key.seed} {protocol} share {share:g}")
            scores = summed(one, two, share)
            entry.judged[protocol][key.seed] = judge_scores(experiment, scores, split="test", history=protocol)
        entry.seconds.append(sum(state.done[one].seconds for one in (key, other) if one in state.done))
    return entry


def _dense(state: ComparisonState, key: TrialKey) -> Scores:
    return dense_scores(load_retriever(bundle_folder(trial_folder(state.folder, key))).model.eval())


def table(entries: dict[str, Entry], targets: str, baseline: str) -> list[str]:
    """Markdown: means with errors over seeds and users in brackets, and below them differences to the baseline by protocol."""
    columns = [f"{metric}, history {protocol}" for protocol in PROTOCOLS for metric in SHOWN]
    lines = [f"| retriever | seeds | {' | '.join(columns)} | training, s |", "| --- " * (3 + len(columns)) + "|"]
    differences = [f"| less {baseline} | seeds | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    (base,) = (entry for name, entry in entries.items() if name.split()[0] == baseline and "+" not in name)
    for name, entry in entries.items():
        seeds = len(entry.judged["ranked"])
        if not seeds:
            continue
        places = [(protocol, metric) for protocol in PROTOCOLS for metric in SHOWN]
        cells = [_mean(entry, targets, *place) for place in places]
        seconds = f"{statistics.median(entry.seconds):.0f}" if entry.seconds else ""
        lines.append(f"| {name} | {seeds if entry.seconds else ''} | {' | '.join(cells)} | {seconds} |")
        if entry is not base:
            cells = [_difference(entry, base, targets, *place) for place in places]
            differences.append(f"| {name} | {seeds if entry.seconds else ''} | {' | '.join(cells)} |")
    return [*lines, "", *differences]


def _values(
    entry: Entry, targets: str, protocol: HistoryItems, metric: str, seeds: Sequence[int | None]
) -> tuple[list[float], list[tuple[float, ...]] | None]:
    """By seed the metric, and what it is without each group of users."""
    judged = [entry.judged[protocol][seed if seed in entry.judged[protocol] else None] for seed in seeds]
    values = [one.metrics[targets][metric] or 0.0 for one in judged]
    known = all(targets in one.left_out for one in judged)
    return values, [one.left_out[targets][metric] for one in judged] if known else None


def _mean(entry: Entry, targets: str, protocol: HistoryItems, metric: str) -> str:
    found = mean_estimate(*_values(entry, targets, protocol, metric, list(entry.judged[protocol])))
    errors = [f"{error:.4f}" for error in (found.standard_error, found.group_error) if error is not None]
    return f"{found.mean:.4f} ({', '.join(errors)})"


def _difference(entry: Entry, base: Entry, targets: str, protocol: HistoryItems, metric: str) -> str:
    """Over seeds in common; what has none is compared with every seed of the baseline."""
    own = entry.judged[protocol]
    seeds = [seed for seed in base.judged[protocol] if seed in own or None in own]
    if not seeds:
        return ""
    (values, groups), (others, other_groups) = (_values(one, targets, protocol, metric, seeds) for one in (entry, base))
    known = groups is not None and other_groups is not None
    found = paired_difference(values, others, groups if known else None, other_groups if known else None)
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def main() -> None:
    with told():
        run(tyro.cli(Leaderboard, description=__doc__))


if __name__ == "__main__":
    main()
