"""Does the loop raise what is shown? A simulated world in which a ranker serves, gets feedback, is trained again and promoted.

    RAYREC_RUNS=FOLDER python -m studies.closed_loop FOLDER --seeds 0 1 2 3 4

The first version is trained on a little random traffic. In each round the version in force ranks new requests; the funnel shows
what it picks; users click by their true probabilities; decisions and feedback go through the logs of a service, and
``close_the_loop`` trains on all of them and promotes or refuses. The true value (bid * true click probability, a request) of each
version is that of the same later requests. Last, a model trained on shuffled labels is offered to the gate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from rayrec.data.log import Log, LogWriter
from rayrec.data.log.collate import collate
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.streams import StreamConfig
from rayrec.data.simulation import FunnelConfig, SimulationConfig, Simulator, WorldConfig, run_funnel, student_schema
from rayrec.data.simulation.funnel import IMPRESSION, REQUESTS_PER_BLOCK, STAGES, Block
from rayrec.data.simulation.log_rows import RowEncoder, fit_schema
from rayrec.errors import told
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import write_text_atomically
from rayrec.kept_options import hold_to_options
from rayrec.metrics.paired import paired_difference
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.runs.closing_the_loop import CloseTheLoop, close_the_loop, gate_and_promote
from rayrec.runs.fitting import fit
from rayrec.traffic.decisions import DecisionLog, LoggedDecision
from rayrec.traffic.feedback import Feedback, FeedbackLog, Outcome
from rayrec.traffic.gate import GateConfig
from rayrec.traffic.joining import JoinConfig, join
from rayrec.traffic.shown import ShownItems
from rayrec.training.loop import LoopConfig
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions
from rayrec.typed_json import from_json, to_json, to_plain

_WINDOW_MS = 3_600_000
_HERE = RunOptions(threads=1, reader="in_process")
_EARLY = "early"
Scores = Callable[[Block], NDArray[np.float32]]


@dataclass(frozen=True)
class ClosedLoopConfig:
    """Size of a study, in blocks of 512 requests."""

    random_blocks: int = 2
    """Of random traffic, from which the first version learns."""
    round_blocks: tuple[int, ...] = (8, 16)
    """Served in each round."""
    judged_blocks: int = 8
    """Later requests, on which the true value of every version is computed."""
    epochs: int = 12
    """Of each training."""
    gate: GateConfig = field(default_factory=GateConfig)
    """As it is."""
    world: WorldConfig = field(
        default_factory=lambda: WorldConfig(
            users=1_000, ads=200, campaigns=40, advertisers=10, base_click_probability=0.05, refreshed_ads=0.0
        )
    )
    """Small, so that a few thousand impressions teach something."""
    funnel: FunnelConfig = field(default_factory=lambda: FunnelConfig(early_keep=4, late_keep=4, slots=2))
    """The early stage, the ranker that is learned, decides most."""


@dataclass(frozen=True)
class ClosedLoopResult:
    """One seed. values: true value a request by version, "random" first. verdicts: one line a round. bad: that of the bad model.
    in_force: the version that serves at the end, by number."""

    values: Mapping[str, float]
    promoted: tuple[bool, ...]
    verdicts: tuple[str, ...]
    bad_promoted: bool
    bad: str
    in_force: str


def run_seed(config: ClosedLoopConfig, folder: Path, seed: int) -> ClosedLoopResult:
    """One world from its first version to its last, in a new folder; training runs go to ``rayrec.registry.runs_folder()``."""
    blocks = config.random_blocks + sum(config.round_blocks) + config.judged_blocks
    simulation = SimulationConfig(
        seed=seed, requests=blocks * REQUESTS_PER_BLOCK, world=config.world, funnel=config.funnel
    )
    service = _Service(simulation, folder, config)
    name, values = f"closed-loop-{seed}", {"random": service.value(service.at_random)}
    service.serve(range(config.random_blocks), service.at_random, "random")
    reference, registry = f"models:/{name}@serving", Tracker()
    logs = join(service.decisions, service.feedback, folder / "first", JoinConfig(_WINDOW_MS / 1000), service.now_ms)
    first = fit(f"{name}-first", service.experiment(logs.labeled.path), options=_HERE, in_process=True)
    registry.register(first.mlflow_run, name)
    values["first"] = service.value(service.ranked_by(first.bundle))
    begin, promoted, verdicts = config.random_blocks, [], []
    result = None
    for number, count in enumerate(config.round_blocks, 1):
        resolved = registry.resolve(reference)
        service.serve(range(begin, begin + count), service.ranked_by(resolved.path), resolved.version)
        begin += count
        command = CloseTheLoop(
            service.decisions,
            service.feedback,
            reference,
            f"{name}-round-{number}",
            join=JoinConfig(_WINDOW_MS / 1000),
            gate=config.gate,
            running=_HERE,
            in_process=True,
        )
        result = close_the_loop(command, service.now_ms)
        promoted.append(result.verdict.promote)
        verdicts.append(result.verdict.line)
        values[f"round {number}"] = service.value(service.ranked_by(registry.resolve(reference).path))
    newest = join(service.decisions, service.feedback, folder / "newest", JoinConfig(_WINDOW_MS / 1000), service.now_ms)
    shuffled = shuffled_labels(newest.labeled, folder / "shuffled", seed)
    bad = fit(f"{name}-bad", service.experiment(shuffled.path), options=_HERE, in_process=True)
    version = registry.version_of(reference)[1]
    refused = gate_and_promote(bad, reference, version, newest.labeled, "click", config.gate)
    values["bad"] = service.value(service.ranked_by(bad.bundle))
    return ClosedLoopResult(
        values,
        tuple(promoted),
        tuple(verdicts),
        refused.verdict.promote,
        refused.verdict.line,
        registry.version_of(reference)[1],
    )


def shuffled_labels(log: Log, folder: Path, seed: int) -> Log:
    """The same rows; in train and valid, labels are those of other rows."""
    generator, labels = np.random.default_rng(seed), [task.column for task in log.schema.tasks]
    with LogWriter(folder, log.schema) as writer:
        for split in log.splits:
            table = pq.read_table(list(log.files(split)), columns=writer.arrow_schema.names)
            if split != "test":
                other = table.take(generator.permutation(len(table)))
                for column in labels:
                    table = table.set_column(table.column_names.index(column), column, other.column(column))
            writer.write(split, table)
        writer.finish({"importer": "closed_loop"})
    return Log.open(folder)


class _Service:
    """The world, and what a service writes: decisions and feedback."""

    def __init__(self, simulation: SimulationConfig, folder: Path, config: ClosedLoopConfig) -> None:
        self.simulator, self.config, self.folder = Simulator(simulation), config, folder
        known = range(config.random_blocks)
        full = fit_schema(simulation, (self.simulator.block(number) for number in known))
        self.encoder, self.schema = RowEncoder(full, simulation), replace(student_schema(full), timestamp="timestamp")
        self.decisions, self.feedback = folder / "decisions", folder / "feedback"
        self.now_ms = 0

    def experiment(self, log: Path) -> RankerExperiment:
        return RankerExperiment(
            log,
            ignored_features=("user",),
            tasks=("click",),
            ranking=RankingConfig(
                architecture=RankerArchitecture(embedding_dim=4, interaction="none", trunk=(16,), tower=())
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2, embedding_learning_rate=1e-2),
            loop=LoopConfig(epochs=self.config.epochs, patience=None, schedule="linear"),
            stream=StreamConfig(batch_size=64),
        )

    def at_random(self, block: Block) -> NDArray[np.float32]:
        return np.random.default_rng(block.first_request).random(block.stage.shape, dtype=np.float32)

    def ranked_by(self, bundle: Path) -> Scores:
        return _Ranker(bundle, self).scores

    def value(self, scores: Scores) -> float:
        """True value a request, of the requests that no version is trained on."""
        found = []
        for number in range(self.simulator.blocks - self.config.judged_blocks, self.simulator.blocks):
            block = self.simulator.block(number)
            shown = run_funnel(scores(block), block.late_score, block.bid, self.config.funnel) == IMPRESSION
            found.append((block.bid * block.click_probability * shown).sum(1))
        return float(np.concatenate(found).mean())

    def serve(self, numbers: range, scores: Scores, version: str) -> None:
        """Answer the requests of some blocks, and give the feedback of those who clicked, half a window later."""
        with DecisionLog(self.decisions, self.schema, (_EARLY,), roll_rows=REQUESTS_PER_BLOCK * 40) as decisions:
            for number in numbers:
                block = self.simulator.block(number)
                early = scores(block)
                stage = run_funnel(early, block.late_score, block.bid, self.config.funnel)
                decisions.append(self._decided(block, early, stage, version))
                shown = ShownItems(2 * _WINDOW_MS)
                for request, time_s in enumerate(block.requests.timestamp):
                    shown.add(_request(block, request), int(time_s) * 1000, _items(block, request))
                tasks = self.schema.task_names
                with FeedbackLog(self.feedback, tasks, shown.time_of, window_ms=_WINDOW_MS, now_ms=self.now_ms) as log:
                    for request, place in np.argwhere((stage == IMPRESSION) & block.click).tolist():
                        labels = {"click": 1.0, "conversion": float(block.conversion[request, place])}
                        item = _items(block, request)[place]
                        time_ms = int(block.requests.timestamp[request]) * 1000 + _WINDOW_MS // 2
                        outcome = log.accept(Feedback(_request(block, request), item, labels), time_ms)
                        assert outcome is Outcome.ACCEPTED, outcome
                self.now_ms = int(block.requests.timestamp.max()) * 1000 + _WINDOW_MS

    def _decided(
        self, block: Block, early: NDArray[np.float32], stage: NDArray[np.int8], version: str
    ) -> list[LoggedDecision]:
        features, pool = self.features(block), stage.shape[1]
        place = np.where(stage == IMPRESSION, np.cumsum(stage == IMPRESSION, axis=1) - 1, -1)
        return [
            LoggedDecision(
                request=_request(block, r),
                time_ms=int(block.requests.timestamp[r]) * 1000,
                user=f"user-{block.requests.user[r]}",
                arm="all",
                models={_EARLY: version},
                items=_items(block, r),
                stages=[STAGES[code] for code in stage[r]],
                position=place[r],
                scores={_EARLY: early[r]},
                features=features.slice(r * pool, pool),
            )
            for r in range(len(stage))
        ]

    def features(self, block: Block) -> pa.Table:
        """(R * P) rows of what the ranker may see."""
        table = self.encoder.table(block, np.arange(block.stage.size), labels=False)
        return table.select([feature.name for feature in self.schema.features])


class _Ranker:
    """A bundle that scores blocks."""

    def __init__(self, bundle: Path, service: _Service) -> None:
        self._bundle, self._service = load_bundle(bundle), service

    def scores(self, block: Block) -> NDArray[np.float32]:
        schema: LogSchema = self._bundle.schema
        batch = collate(self._service.features(block), schema, labels=False)
        with torch.no_grad():
            logits = self._bundle.model(batch)[:, schema.task_names.index("click")]
        return logits.sigmoid().numpy().reshape(block.stage.shape)


def _request(block: Block, request: int) -> str:
    return f"request-{block.first_request + request}"


def _items(block: Block, request: int) -> list[str]:
    return [f"ad-{ad}" for ad in block.candidates.ad[request]]


def run_study(config: ClosedLoopConfig, folder: Path, seeds: Sequence[int]) -> dict[int, ClosedLoopResult]:
    """Seeds that are not done yet are run; a seed that was cut short needs its folder and its runs removed.

    Raises ConfigError when the folder holds results of another config.
    """
    hold_to_options(folder / "options.json", to_plain(config), "seed-*")
    results = {}
    for seed in seeds:
        file = folder / f"seed-{seed}.json"
        if not file.is_file():
            write_text_atomically(file, to_json(run_seed(config, folder / f"seed-{seed}", seed)))
        results[seed] = from_json(ClosedLoopResult, file.read_bytes(), str(file))
    return results


def lines(results: Mapping[int, ClosedLoopResult]) -> list[str]:
    """Values by version with the difference from the version before it: a t interval over seeds."""
    every = list(results.values())
    versions, told_lines = [name for name in every[0].values if name != "bad"], []
    for before, name in zip([None, *versions], [*versions, "bad"], strict=False):
        values = [result.values[name] for result in every]
        line = f"{name:<10} {np.mean(values):.5f}"
        reference = versions[-1] if name == "bad" else before
        if reference is not None:
            found = paired_difference(values, [result.values[reference] for result in every])
            line += f"  minus {reference}: {found.mean:+.5f} [{found.low:+.5f}, {found.high:+.5f}]"
            line += f", above it in {found.count - found.below} of {found.count}"
        told_lines.append(line)
    rounds = zip(*(result.promoted for result in every), strict=True)
    told_lines += [f"round {i}: promoted in {sum(p)} of {len(p)}" for i, p in enumerate(rounds, 1)]
    told_lines.append(f"bad model: promoted in {sum(result.bad_promoted for result in every)} of {len(every)}")
    return told_lines


@dataclass(frozen=True)
class ClosedLoopStudy:
    """Two rounds of the loop on simulated worlds."""

    folder: tyro.conf.Positional[Path]
    """Where worlds, logs and results go."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One world each."""
    config: Annotated[ClosedLoopConfig, tyro.conf.arg(name="")] = field(default_factory=ClosedLoopConfig)
    """Of the worlds and the rounds."""


def main() -> None:
    torch.set_num_threads(1)
    with told():
        command = tyro.cli(ClosedLoopStudy, description=__doc__)
        results = run_study(command.config, command.folder, command.seeds)
        print("\n".join(lines(results)))
        for seed, result in results.items():
            print(*(f"seed {seed}: {line}" for line in (*result.verdicts, result.bad)), sep="\n")


if __name__ == "__main__":
    main()
