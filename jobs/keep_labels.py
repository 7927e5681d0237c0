"""Take most labels of a log away: python -m jobs.keep_labels --log LOG --share 0.05 --out FOLDER.

FOLDER/labeled keeps that share of the training rows (and all rows of the other splits), FOLDER/unlabeled has the rest without
labels: for --log and --unlabeled of a training run.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from rayrec.data.log import Log
from rayrec.data.log.scarce_labels import keep_labels
from rayrec.errors import told


@dataclass(frozen=True)
class KeepLabels:
    """share: of the training rows that keep their labels. seed: of the draw."""

    log: Path
    share: float
    out: Path
    seed: int = 0


def run(command: KeepLabels) -> None:
    kept, others = keep_labels(Log.open(command.log), command.share, command.out.resolve(), seed=command.seed)
    print(f"{kept:,} labeled rows in {command.out / 'labeled'}, {others:,} in {command.out / 'unlabeled'}")


def main() -> None:
    with told():
        run(tyro.cli(KeepLabels, description=__doc__))


if __name__ == "__main__":
    main()
