"""The leaderboard of retrievers: python -m studies.retrieval_leaderboard NAME, of a comparison that jobs.compare made.

Beside its trained models: popularity, untrained neighbours by text, attributes and co-occurrence in training histories (their
one or two numbers are chosen on validation), and sums of scores: of the same arm trained from several seeds in equal shares, of
further models and neighbours in shares chosen on validation for each seed, one after the other. Every model with the history's
items ranked and excluded; Markdown tables of means with their errors over seeds and users, and of differences to the baseline;
and which of the sums and their models validation prefers, with the test numbers of that one. Run it again when more trials are
done.
"""

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import tyro

from rayrec.data.sequences import read_sequences
from rayrec.errors import told
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.evaluation import EvaluateRetriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.item_scores import Scores, dense_scores, equal_sum, popularity, summed
from rayrec.families.retriever.neighbours import attribute_options, cooccurrence_options, text_options
from rayrec.families.retriever.score_ranking import best_option, best_share, judge_scores
from rayrec.families.retriever.task import HistoryItems
from rayrec.freed_memory import freed_memory_kept
from rayrec.metrics.paired import mean_estimate, paired_difference
from rayrec.runs.comparison import ComparisonState, TrialKey, kept_comparison, open_comparison, trial_folder
from rayrec.runs.further import bundle_folder
from rayrec.training.judging import Judged
from rayrec.typed_json import ConfigError

PROTOCOLS: tuple[HistoryItems, ...] = ("ranked", "excluded")
SHOWN = ("recall@10", "ndcg@10")
TEXT, ATTRIBUTES, COOCCURRENCE = "text", "attributes", "cooccurrence"
UNTRAINED = (TEXT, ATTRIBUTES, COOCCURRENCE)


@dataclass(frozen=True)
class Leaderboard:
    """Options of the study."""

    name: tyro.conf.Positional[str]
    """The comparison's folder; its plan asks for history ranked and excluded."""
    sums: tuple[str, ...] = ("sasrec-repeat+text",)
    """ARM+ARM of models with dense heads; in place of the second text, attributes or cooccurrence, of the untrained
    neighbours; ARM*2: as trained from two seeds; of more than two, like ARM*2+attributes, each is added to the sum so
    far."""
    beams: int = 20
    """Width of the beam searches, as in the plan."""
    targets: Literal["all", "in_set", "cold"] = "all"
    """Of the tables: all, those seen in training, those never seen."""


@dataclass(frozen=True)
class Part:
    """Of a sum: an arm, or an untrained scoring, and of how many seeds' models."""

    name: str
    models: int = 1


@dataclass
class Entry:
    """A line: how it was judged by protocol and seed (seed None = nothing was drawn), and the trials' seconds of training.

    width: seeds that each of ``judged`` takes, told by the first of them. valid: by protocol and seed the objective on validation
    targets seen in training, of the sums and of their models.
    """

    judged: dict[HistoryItems, dict[int | None, Judged]] = field(default_factory=lambda: {p: {} for p in PROTOCOLS})
    seconds: list[float] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    width: int = 1
    valid: dict[HistoryItems, dict[int | None, float]] = field(default_factory=lambda: {p: {} for p in PROTOCOLS})


@freed_memory_kept()
def run(command: Leaderboard) -> dict[str, Entry]:
    """Judge and print. Raises ConfigError when no trial is done, or a sum names what is no arm or cannot be summed."""
    comparison = kept_comparison(command.name)
    sums = {text: _parts(text, tuple(comparison.arms)) for text in command.sums}
    state = open_comparison(command.name, comparison, EvaluateRetriever(beams=(command.beams,), history=PROTOCOLS))
    if not state.done:
        raise ConfigError(f"{state.folder}: no trial is done that was judged at beams {command.beams} both ways")
    experiment, trained = _experiment(state), _trained(state)
    summed_arms = {part.name for parts in sums.values() for part in parts} - {*UNTRAINED}
    for arm in sorted(summed_arms):
        _check_summable(state, arm, trained)
    untrained = Untrained(experiment)
    entries = {**untrained.entries, **trained}
    _validate_models(state, experiment, summed_arms, entries)
    for text, parts in sums.items():
        entries[text.replace("+", " + ")] = _sum(state, parts, untrained)
    print(*table(entries, command.targets, comparison.baseline), sep="\n")
    print("", *choice_table(entries, experiment.retrieval.objective, command.targets), sep="\n")
    for name, entry in entries.items():
        if entry.chosen:
            print(f"chosen on validation, {name}: {', '.join(entry.chosen)}")
    return entries


