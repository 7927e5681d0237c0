"""Train a model: python -m jobs.train ranker --log LOG --name NAME, or lm --corpus CORPUS --name NAME.

Running the same command again goes on where a killed run stopped. ``repeat`` trains again from the config that an MLflow run
logged.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jobs.command_line import read_one_of
from rayrec.errors import told
from rayrec.families.table import families, read_experiment
from rayrec.reporting.page import Table, number, text_table
from rayrec.runs.fitting import fit
from rayrec.runs.run_folder import FinishedRun
from rayrec.training.checkpoint import metric_names
from rayrec.training.experiment import Experiment, ScalingOptions
from rayrec.training.task import COUNTS
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions

E = TypeVar("E", bound=Experiment)


@dataclass(frozen=True)
class Train(Generic[E]):
    """Train a model of one family."""

    name: str
    """The run's name and folder; running it again resumes it."""
    experiment: Annotated[E, tyro.conf.arg(name="")]
    """What is trained."""
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    """How many workers on what."""
    running: RunOptions = field(default_factory=RunOptions)
    """How it is run, which changes no model: a run may go on with others of these."""
    register: str | None = None
    """Name in the model registry for the trained bundle; its alias "serving" then points to it."""
    in_process: bool = False
    """One worker in this very process, on CPU, without Ray: begins seconds earlier."""

    def wanted(self) -> E:
        return self.experiment


@dataclass(frozen=True)
class Repeat:
    """Train again with the whole config of an earlier MLflow run."""

    run_id: tyro.conf.Positional[str]
    """Of the MLflow run."""
    name: str
    """The new run's name and folder; running it again resumes it."""
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    """How many workers on what."""
    running: RunOptions = field(default_factory=RunOptions)
    """How it is run, which changes no model: a run may go on with others of these."""
    register: str | None = None
    """Name in the model registry for the trained bundle; its alias "serving" then points to it."""
    in_process: bool = False
    """One worker in this very process, on CPU, without Ray."""

    def wanted(self) -> Experiment:
        """Raises ConfigError where the run logged no experiment, or one that cannot be read."""
        return read_experiment(Tracker().config_text(self.run_id), f"run {self.run_id}")


def train(command: Train[Any] | Repeat) -> FinishedRun:
    """Run one command; prints where the results are."""
    finished = fit(
        command.name, command.wanted().absolute(), command.scaling, command.running, in_process=command.in_process
    )
    if command.register is not None:
        registered = Tracker().register(finished.mlflow_run, command.register)
        print(f"registered: models:/{registered.name}/{registered.version} (alias serving)")
    print_result(finished)
    return finished


def print_result(finished: FinishedRun) -> None:
    """The last table a user sees: metrics by split and task, and where everything is."""
    for split, tasks in finished.progress.evaluations.items():
        columns = tuple(name for name in metric_names(tasks) if name not in COUNTS)
        rows = ((task, *(number(metrics.get(name)) for name in columns)) for task, metrics in tasks.items())
        print(text_table(Table((f"{split} split", *columns), tuple(rows))))
    print(f"bundle: {finished.bundle}")
    print(f"report: {finished.report}")
    print(f"MLflow run: {finished.mlflow_run}")


def by_family(command: Any) -> dict[str, Any]:
    """A generic command as one of each family's experiments, by the family's word on command lines; of the one that is asked for
    alone, where the first word says so: a family takes seconds to import."""
    known = families()
    asked = [family for family in known if family.word in sys.argv[1:2]]
    return {family.word: command[family.experiment] for family in asked or known}


def main() -> None:
    with told():
        train(read_one_of({**by_family(Train), "repeat": Repeat}, description=__doc__))


if __name__ == "__main__":
    main()
