"""Take most labels of a log away: python -m jobs.keep_labels --log LOG --share 0.05 --out FOLDER.

FOLDER/labeled keeps that share of the training and validation rows (and all test rows), FOLDER/unlabeled has the rest without
labels: for --log and --unlabeled of a training run. What was made of labels is made again of those that are left, or left out.
"""

from dataclasses import dataclass
from pathlib import Path

from jobs.command_line import read
from rayrec.data.log import Log
from rayrec.data.log.scarce_labels import keep_labels
from rayrec.errors import told


@dataclass(frozen=True)
class KeepLabels:
    """A log with a share of its labels."""

    log: Path
    """Folder of the log."""
    share: float
    """Of the training and validation rows that keep their labels."""
    out: Path
    """Folder of the new log."""
    seed: int = 0
    """Of the draw."""
    whole_validation: bool = False
    """Keep all validation rows with their labels, as if choosing settings cost none."""


def run(command: KeepLabels) -> None:
    log = Log.open(command.log)
    kept, others = keep_labels(
        log, command.share, command.out.resolve(), seed=command.seed, whole_validation=command.whole_validation
    )
    left = {made.column for made in Log.open(command.out / "labeled").schema.made_of_labels}
    for made in log.schema.made_of_labels:
        print(f"{made.column}: made of labels, {'made again of those left' if made.column in left else 'left out'}")
    print(f"{kept:,} labeled rows in {command.out / 'labeled'}, {others:,} in {command.out / 'unlabeled'}")


def main() -> None:
    with told():
        run(read(KeepLabels, description=__doc__))


if __name__ == "__main__":
    main()