def _parts(text: str, arms: Sequence[str]) -> tuple[Part, ...]:
    taken = sorted({*arms} & {*UNTRAINED})
    if taken or any("+" in arm for arm in arms):
        odd = taken or [arm for arm in arms if "+" in arm]
        raise ConfigError(f"sums: arms called {', '.join(odd)} cannot be told from what is summed; call them otherwise")
    found: list[Part] = []
    for place, one in enumerate(text.split("+")):
        match = re.fullmatch(r"(.+?)(?:\*([1-9]))?", one)
        name, models = (match[1], int(match[2] or 1)) if match else (one, 1)
        if name not in arms and (place == 0 or name not in UNTRAINED or models > 1):
            found = []
            break
        found.append(Part(name, models))
    if len({part.name for part in found}) < len(found):
        raise ConfigError(f"sums: {text!r} names a part twice; ARM*2 is of two seeds' models")
    if not found or (len(found) == 1 and found[0].models == 1):
        raise ConfigError(
            f"sums: ARM+ARM, ARM*2 or ARM+{' or '.join(UNTRAINED)}, not {text!r}; arms: {', '.join(arms)}"
        )
    return tuple(found)


def _experiment(state: ComparisonState) -> RetrieverExperiment:
    comparison = state.record.comparison
    experiment = comparison.trial(next(iter(comparison.arms)))
    assert isinstance(experiment, RetrieverExperiment)
    return experiment


def _check_summable(state: ComparisonState, arm: str, trained: Mapping[str, Entry]) -> None:
    """Sums score the histories that the first arm reads. Raises ConfigError for an arm that reads others, or scores no items."""
    first, own = _experiment(state), state.record.comparison.trial(arm)
    assert isinstance(own, RetrieverExperiment)
    if own.retrieval.architecture.user_tokens or own.benchmark() is not None:
        raise ConfigError(f"sums: {arm} reads users or preferences beside histories, which sums do not have")
    for name, value, wanted in (
        ("sequences", own.sequences, first.sequences),
        ("split", own.split, first.split),
        ("stream.valid_examples", own.stream.valid_examples, first.stream.valid_examples),
        ("max_length", own.retrieval.architecture.max_length, first.retrieval.architecture.max_length),
    ):
        if value != wanted:
            raise ConfigError(
                f"sums: {arm} has {name} {value}, the first arm {wanted}: they are not judged on the same"
            )
    if any(key.arm == arm for key in state.done) and not {arm, f"{arm} dense"} & trained.keys():
        raise ConfigError(f"sums: {arm} has no dense head to score all items with")


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


def _validate_models(
    state: ComparisonState, experiment: RetrieverExperiment, arms: Collection[str], entries: dict[str, Entry]
) -> None:
    """Of the sums' models alone, on validation targets, by their dense heads."""
    for key in (key for key in state.done if key.arm in arms):
        (name,) = (name for name in entries if name in (key.arm, f"{key.arm} dense"))
        for protocol in PROTOCOLS:
            entries[name].valid[protocol][key.seed] = _valid(experiment, _dense(state, key), protocol)


def _valid(experiment: RetrieverExperiment, scores: Scores, protocol: HistoryItems) -> float:
    found = judge_scores(experiment, scores, split="valid", history=protocol).metrics["in_set"]
    return found[experiment.retrieval.objective] or 0.0


