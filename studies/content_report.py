"""The lines of studies.content_rankers as Markdown: python -m studies.content_report --files FILE [FILE ...].

Means over seeds, each beside its standard error over seeds and over groups of users; then paired differences of AUC from that of
a baseline arm with 95 % intervals that cover both. The same seeds of both arms are paired; of one seed only users are covered.
Several files are folds of one data set, each with users of its own: means of them all, each as it weighs in a mean of folds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from rayrec.errors import told
from rayrec.metrics.paired import mean_estimate, paired_difference

METRICS = ("auc", "mrr", "ndcg@5", "ndcg@10")
Lines = dict[int, dict[str, Any]]  # by seed


@dataclass(frozen=True)
class Report:
    """Which file is told, beside which arm."""

    files: tuple[Path, ...]
    """Of studies.content_rankers."""
    baseline: str = "miner"
    """Arm that the others are compared with."""


def run(report: Report) -> None:
    folds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for file in report.files:
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            length = line.get("trained_length")
            arm = line["arm"] + (f", trained at {length}" if length else "")
            folds.setdefault((arm, line["seed"]), []).append(line)
    arms: dict[str, Lines] = {}
    for (arm, seed), there in folds.items():
        if len(there) != len(report.files):
            print(f"left out: {arm}, seed {seed}, of which {len(there)} of {len(report.files)} folds are there\n")
        else:
            arms.setdefault(arm, {})[seed] = together(there)
    print("| ranker | seeds | AUC | MRR | nDCG@5 | nDCG@10 | parameters | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm, lines in arms.items():
        cells = [_mean(lines, metric) for metric in METRICS]
        sizes = [f"{line['parameters']:,}" for line in lines.values() if "parameters" in line][:1] or [""]
        seconds = [line["seconds"] for line in lines.values() if "seconds" in line]
        time = f"{sum(seconds) / len(seconds):,.0f}" if seconds else ""
        print(f"| {arm} | {len(lines)} | {' | '.join(cells)} | {sizes[0]} | {time} |")
    print(f"\n| AUC less that of {report.baseline} | seeds | difference | 95 % interval |\n| --- | --- | --- | --- |")
    for arm, lines in arms.items():
        if arm != report.baseline and arm not in ("popularity", "bm25"):
            print(f"| {arm} | {_difference(lines, arms[report.baseline])} |")
    print("\n| AUC by newest contents | 5 | 15 | 30 | 60 |\n| --- | --- | --- | --- | --- |")
    for arm, lines in arms.items():
        read = [line for line in lines.values() if line.get("by_history")]
        if read and set(read[0]["by_history"]) == {"5", "15", "30"}:
            found = [sum(line["by_history"][n]["auc"] for line in read) / len(read) for n in ("5", "15", "30")]
            found.append(sum(line["test"]["auc"] for line in read) / len(read))
            print(f"| {arm} | {' | '.join(f'{value:.4f}' for value in found)} |")


def together(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean line of folds; a group of users left out is left out of its fold alone."""
    if len(folds) == 1:
        return folds[0]
    test = {metric: sum(fold["test"][metric] for fold in folds) / len(folds) for metric in METRICS}
    left_out = {
        metric: [
            test[metric] + (without - fold["test"][metric]) / len(folds)
            for fold in folds
            for without in fold["left_out"][metric]
        ]
        for metric in METRICS
    }
    times = {"seconds": sum(fold["seconds"] for fold in folds)} if "seconds" in folds[0] else {}
    return {**folds[0], "test": test, "left_out": left_out, **times, "by_history": {}}


def _mean(lines: Lines, metric: str) -> str:
    left_out = [line["left_out"][metric] for line in lines.values()]
    found = mean_estimate([line["test"][metric] for line in lines.values()], left_out)
    seeds = "" if found.standard_error is None else f"{found.standard_error:.4f}, "
    return f"{found.mean:.4f} ({seeds}{found.group_error:.4f})"


def _difference(lines: Lines, base: Lines) -> str:
    seeds = sorted(set(lines) & set(base))
    if not seeds:
        return "0 | |"
    found = paired_difference(
        [lines[seed]["test"]["auc"] for seed in seeds], [base[seed]["test"]["auc"] for seed in seeds],
        [lines[seed]["left_out"]["auc"] for seed in seeds], [base[seed]["left_out"]["auc"] for seed in seeds],
    )  # fmt: skip
    return f"{len(seeds)} | {found.mean:+.4f} | {found.low:+.4f} to {found.high:+.4f}"


def main() -> None:
    with told():
        run(tyro.cli(Report, description=__doc__))


if __name__ == "__main__":
    main()
