"""Our rankers beside LightGBM and FuxiCTR's models, tuned alike: python -m studies.peers criteo census-income kuairand --folder F

One task a log, learned alone by all. Each arm draws the same number of settings at random and is trained once with each; the
one of the least log loss on validation rows is trained with every seed and judged on the test rows. Everything is kept in the
folder as it ends, and not done again. Ours is the ranker as ``jobs.train`` trains it, in process.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from rayrec.batch import Batch
from rayrec.data.log import SPLITS, Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.data.public.logs import import_public
from rayrec.errors import told
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig, ranker_inputs
from rayrec.kept_options import hold_to_options, other_options
from rayrec.metrics import BinaryMetrics
from rayrec.metrics.paired import mean_estimate, paired_difference
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.typed_json import ConfigError
from studies.peer_models import PEERS, Draw, Peer, Rows, Settings, log_uniform, network_settings

TASKS: Mapping[str, str] = {"criteo": "click", "census-income": "income", "kuairand": "long_view"}
METRICS = ("normalized_entropy", "auc")
BASELINE = "LightGBM"
BINS = (8, 16, 32)


@dataclass(frozen=True)
class Peers:
    """Options of the study."""

    datasets: tyro.conf.Positional[tuple[str, ...]]
    """Public data sets, of those in TASKS."""
    folder: Path
    """Where logs and results are kept; a stopped study goes on."""
    arms: tuple[str, ...] = ("rayrec", "rayrec-bins", *PEERS)
    """What is compared; "rayrec-bins" has vectors of its numbers as well."""
    trials: int = 16
    """Settings drawn for each arm."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the judged runs."""


@dataclass(frozen=True)
class Rayrec:
    """Ours: the space of ``tune_spaces.ranker``, with the sizes and dropouts of embeddings. bins: ``dense_bins`` to draw from."""

    log: Path
    task: str
    epochs: int = 20
    bins: tuple[int, ...] = ()

    def sample(self, draw: Draw) -> Settings:
        own = {
            "embedding_learning_rate": log_uniform(draw, 1e-2, 3e-1),
            "embedding_weight_decay": log_uniform(draw, 1e-6, 1e-2),
            "embedding_dropout": float(draw.choice([0.0, 0.25, 0.5])),
            "crosses": int(draw.integers(0, 4)),
        }
        settings = {**network_settings(draw), **own}
        return {**settings, "dense_bins": int(draw.choice(self.bins))} if self.bins else settings

    def experiment(self, settings: Settings, seed: int) -> RankerExperiment:
        """What ``jobs.train`` would be given."""
        architecture = RankerArchitecture(
            embedding_dim=settings["embedding_dim"],
            dense_bins=settings.get("dense_bins", 0),
            cross_layers=settings["crosses"],
            trunk=tuple(settings["units"]),
            tower=(),
            dropout=settings["dropout"],
            embedding_dropout=settings["embedding_dropout"],
        )
        optimizer = OptimizerConfig(
            learning_rate=settings["learning_rate"],
            embedding_learning_rate=settings["embedding_learning_rate"],
            embedding_weight_decay=settings["embedding_weight_decay"],
        )
        loop = LoopConfig(epochs=self.epochs, patience=2, seed=seed)
        stream = StreamConfig(batch_size=settings["batch_size"], seed=seed)
        return RankerExperiment(
            self.log, tasks=(self.task,), ranking=RankingConfig(architecture),
            optimizer=optimizer, loop=loop, stream=stream,
        )  # fmt: skip

    def fit(self, rows: Rows, settings: Settings, seed: int) -> Callable[[str], NDArray[np.float64]]:
        experiment = self.experiment(settings, seed)
        with tempfile.TemporaryDirectory() as place:
            reporter = FolderReporter(Path(place) / "train")
            train_here(experiment, reporter, say=lambda text: None)
            checkpoint = reporter.latest()
            assert checkpoint is not None
            experiment.save_bundle(checkpoint, Path(place) / "bundle")
            model = load_bundle(Path(place) / "bundle").model

        @torch.no_grad()
        def logits(split: str) -> NDArray[np.float64]:
            batch = rows.splits[split]
            parts = [model(batch[slice(i, i + 4096)]) for i in range(0, len(batch), 4096)]
            return torch.cat(parts)[:, 0].double().numpy()

        return logits


def run(command: Peers) -> None:
    """Every data set in turn; prints its table when all its arms are there."""
    for name in command.datasets:
        log = command.folder / name
        if not log.is_dir():
            import_public(name, log)
        rows = rows_of(Log.open(log), TASKS[name])
        if "rayrec-bins" in command.arms and rows.schema.dense and not ranker_inputs(rows.schema).dense_quantiles:
            raise ConfigError(
                f"{log}: was made before logs kept quantiles, which rayrec-bins needs: make this log again"
            )
        ours: dict[str, Peer] = {
            "rayrec": Rayrec(log, TASKS[name]),
            "rayrec-bins": Rayrec(log, TASKS[name], bins=BINS),
        }
        arms = {**ours, **PEERS}
        found = {arm: judged_arm(command, name, arm, arms[arm], rows) for arm in command.arms}
        print("\n".join(lines(name, found)), flush=True)