class Untrained:
    """What no training takes part in, judged on test; its options are chosen on validation for each protocol."""

    def __init__(self, experiment: RetrieverExperiment) -> None:
        self._experiment, self.entries = experiment, {"popularity": Entry()}
        self._scores: dict[tuple[str, HistoryItems], Scores] = {}
        counts = popularity(experiment.task().catalogue.counts)
        data = read_sequences(experiment.sequences)
        options = {
            TEXT: _text_options(experiment),
            ATTRIBUTES: attribute_options(data),
            COOCCURRENCE: cooccurrence_options(data, experiment.split.split(data)),
        }
        for protocol in PROTOCOLS:
            self._judge("popularity", protocol, counts)
            for name in (name for name in UNTRAINED if options[name]):
                chosen = best_option(experiment, options[name], history=protocol)
                self._scores[name, protocol] = options[name][chosen]
                self._judge(f"neighbours by {name}", protocol, options[name][chosen])
                self.entries[f"neighbours by {name}"].chosen.append(f"{protocol} {chosen}")

    def scores(self, name: str, protocol: HistoryItems) -> Scores:
        """Raises ConfigError where items have no texts or attributes."""
        if (name, protocol) not in self._scores:
            raise ConfigError(f"sums: the items of {self._experiment.sequences} have no {name}")
        return self._scores[name, protocol]

    def _judge(self, name: str, protocol: HistoryItems, scores: Scores) -> None:
        judged = judge_scores(self._experiment, scores, split="test", history=protocol)
        self.entries.setdefault(name, Entry()).judged[protocol][None] = judged


def _text_options(experiment: RetrieverExperiment) -> Mapping[str, Scores]:
    """Of the texts as models that read them have them; none where the semantic IDs are of anything else."""
    reads = replace(experiment, retrieval=replace(experiment.retrieval, model="dense"))
    ids = reads.ids()
    if ids is None or ids.record.encoder in UNTRAINED:
        return {}
    features = reads.task().catalogue.features
    assert features is not None
    return text_options(features.text)


def _sum(state: ComparisonState, parts: Sequence[Part], untrained: Untrained) -> Entry:
    """Of the seeds done in all arms, in groups as large as the largest part; a smaller part takes the first of its group."""
    entry, experiment = Entry(), _experiment(state)
    arms = [part for part in parts if part.name not in UNTRAINED]
    done = {key.seed for key in state.done if all(TrialKey(part.name, key.seed) in state.done for part in arms)}
    seeds, width = [seed for seed in state.record.comparison.seeds if seed in done], max(part.models for part in arms)
    entry.width = width
    if len(seeds) % width:
        entry.chosen.append(f"left out seeds {', '.join(map(str, seeds[len(seeds) // width * width :]))}")
    for start in range(0, len(seeds) - width + 1, width):
        group = seeds[start : start + width]
        for protocol in PROTOCOLS:
            scores, *others = (
                untrained.scores(part.name, protocol) if part.name in UNTRAINED
                else equal_sum([_dense(state, TrialKey(part.name, seed)) for seed in group[: part.models]])
                for part in parts
            )  # fmt: skip
            for other in others:
                share = best_share(experiment, scores, other, history=protocol)
                entry.chosen.append(f"seed {'+'.join(map(str, group))} {protocol} share {share:g}")
                scores = summed(scores, other, share)
            valid = entry.valid[protocol][group[0]] = _valid(experiment, scores, protocol)
            name = f"seed {'+'.join(map(str, group))} {protocol}"
            entry.chosen.append(f"{name} valid {experiment.retrieval.objective} {valid:.4f}")
            entry.judged[protocol][group[0]] = judge_scores(experiment, scores, split="test", history=protocol)
        keys = [TrialKey(part.name, seed) for part in arms for seed in group[: part.models]]
        entry.seconds.append(sum(state.done[key].seconds for key in keys))
    return entry


