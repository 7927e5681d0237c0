"""Score a log with a trained bundle: python -m jobs.score_log --bundle BUNDLE --log LOG --out SCORED.

The new log holds the same rows with the model's probabilities as more columns (``teacher_<task>``), for distillation, feature
selection or analysis. Running the same command again goes on where a killed job stopped.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.command_line import read
from rayrec.data.log import Log
from rayrec.errors import told
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.runs.cluster import connect


@dataclass(frozen=True)
class ScoreLog:
    """Score every row of a log."""

    config: Annotated[ScoringConfig, tyro.conf.arg(name="")]
    """What is scored by which bundle."""
    workers: int = 1
    """Actors that score side by side, one CPU each; 0 = in this process, without Ray."""


def run(command: ScoreLog) -> Log:
    """Score; prints each finished file and where the log is."""
    if command.workers:
        connect()
    log = score_log(command.config, workers=command.workers, say=lambda text: print(text, flush=True))
    rows = ", ".join(f"{split} {log.rows(split):,}" for split in log.splits)
    print(f"scored log: {log.path} (rows: {rows}; columns: {', '.join(log.schema.extras)})")
    return log


def main() -> None:
    with told():
        run(read(ScoreLog, description=__doc__))


if __name__ == "__main__":
    main()
