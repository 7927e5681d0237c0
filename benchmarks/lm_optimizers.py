"""Language models from scratch on item texts: AdamW, APOLLO, APOLLO-Mini and GaLore at equal tokens, each at its best lr.

python -m benchmarks.lm_optimizers [--minutes 3.5]. Each optimizer's learning rate is swept with seed 0 on a grid that grows while
its best is at an edge; the best one is trained with the other seeds. Work is kept below --out: a call that runs out of its
minutes says so, and the next one goes on with the very next step. The last call prints the table and writes curves.csv and
report/report.html, which shows the curves.
"""

import csv
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, get_args

import tyro
from matplotlib.figure import Figure

from rayrec.data.log import Log
from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.amazon2018 import read_amazon2018_processed
from rayrec.data.text_stream import TextImport, documents, write_blocks, write_documents
from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.models.llama import ShapeName
from rayrec.optim import OptimizerConfig
from rayrec.optim.config import ProjectionConfig
from rayrec.registry import runs_folder
from rayrec.reporting import Section, Table, write_page
from rayrec.text.tokenizer import train_tokenizer
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.training.worker import RunOptions, Worker

OptimizerName = Literal["adamw", "apollo", "apollo_mini", "galore"]
Results = dict[str, dict[str, float | list[float]]]
FACTOR = math.sqrt(10.0)  # between neighbours on the grid of learning rates
GRIDS: Mapping[OptimizerName, tuple[int, ...]] = {  # powers of FACTOR; each grows until its best lies inside
    "adamw": (-6, -5),
    "apollo": (-5, -4),
    "apollo_mini": (-6, -5),
    "galore": (-4, -3),
}


@dataclass(frozen=True)
class Benchmark:
    """source: folder of Scientific.item.json. documents: how many item texts are used (the first ones).

    rank_share: rank of APOLLO and GaLore over the smaller dimension of a matrix. period: steps between projections (T).
    extensions: how often a grid may grow, by one. curve_points: evaluations on the validation split in a run.
    minutes: stop after so many; None = go to the end.
    optimizers: those that this call trains; calls with different ones may share a folder and run at the same time.
    """

    source: Path = Path("shared/data/amazon2018_scientific_text")
    out: Path = field(default_factory=lambda: runs_folder() / "lm-optimizers")
    documents: int = 800
    vocabulary: int = 1024
    block_tokens: int = 128
    batch_size: int = 8
    shape: ShapeName = "tiny"
    rank_share: float = 0.25
    period: int = 50
    seeds: int = 3
    extensions: int = 3
    curve_points: int = 10
    threads: int = 2
    minutes: float | None = None
    optimizers: tuple[OptimizerName, ...] = get_args(OptimizerName)


@dataclass(frozen=True)
class Run:
    """One training run: learning rate = FACTOR ** power."""

    optimizer: OptimizerName
    power: int
    seed: int

    @property
    def learning_rate(self) -> float:
        return float(f"{FACTOR**self.power:.3g}")

    @property
    def name(self) -> str:
        return f"{self.optimizer}-{self.learning_rate:g}-{self.seed}"


class OutOfTime(Exception):
    """The piece of work of this call is done; everything is kept."""


class _Deadline(FolderReporter):
    """Ends this call at the first checkpoint after its time; the next call goes on from it."""

    def __init__(self, folder: Path, deadline: float) -> None:
        super().__init__(folder)
        self.deadline = deadline

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        if time.monotonic() > self.deadline:
            raise OutOfTime


