"""Language models from scratch on item texts: AdamW, APOLLO, APOLLO-Mini, GaLore and Muon at equal tokens and equal tuning.

python -m benchmarks.lm_optimizers [--minutes 3.5]. Two rates of each arm, that of matrices and that of embedding, head and
vectors, are searched with seed 0 in as many trials (``next_rates``); the pair that is best on validation is trained with the
other seeds, and AdamW's on half of the tokens too (half of the documents; of more passes than one, half of them): what a doubling
of the tokens still brings. Work is kept below --out: a
call that runs out of its minutes says so, and the next one goes on with the very next step. The last call prints the table and
writes curves.csv and report/report.html, which shows the curves.
"""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, get_args

import tyro
from matplotlib.figure import Figure

from rayrec.data.log import Log
from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.amazon2018 import read_amazon2018_processed
from rayrec.data.text_stream import TextImport, documents, write_blocks, write_documents
from rayrec.errors import DivergedError, told
from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.files import locked, make_folder
from rayrec.kept_options import hold_to_options, options_of
from rayrec.metrics.paired import PairedDifference, paired_difference
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
from rayrec.typed_json import ConfigError

ArmName = Literal["adamw", "adamw_95", "apollo", "apollo_mini", "galore", "muon"]
Rates = tuple[int, int]  # of matrices and of everything else, as powers of FACTOR
FACTOR = math.sqrt(10.0)
ARMS: Mapping[ArmName, str] = {
    "adamw": "AdamW",
    "adamw_95": "AdamW, beta2 .95",
    "apollo": "APOLLO",
    "apollo_mini": "APOLLO-Mini",
    "galore": "GaLore",
    "muon": "Muon",
}
STARTS: Mapping[ArmName, Rates] = {  # what was best for the micro shape at 230,400 tokens (see benchmarks/RESULTS.md)
    "adamw": (-5, -2),
    "adamw_95": (-4, -2),
    "apollo": (-3, -2),
    "apollo_mini": (-4, -2),
    "galore": (-2, -2),
    "muon": (-4, -2),
}


@dataclass(frozen=True)
class Benchmark:
    """source: folder of Scientific.item.json. documents: how many item texts are used (the first ones).

    epochs: passes over them, 1 or an even number.
    rank_share: rank of APOLLO and GaLore over the smaller dimension of a matrix. period: steps between projections (T).
    trials: pairs of rates that are tried for each arm. curve_points: evaluations on the validation split in a run.
    minutes: stop after so many; None = go to the end.
    arms: those that this call trains; calls with different ones may share a folder and run at the same time.
    """

    source: Path = Path("shared/data/amazon2018_scientific_text")
    out: Path = field(default_factory=lambda: runs_folder() / "lm-optimizers")
    documents: int = 1200
    epochs: int = 1
    vocabulary: int = 1024
    block_tokens: int = 128
    batch_size: int = 4
    shape: ShapeName = "micro"
    rank_share: float = 0.25
    period: int = 50
    trials: int = 7
    seeds: int = 3
    curve_points: int = 10
    threads: int = 1
    minutes: float | None = None
    arms: tuple[ArmName, ...] = get_args(ArmName)


