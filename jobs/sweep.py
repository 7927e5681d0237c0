"""Sweep a space of experiments: python -m jobs.sweep ranker --space lspr --name NAME --base.log LOG --trials 12.

Running the same command again goes on where a killed sweep stopped.
"""

import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

import tune_spaces.apollo
import tune_spaces.language_model
import tune_spaces.liger
import tune_spaces.lspr
import tune_spaces.multibalance
import tune_spaces.ranker
import tune_spaces.sasrec
import tune_spaces.scr
import tune_spaces.task_weights
import tune_spaces.tiger
import tune_spaces.ukdsl
from jobs.train import print_result
from rayrec.bundle import BundleError
from rayrec.data.log import LogError
from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.table import AnyExperiment
from rayrec.runs.sweep_trial import ranked
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, SweepFailed, SweepSpace, sweep
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError

RankerSpace = Literal["ranker", "lspr", "scr", "multibalance", "task_weights", "apollo", "ukdsl"]


@dataclass(frozen=True)
class SweepRanker:
    """Sweep a ranker.

    name: the sweep's name and folder. space: what is swept, a module of ``tune_spaces``.
    register: name in the model registry for the winner; its alias "serving" then points to it.
    """

    name: str
    config: Annotated[SweepConfig[RankerExperiment], tyro.conf.arg(name="")]
    space: RankerSpace = "ranker"
    register: str | None = None

    def parameters(self) -> SweepSpace:
        match self.space:
            case "ranker":
                return tune_spaces.ranker.SPACE
            case "lspr":
                return tune_spaces.lspr.SPACE
            case "scr":
                return tune_spaces.scr.SPACE
            case "multibalance":
                return tune_spaces.multibalance.SPACE
            case "apollo":
                return tune_spaces.apollo.SPACE
            case "ukdsl":
                return tune_spaces.ukdsl.SPACE
            case "task_weights":
                return tune_spaces.task_weights.space(self.config.base.task().schema.task_names)


@dataclass(frozen=True)
class SweepLanguageModel:
    """Sweep a language model.

    name: the sweep's name and folder. space: what is swept, a module of ``tune_spaces``.
    register: name in the model registry for the winner; its alias "serving" then points to it.
    """

    name: str
    config: Annotated[SweepConfig[LanguageModelExperiment], tyro.conf.arg(name="")]
    space: Literal["language_model", "apollo"] = "language_model"
    register: str | None = None

    def parameters(self) -> SweepSpace:
        match self.space:
            case "language_model":
                return tune_spaces.language_model.SPACE
            case "apollo":
                return tune_spaces.apollo.SPACE


@dataclass(frozen=True)
class SweepRetriever:
    """Sweep a retriever.

    name: the sweep's name and folder. space: what is swept, a module of ``tune_spaces``; it also sets the model.
    register: name in the model registry for the winner; its alias "serving" then points to it.
    """

    name: str
    config: Annotated[SweepConfig[RetrieverExperiment], tyro.conf.arg(name="")]
    space: Literal["sasrec", "tiger", "liger"] = "sasrec"
    register: str | None = None

    def parameters(self) -> SweepSpace:
        match self.space:
            case "sasrec":
                return tune_spaces.sasrec.SPACE
            case "tiger":
                return tune_spaces.tiger.SPACE
            case "liger":
                return tune_spaces.liger.SPACE


def run(command: SweepRanker | SweepLanguageModel | SweepRetriever) -> FinishedSweep:
    """Run the sweep, register its winner when asked, print the trials."""
    config: SweepConfig[AnyExperiment] = command.config
    config = replace(config, base=config.base.absolute())
    finished = sweep(command.name, command.space, command.parameters(), config)
    if command.register is not None:
        registered = Tracker().register(finished.winner.mlflow_run, command.register)
        print(f"registered: models:/{registered.name}/{registered.version} (alias serving)")
    print_trials(finished)
    print_result(finished.winner)
    return finished


def print_trials(finished: FinishedSweep) -> None:
    """Every trial, best first."""
    print(f"{finished.objective_name:>30}  evaluations  seconds  parameters")
    for trial in ranked(finished.trials, finished.mode):
        value = "failed" if trial.objective is None else f"{trial.objective:.5f}"
        swept = ", ".join(
            f"{path.rpartition('.')[2]}={v:.4g}" if isinstance(v, float) else f"{path.rpartition('.')[2]}={v}"
            for path, v in trial.parameters.items()
        )
        mark = " *" if trial.name == finished.winner_trial else ""
        print(f"{value:>30}  {trial.evaluations:>11}  {trial.seconds:>7.1f}  {swept}{mark}")


def main() -> None:
    try:
        run(
            tyro.extras.subcommand_cli_from_dict(
                {"ranker": SweepRanker, "lm": SweepLanguageModel, "retriever": SweepRetriever}, description=__doc__
            )
        )
    except (BundleError, ConfigError, LogError, SweepFailed) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