class Study:
    """Runs as they are needed, each one once."""

    def __init__(self, benchmark: Benchmark, corpus: Path, deadline: float) -> None:
        self.benchmark, self.corpus, self.deadline = benchmark, corpus, deadline
        self.steps = Log.open(corpus).rows("train") // benchmark.batch_size
        self.done: dict[Run, Progress] = {}

    def progress(self, run: Run) -> Progress:
        if run not in self.done:
            reporter = _Deadline(self.benchmark.out / "runs" / run.name, self.deadline)
            newest = reporter.latest()
            if newest is None or not read_progress(newest).finished:
                if time.monotonic() > self.deadline:
                    raise OutOfTime
                worker = Worker(options=RunOptions(threads=self.benchmark.threads, reader="in_process"))
                train_here(self._experiment(run), reporter, worker=worker, say=lambda text: None)
                newest = reporter.latest()
            assert newest is not None  # it was trained
            self.done[run] = read_progress(newest)
            print(f"{run.name:<24} validation perplexity {self.validation(run):10.2f}", flush=True)
        return self.done[run]

    def validation(self, run: Run) -> float:
        """The best perplexity on the validation split; a diverged run counts as infinite."""
        value = self.progress(run).best_objective
        return value if value is not None and math.isfinite(value) else math.inf

    def curve(self, run: Run) -> list[tuple[int, float]]:
        """Training tokens and validation perplexity of its evaluations."""
        tokens = self.benchmark.batch_size * self.benchmark.block_tokens
        return [
            (p.step * tokens, p.value)
            for p in self.progress(run).curve
            if p.split == "valid" and p.task and p.metric == "perplexity" and p.value is not None
        ]

    def best_power(self, optimizer: OptimizerName) -> int:
        powers = list(GRIDS[optimizer])
        for _ in range(self.benchmark.extensions):
            best = min(powers, key=lambda power: self.validation(Run(optimizer, power, 0)))
            if min(powers) < best < max(powers):
                break
            powers.append(best - 1 if best == min(powers) else best + 1)
        return min(powers, key=lambda power: self.validation(Run(optimizer, power, 0)))

    def _experiment(self, run: Run) -> LanguageModelExperiment:
        benchmark = self.benchmark
        return LanguageModelExperiment(
            self.corpus,
            benchmark.shape,
            OptimizerConfig(
                optimizer=run.optimizer,
                learning_rate=run.learning_rate,
                weight_decay=0.0,
                embeddings="adamw",
                embedding_learning_rate=run.learning_rate,
                projection=ProjectionConfig(rank_share=benchmark.rank_share, period=benchmark.period, seed=run.seed),
            ),
            LoopConfig(
                epochs=1,
                seed=run.seed,
                warmup_steps=self.steps // 10,
                schedule="cosine",
                gradient_clip=1.0,
                evaluate_every_steps=max(1, self.steps // benchmark.curve_points),
                patience=None,
            ),
            StreamConfig(batch_size=benchmark.batch_size, seed=run.seed),
        )


def make_corpus(benchmark: Benchmark) -> Path:
    """The corpus of the first ``documents`` item texts, made once."""
    out = benchmark.out / "corpus"
    if not out.is_dir():
        benchmark.out.mkdir(parents=True, exist_ok=True)
        texts = read_amazon2018_processed(benchmark.source, "Scientific").items.texts.to_pylist()
        file = write_documents(texts[: benchmark.documents], benchmark.out / "documents.parquet")
        source = TextImport((file,), "text", benchmark.block_tokens, 0.05, 0.05, reader="in_process")
        tokenizer = train_tokenizer(documents(source, "train"), benchmark.vocabulary)
        write_blocks(source, tokenizer.json, tokenizer.separator, out)
    return out


def measure(study: Study) -> Results:
    """By optimizer: its learning rate, and test and validation perplexity over seeds."""
    results: Results = {}
    for optimizer in study.benchmark.optimizers:
        power = study.best_power(optimizer)
        runs = [Run(optimizer, power, seed) for seed in range(study.benchmark.seeds)]
        valid = [study.validation(run) for run in runs]
        test = [float(study.progress(run).evaluations["test"]["text"]["perplexity"] or math.nan) for run in runs]
        results[optimizer] = {
            "learning_rate": runs[0].learning_rate,
            "valid_perplexity": valid,
            "test_perplexity": test,
            "test_mean": mean(test),
            "test_std": stdev(test) if len(test) > 1 else 0.0,
            "seconds_a_step": mean(study.progress(run).seconds / study.progress(run).step for run in runs),
        }
    return results


def write_curves(study: Study, out: Path) -> None:
    """Validation perplexity by training tokens, of every run, as curves.csv."""
    with (out / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("optimizer", "learning_rate", "seed", "tokens", "valid_perplexity"))
        for run in study.done:
            rows = [(run.optimizer, run.learning_rate, run.seed, *point) for point in study.curve(run)]
            writer.writerows(rows)


def draw_curves(study: Study, chosen: Mapping[str, float]) -> Figure:
    """The curves of the chosen learning rates, a line a seed."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    panel = figure.add_subplot()
    colors = dict(zip(get_args(OptimizerName), ("#98a2b3", "#1d6fb8", "#2b8a3e", "#c2410c"), strict=True))
    for run in study.done:
        if run.learning_rate == chosen[run.optimizer]:
            label = f"{run.optimizer}, lr {run.learning_rate:g}" if run.seed == 0 else None
            curve = zip(*study.curve(run), strict=True)
            panel.plot(*curve, "-", color=colors[run.optimizer], label=label, linewidth=1.2)
    panel.set(xlabel="training tokens", ylabel="validation perplexity", yscale="log")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    return figure


def report_sections(study: Study, results: Results, setting: str) -> tuple[Section, ...]:
    """The table, the curves, and what every learning rate gave."""
    rates = {name: float(f"{result['learning_rate']}") for name, result in results.items()}
    rows = [(name, f"{rates[name]:g}", _shown(result), _milliseconds(result)) for name, result in results.items()]
    swept = sorted((run for run in study.done if run.seed == 0), key=lambda run: (run.optimizer, run.power))
    values = [(run.optimizer, f"{run.learning_rate:g}", f"{study.validation(run):.2f}") for run in swept]
    return (
        Section("At equal tokens", setting, Table(("optimizer", "lr", "test perplexity", "ms a step"), tuple(rows))),
        Section("Perplexity curves", "A line is a seed.", figures={"curves": draw_curves(study, rates)}),
        Section(
            "Learning rates", "Seed 0; the best one was taken.", Table(("optimizer", "lr", "validation"), tuple(values))
        ),
    )


def _shown(result: Mapping[str, float | list[float]]) -> str:
    return f"{result['test_mean']:.2f} +- {result['test_std']:.2f}"


def _milliseconds(result: Mapping[str, float | list[float]]) -> str:
    seconds = result["seconds_a_step"]
    assert not isinstance(seconds, list)
    return f"{1000 * seconds:.0f}"


def main() -> None:
    benchmark = tyro.cli(Benchmark, description=__doc__)
    deadline = math.inf if benchmark.minutes is None else time.monotonic() + 60 * benchmark.minutes
    study = Study(benchmark, make_corpus(benchmark), deadline)
    try:
        results = measure(study)
    except OutOfTime:
        print(f"out of time after {len(study.done)} whole runs: the same command goes on from here")
        return
    tokens = study.steps * benchmark.batch_size * benchmark.block_tokens
    setting = f"{tokens:,} training tokens, {study.steps} steps, {benchmark.seeds} seeds, shape {benchmark.shape}"
    write_curves(study, benchmark.out)
    page = write_page(
        benchmark.out / "report", "Optimizers of language models", report_sections(study, results, setting)
    )
    print(setting)
    print(f"{'optimizer':<14}{'lr':>10}{'test perplexity':>22}{'ms a step':>12}")
    for name, result in results.items():
        print(f"{name:<14}{result['learning_rate']:>10}{_shown(result):>22}{_milliseconds(result):>12}")
    print(f"curves: {benchmark.out / 'curves.csv'}\nreport: {page}")
    print(json.dumps({"tokens": tokens, "shape": benchmark.shape, **results}))


if __name__ == "__main__":
    main()