@dataclass(frozen=True)
class Run:
    """One training run. half: on half of the tokens."""

    arm: ArmName
    rates: Rates
    seed: int
    half: bool = False

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of matrices, of everything else."""
        matrices, others = (float(f"{FACTOR**power:.3g}") for power in self.rates)
        return matrices, others

    @property
    def name(self) -> str:
        matrices, others = self.learning_rates
        return f"{self.arm}-{matrices:g}-{others:g}-{self.seed}{'-half' if self.half else ''}"


def next_rates(tried: Mapping[Rates, float]) -> Rates:
    """What a hill climb tries after ``tried`` (perplexity by rates, in the order in which they were tried, the start first).

    From the best pair so far: one step further the way that led there, else the first way not yet tried of a larger and a smaller
    rate of matrices, then of everything else; where all four are known, diagonals and then pairs two steps away.
    """
    order = list(tried)
    best = min(order, key=lambda rates: tried[rates])
    steps = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1), (2, 0), (-2, 0), (0, 2), (0, -2)]
    if best != order[0]:
        before = min(order[: order.index(best)], key=lambda rates: tried[rates])
        came = (best[0] - before[0], best[1] - before[1])
        if came in steps[:4]:
            steps.insert(0, came)
    for step in steps:
        rates = best[0] + step[0], best[1] + step[1]
        if rates not in tried:
            return rates
    raise ValueError(f"{len(tried)} pairs of rates around {best} are tried: nothing is left")


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
    """Runs as they are needed, each one once. Raises ConfigError when the folder holds those of other options."""

    def __init__(self, benchmark: Benchmark, deadline: float) -> None:
        if benchmark.epochs != 1 and (benchmark.epochs < 1 or benchmark.epochs % 2):
            raise ConfigError(f"epochs must be 1 or an even number, not {benchmark.epochs}")
        options = options_of(benchmark, but=("out", "trials", "seeds", "threads", "minutes", "arms"))
        hold_to_options(benchmark.out / "options.json", options, "runs/*", "corpus-half")
        self.benchmark, self.deadline = benchmark, deadline
        self.corpora = make_corpora(benchmark)
        self.done: dict[Run, Progress] = {}

    def corpus(self, half: bool) -> Path:
        return self.corpora[half and self.benchmark.epochs == 1]

    def epochs(self, half: bool) -> int:
        return max(1, self.benchmark.epochs // 2) if half else self.benchmark.epochs

    def steps(self, half: bool = False) -> int:
        return self.epochs(half) * (Log.open(self.corpus(half)).rows("train") // self.benchmark.batch_size)

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
            print(f"{run.name:<32} validation perplexity {self.done[run].best_objective or math.nan:10.2f}", flush=True)
        return self.done[run]

    def validation(self, run: Run) -> float:
        """The best perplexity on the validation split; a diverged run counts as infinite."""
        mark = self.benchmark.out / "runs" / run.name / "diverged"
        if mark.is_file():
            return math.inf
        try:
            value = self.progress(run).best_objective
        except DivergedError as error:
            print(f"{run.name:<32} {error}", flush=True)
            mark.touch()
            return math.inf
        return value if value is not None and math.isfinite(value) else math.inf

    def curve(self, run: Run) -> list[tuple[int, float]]:
        """Training tokens and validation perplexity of its evaluations."""
        tokens = self.benchmark.batch_size * self.benchmark.block_tokens
        return [
            (p.step * tokens, p.value)
            for p in self.progress(run).curve
            if p.split == "valid" and p.task and p.metric == "perplexity" and p.value is not None
        ]

    def tried(self, arm: ArmName) -> dict[Rates, float]:
        """Validation perplexity of seed 0 by rates, in the order of the search."""
        tried: dict[Rates, float] = {}
        rates = STARTS[arm]
        for trial in range(self.benchmark.trials):
            rates = next_rates(tried) if trial else rates
            tried[rates] = self.validation(Run(arm, rates, 0))
        return tried

    def best(self, arm: ArmName) -> Rates:
        tried = self.tried(arm)
        return min(tried, key=lambda rates: tried[rates])

    def _experiment(self, run: Run) -> LanguageModelExperiment:
        benchmark, steps = self.benchmark, self.steps(run.half)
        matrices, others = run.learning_rates
        return LanguageModelExperiment(
            self.corpus(run.half),
            benchmark.shape,
            OptimizerConfig(
                optimizer="adamw" if run.arm == "adamw_95" else run.arm,
                learning_rate=others,
                matrix_learning_rate=matrices,
                weight_decay=0.0,
                beta2=0.95 if run.arm == "adamw_95" else 0.999,
                embeddings="adamw",
                embedding_learning_rate=others,
                projection=ProjectionConfig(rank_share=benchmark.rank_share, period=benchmark.period, seed=run.seed),
            ),
            LoopConfig(
                epochs=self.epochs(run.half),
                seed=run.seed,
                warmup_steps=steps // 10,
                schedule="cosine",
                gradient_clip=1.0,
                evaluate_every_steps=max(1, steps // benchmark.curve_points),
                patience=None,
            ),
            StreamConfig(batch_size=benchmark.batch_size, seed=run.seed),
        )


def make_corpora(benchmark: Benchmark) -> Mapping[bool, Path]:
    """Corpora of the first ``documents`` item texts (False) and with half of their training documents (True), made once.

    Both have the same tokenizer and the same validation and test documents.
    """
    out = {half: benchmark.out / ("corpus-half" if half else "corpus") for half in (False, True)}
    make_folder(benchmark.out)
    with locked(benchmark.out / ".corpora.lock"):  # calls may share the folder and run at the same time
        if not out[True].is_dir():  # written last
            _write_corpora(benchmark, out)
    return out


def _write_corpora(benchmark: Benchmark, out: Mapping[bool, Path]) -> None:
    texts = read_amazon2018_processed(benchmark.source, "Scientific").items.texts.to_pylist()
    file = write_documents(texts[: benchmark.documents], benchmark.out / "documents.parquet")
    whole = TextImport((file,), "text", benchmark.block_tokens, 0.05, 0.05, reader="in_process")
    train, *others = (list(documents(whole, split)) for split in ("train", "valid", "test"))
    tokenizer = train_tokenizer(iter(train), benchmark.vocabulary)
    halved = write_documents(train[::2] + others[0] + others[1], benchmark.out / "documents-half.parquet")
    for source, folder in ((whole, out[False]), (replace(whole, files=(halved,)), out[True])):
        write_blocks(source, tokenizer.json, tokenizer.separator, folder, overwrite=True)


@dataclass(frozen=True)
class Result:
    """An arm at its best rates: perplexities by seed. difference: of the logarithms of test perplexities, to the first arm's,
    times 100: per cent."""

    rates: tuple[float, float]
    valid: tuple[float, ...]
    test: tuple[float, ...]
    difference: PairedDifference | None
    settled: bool
    """Whether all four neighbours of the best rates were tried."""


def measure(study: Study) -> dict[ArmName, Result]:
    """By arm. The arms' seeds are trained in turn, so that a call that ends early leaves whole ones."""
    best = {arm: study.best(arm) for arm in study.benchmark.arms}
    for seed in range(1, study.benchmark.seeds):
        for arm, rates in best.items():
            if math.isinf(study.validation(Run(arm, rates, seed))):
                raise DivergedError(
                    f"{arm} at its best rates diverged with seed {seed}: leave it out, or try more rates"
                )
    results: dict[ArmName, Result] = {}
    for arm, rates in best.items():
        runs = [Run(arm, rates, seed) for seed in range(study.benchmark.seeds)]
        test = tuple(float(study.progress(run).evaluations["test"]["text"]["perplexity"] or math.nan) for run in runs)
        first = next(iter(results.values())).test if results else None
        ratio = None if first is None else [100 * math.log(own / other) for own, other in zip(test, first, strict=True)]
        tried = study.tried(arm)
        around = (
            (rates[0] + 1, rates[1]),
            (rates[0] - 1, rates[1]),
            (rates[0], rates[1] + 1),
            (rates[0], rates[1] - 1),
        )
        results[arm] = Result(
            runs[0].learning_rates,
            tuple(study.validation(run) for run in runs),
            test,
            None if ratio is None else paired_difference(ratio, [0.0] * len(ratio)),
            all(neighbour in tried for neighbour in around),
        )
    return results