def rows_of(log: Log, task: str) -> Rows:
    """All splits of a log with one task, in memory, in the order of the log. Raises ConfigError when it has sequences."""
    schema = replace(log.schema, tasks=tuple(t for t in log.schema.tasks if t.name == task))
    if schema.sequences:
        raise ConfigError(f"{log.path}: has sequence features, which the peers do not read")

    def whole(split: str) -> Batch:
        config = StreamConfig(4096, shuffle=False, drop_last=False)
        with closing(LogStream(Log(log.path, schema), split, config)) as stream:
            return Batch.concatenate(list(stream.epoch_batches()))

    return Rows(schema, {split: whole(split) for split in SPLITS})


def judged_arm(command: Peers, name: str, arm: str, peer: Peer, rows: Rows) -> list[dict[str, Any]]:
    """Lines of the judged runs, one a seed, of the settings that were best on validation.

    Raises ConfigError when the folder holds results of other rows, or of settings that are not drawn any more.
    """
    file = command.folder / f"{name}.jsonl"
    counts = {split: len(batch) for split, batch in rows.splits.items()}
    hold_to_options(file.with_suffix(".options.json"), {"task": TASKS[name], "rows": counts}, file.name)
    there = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    mine = [line for line in there if line["arm"] == arm]
    trials = {line["trial"]: line for line in mine if "trial" in line}
    for trial, settings in enumerate(drawn(peer, command.trials)):
        if trial in trials:
            if changed := other_options(trials[trial]["settings"], json.loads(json.dumps(settings))):
                told_of = f"{file}: {arm}, trial {trial}, was made with {'; '.join(changed)}"
                raise ConfigError(f"{told_of}: choose another folder")
        else:
            trials[trial] = _add(file, {"arm": arm, "trial": trial, **judged(peer, rows, settings, 0, ("valid",))})
    chosen = min((trials[i] for i in range(command.trials)), key=lambda line: line["valid"]["log_loss"])["trial"]
    settings = list(drawn(peer, command.trials))[chosen]
    judged_runs = {line["seed"]: line for line in mine if line.get("chosen") == chosen}
    for seed in command.seeds:
        if seed not in judged_runs:
            line = {"arm": arm, "seed": seed, "chosen": chosen, **judged(peer, rows, settings, seed, ("valid", "test"))}
            judged_runs[seed] = _add(file, line)
    return [judged_runs[seed] for seed in command.seeds]


def drawn(peer: Peer, trials: int) -> Iterator[Settings]:
    """The settings of an arm's trials, always the same; the first ones of more."""
    return (peer.sample(np.random.default_rng(trial)) for trial in range(trials))


def judged(peer: Peer, rows: Rows, settings: Settings, seed: int, splits: Sequence[str]) -> dict[str, Any]:
    """Train, then metrics by split; of the test rows also those without each group of rows."""
    started = time.process_time()
    logits = peer.fit(rows, settings, seed)
    found: dict[str, Any] = {"settings": dict(settings), "cpu_seconds": time.process_time() - started}
    for split in splits:
        metrics = BinaryMetrics(1, by_group=True)
        metrics.update(torch.from_numpy(logits(split))[:, None], rows.splits[split].labels)
        result = metrics.compute()[0]
        found[split] = {name: getattr(result, name) for name in ("log_loss", *METRICS)}
        if split == "test" and metrics.groups is not None:
            left_out = metrics.groups.left_out()[0]
            found["left_out"] = {name: left_out[name] for name in METRICS}
    return found


def lines(name: str, found: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """The table of a data set: means, in brackets errors over seeds and over rows; differences with intervals over both."""
    table = [f"{name}, {TASKS[name]}"]
    for arm, runs in found.items():
        cells = []
        for metric in METRICS:
            values, left_out = [run["test"][metric] for run in runs], [run["left_out"][metric] for run in runs]
            mean = mean_estimate(values, left_out)
            cells.append(f"{metric} {mean.mean:.4f} ({mean.standard_error or math.nan:.4f}, {mean.group_error:.4f})")
            if arm != BASELINE and BASELINE in found:
                other = found[BASELINE]
                less = paired_difference(
                    values, [run["test"][metric] for run in other],
                    left_out, [run["left_out"][metric] for run in other],
                )  # fmt: skip
                cells.append(f"less {BASELINE} {less.mean:+.4f} ({less.low:+.4f} to {less.high:+.4f})")
        seconds = np.mean([run["cpu_seconds"] for run in runs])
        table.append(f"  {arm:<11} {', '.join(cells)}; {seconds:.1f} s of CPU; {runs[0]['settings']}")
    return table


def _add(file: Path, line: dict[str, Any]) -> dict[str, Any]:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    told_of = line.get("test", line["valid"])
    print(f"{file.stem} {line['arm']}: " + ", ".join(f"{k} {v:.4f}" for k, v in told_of.items()), flush=True)
    kept: dict[str, Any] = json.loads(json.dumps(line))
    return kept


def main() -> None:
    torch.set_num_threads(1)
    with told():
        run(tyro.cli(Peers, description=__doc__))


if __name__ == "__main__":
    main()
