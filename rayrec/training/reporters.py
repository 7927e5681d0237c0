"""Where a worker loop sends its checkpoints and metrics: a folder, Ray Train, or Ray Tune."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rayrec.files import scratch_folder, whole_folder
from rayrec.training.checkpoint import read_progress

if TYPE_CHECKING:
    import ray.train

CheckpointWriter = Callable[[Path], None]
KEPT_CHECKPOINTS = 2


class Reporter(Protocol):
    """Every worker calls ``report`` at the same steps; ``write`` fills the folder of a checkpoint."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None when training is fresh."""
        ...

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None: ...


class FolderReporter:
    """Checkpoints in ``<folder>/checkpoint-<n>``, the last two kept; each appears by a rename.

    start: a checkpoint of other names, of a run that was begun under Ray Train.
    """

    def __init__(self, folder: Path, start: Path | None = None) -> None:
        self.folder, self.start = folder, start
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> Path | None:
        return _further(max(self._checkpoints(), default=None), self.start)

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        newest = max(self._checkpoints(), default=None)
        number = 0 if newest is None else int(newest.name.rpartition("-")[2]) + 1
        with whole_folder(self.folder / f"checkpoint-{number:06d}") as partial:
            write(partial)
        for old in sorted(self._checkpoints())[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if path.is_dir()]


class RayTrainReporter:
    """Inside a Ray Train worker: checkpoints go to the run's storage; a restarted worker group finds the newest.

    start: a checkpoint that Ray Train does not know, of a run that was begun in process.
    """

    def __init__(self, start: Path | None = None) -> None:
        self.start = start

    def latest(self) -> Path | None:
        import ray.train  # seconds of imports, which a run in process does without

        return _further(_folder_of(ray.train.get_checkpoint()), self.start)

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        import ray.train

        with scratch_folder("rayrec-checkpoint") as folder:
            write(folder)
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _folder_of(checkpoint: "ray.train.Checkpoint | None") -> Path | None:
    """Where it lies in the run's folder: ``to_directory`` would leave a copy in the temporary folder at each restart."""
    return None if checkpoint is None else Path(checkpoint.path)


def _further(own: Path | None, start: Path | None) -> Path | None:
    """Which of two checkpoints has more steps, if there is any; the own one of as many."""
    if start is None or not start.is_dir():
        return own
    return start if own is None or read_progress(start).step > read_progress(own).step else own


class RayTuneReporter:
    """Inside a Tune trial that runs the loop itself: each evaluation reaches the scheduler, with a checkpoint."""

    def latest(self) -> Path | None:
        import ray.tune

        return _folder_of(ray.tune.get_checkpoint())

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        import ray.tune

        with scratch_folder("rayrec-checkpoint") as folder:
            write(folder)
            ray.tune.report(dict(metrics), checkpoint=ray.tune.Checkpoint.from_directory(folder))