def write_curves(study: Study, out: Path) -> None:
    """Validation perplexity by training tokens, of every run, as curves.csv."""
    with (out / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("arm", "matrix_rate", "other_rate", "seed", "half", "tokens", "valid_perplexity"))
        for run in study.done:
            rows = [(run.arm, *run.learning_rates, run.seed, run.half, *point) for point in study.curve(run)]
            writer.writerows(rows)


def draw_curves(study: Study, results: Mapping[ArmName, Result]) -> Figure:
    """The curves at the chosen rates, a line a seed."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    panel = figure.add_subplot()
    colors = dict(zip(ARMS, ("#98a2b3", "#475467", "#1d6fb8", "#2b8a3e", "#c2410c", "#7c3aed"), strict=True))
    for run in study.done:
        if run.arm in results and run.learning_rates == results[run.arm].rates and not run.half:
            label = f"{ARMS[run.arm]}, {_shown_rates(run.learning_rates)}" if run.seed == 0 else None
            curve = zip(*study.curve(run), strict=True)
            panel.plot(*curve, "-", color=colors[run.arm], label=label, linewidth=1.2)
    panel.set(xlabel="training tokens", ylabel="validation perplexity", yscale="log")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    return figure


def result_table(results: Mapping[ArmName, Result]) -> Table:
    """A row an arm."""
    columns = (
        "optimizer",
        "rate of matrices, of the rest",
        "neighbours tried",
        "validation",
        "test",
        "less the first, %",
    )
    rows = [
        (
            ARMS[arm],
            _shown_rates(result.rates),
            "all" if result.settled else "some",
            f"{mean(result.valid):.2f}",
            f"{mean(result.test):.2f} ({_deviation(result.test)})",
            _shown_difference(result),
        )
        for arm, result in results.items()
    ]
    return Table(columns, tuple(rows))


def report_sections(study: Study, results: Mapping[ArmName, Result], setting: str) -> tuple[Section, ...]:
    """The table, the curves, and what every pair of rates gave."""
    values = [
        (ARMS[arm], _shown_rates(Run(arm, rates, 0).learning_rates), f"{value:.2f}")
        for arm in results
        for rates, value in study.tried(arm).items()
    ]
    return (
        Section("At equal tokens", setting, result_table(results)),
        Section("Perplexity curves", "A line is a seed.", figures={"curves": draw_curves(study, results)}),
        Section(
            "Rates",
            "Seed 0, in the order tried; the best pair was taken.",
            Table(("optimizer", "rate of matrices, of the rest", "validation"), tuple(values)),
        ),
    )


def _shown_rates(rates: tuple[float, float]) -> str:
    return f"{rates[0]:g}, {rates[1]:g}"


def _shown_difference(result: Result) -> str:
    difference = result.difference
    if difference is None:
        return ""
    interval = f"{difference.low:+.1f}, {difference.high:+.1f}" if len(result.test) > 1 else "one seed"
    return f"{difference.mean:+.1f} ({interval})"


def _deviation(values: Sequence[float]) -> str:
    return f"{stdev(values):.2f}" if len(values) > 1 else "one seed"


def main() -> None:
    with told():
        run(tyro.cli(Benchmark, description=__doc__))


def run(benchmark: Benchmark) -> None:
    """Train what is missing; at the end the table, curves and report."""
    deadline = math.inf if benchmark.minutes is None else time.monotonic() + 60 * benchmark.minutes
    study = Study(benchmark, deadline)
    try:
        results = measure(study)
        of_half: list[float] = []
        if "adamw" in results:
            halves = [Run("adamw", study.best("adamw"), seed, half=True) for seed in range(benchmark.seeds)]
            of_half = [study.validation(run) for run in halves]
    except OutOfTime:
        print(f"out of time after {len(study.done)} whole runs: the same command goes on from here")
        return
    tokens = study.steps() * benchmark.batch_size * benchmark.block_tokens
    setting = f"{tokens:,} training tokens, {study.steps()} steps, {benchmark.seeds} seeds, shape {benchmark.shape}"
    write_curves(study, benchmark.out)
    page = write_page(
        benchmark.out / "report", "Optimizers of language models", report_sections(study, results, setting)
    )
    table = result_table(results)
    print(setting)
    for row in (table.columns, ("---",) * len(table.columns), *table.rows):
        print(f"| {' | '.join(map(str, row))} |")
    if of_half:
        print(f"AdamW on half of the training tokens: validation {mean(of_half):.2f} ({_deviation(of_half)})")
    for arm in results:
        print(
            f"{ARMS[arm]}, tried: "
            + "; ".join(
                f"{_shown_rates(Run(arm, rates, 0).learning_rates)}: {value:.2f}"
                for rates, value in study.tried(arm).items()
            )
        )
    print(f"curves: {benchmark.out / 'curves.csv'}\nreport: {page}")


if __name__ == "__main__":
    main()
