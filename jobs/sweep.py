"""Sweep a space of experiments: python -m jobs.sweep ranker --space lspr --name NAME --base.log LOG --trials 12.

Running the same command again goes on where a killed sweep stopped.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jobs.command_line import read_one_of
from jobs.train import by_family, print_result
from rayrec.errors import told
from rayrec.families.table import family_of
from rayrec.reporting.page import Table, text_table
from rayrec.runs.sweep_trial import ranked
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, sweep
from rayrec.training.experiment import Experiment
from rayrec.training.tracking import Tracker
from tune_spaces import find_space

E = TypeVar("E", bound=Experiment)


@dataclass(frozen=True)
class Sweep(Generic[E]):
    """Sweep models of one family."""

    name: str
    """The sweep's name and folder."""
    config: Annotated[SweepConfig[E], tyro.conf.arg(name="")]
    """What is swept from where, and how many trials."""
    space: str | None = None
    """What is swept, a module of ``tune_spaces`` that is for this family; None = the family's usual one."""
    register: str | None = None
    """Name in the model registry for the winner; its alias "serving" then points to it."""


def run(command: Sweep[Any]) -> FinishedSweep:
    """Run the sweep, register its winner when asked, print the trials."""
    config = replace(command.config, base=command.config.base.absolute())
    space = command.space or family_of(config.base.kind).space
    finished = sweep(command.name, space, find_space(space), config, show)
    if command.register is not None:
        registered = Tracker().register(finished.winner.mlflow_run, command.register)
        print(f"registered: models:/{registered.name}/{registered.version} (alias serving)")
    return finished


def show(finished: FinishedSweep) -> None:
    print_trials(finished)
    print_result(finished.winner)


def print_trials(finished: FinishedSweep) -> None:
    """Every trial, best first."""
    rows = []
    for trial in ranked(finished.trials, finished.mode):
        swept = ", ".join(
            f"{path.rpartition('.')[2]}={format(v, '.4g') if isinstance(v, float) else v}"
            for path, v in trial.parameters.items()
        )
        value = "failed" if trial.objective is None else f"{trial.objective:.5f}"
        mark = "*" if trial.name == finished.winner_trial else ""
        rows.append((f"{value} {mark}", str(trial.evaluations), f"{trial.seconds:.1f}", swept))
    print(text_table(Table((finished.objective_name, "evaluations", "seconds", "parameters"), tuple(rows))))


def main() -> None:
    with told():
        run(read_one_of(by_family(Sweep), description=__doc__))


if __name__ == "__main__":
    main()