def _dense(state: ComparisonState, key: TrialKey) -> Scores:
    return dense_scores(load_retriever(bundle_folder(trial_folder(state.folder, key))).model.eval())


def _way(name: str) -> str:
    """Of an entry: the words after the arm."""
    return " ".join(name.split()[1:])


def table(entries: dict[str, Entry], targets: str, baseline: str) -> list[str]:
    """Markdown: means with errors over seeds and users in brackets, and below them differences to the baseline by protocol.

    A baseline that answers in several ways is compared with what answers in the same way, hybrid with hybrid; what answers in
    none of them stands without a difference. Raises ConfigError when no trial of the baseline is done.
    """
    columns = [f"{metric}, history {protocol}" for protocol in PROTOCOLS for metric in SHOWN]
    lines = [f"| retriever | seeds | {' | '.join(columns)} | training, s |", "| --- " * (3 + len(columns)) + "|"]
    differences = [f"| less {baseline} | seeds | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    bases = {_way(name): entry for name, entry in entries.items() if name.split()[0] == baseline and "+" not in name}
    if not bases:
        raise ConfigError(
            f"the baseline {baseline} has no trial that is done and judged, so that nothing can be compared with it"
        )
    only = next(iter(bases.values())) if len(bases) == 1 else None
    for name, entry in entries.items():
        seeds = _seeds(entry)
        if not entry.judged["ranked"]:
            continue
        places = [(protocol, metric) for protocol in PROTOCOLS for metric in SHOWN]
        cells = [_mean(entry, targets, *place) for place in places]
        seconds = f"{statistics.median(entry.seconds):.0f}" if entry.seconds else ""
        lines.append(f"| {name} | {seeds if entry.seconds else ''} | {' | '.join(cells)} | {seconds} |")
        base = only or bases.get(_way(name))
        if base is not None and entry is not base:
            cells = [_difference(entry, base, targets, *place) for place in places]
            differences.append(f"| {name} | {seeds if entry.seconds else ''} | {' | '.join(cells)} |")
    return [*lines, "", *differences]


def choice_table(entries: dict[str, Entry], objective: str, targets: str) -> list[str]:
    """Markdown: the objective on validation of the sums and their models, means over seeds; the best by protocol with its test
    numbers and 95 % intervals over seeds and users."""
    validated = {name: entry for name, entry in entries.items() if entry.valid[PROTOCOLS[0]]}
    if not validated:
        return []
    columns = [f"{objective}, history {protocol}" for protocol in PROTOCOLS]
    lines = [f"| validation, in-set | seeds | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    means = {
        name: {protocol: statistics.fmean(entry.valid[protocol].values()) for protocol in PROTOCOLS}
        for name, entry in validated.items()
    }
    for name, entry in validated.items():
        cells = " | ".join(f"{means[name][protocol]:.4f}" for protocol in PROTOCOLS)
        lines.append(f"| {name} | {_seeds(entry)} | {cells} |")
    lines.append("")
    for protocol in PROTOCOLS:
        name = max(means, key=lambda name: means[name][protocol])  # the first of equals
        numbers = ", ".join(f"{metric} {_level(validated[name], targets, protocol, metric)}" for metric in SHOWN)
        lines.append(f"history {protocol}, validation chooses {name} ({_seeds(validated[name])}): test {numbers}")
    return lines


def _seeds(entry: Entry) -> str:
    return f"{len(entry.judged['ranked'])}" + (f" x {entry.width}" if entry.width > 1 else "")


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


def _level(entry: Entry, targets: str, protocol: HistoryItems, metric: str) -> str:
    """The mean with its interval, that of a difference to 0."""
    values, groups = _values(entry, targets, protocol, metric, list(entry.judged[protocol]))
    nothing = None if groups is None else [[0.0] * len(row) for row in groups]
    found = paired_difference(values, [0.0] * len(values), groups, nothing)
    return f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"


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
