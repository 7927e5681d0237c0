"""What Ray Tune goes on from, kept as one set: Tune copies its files into the sweep one by one and in place, so that a full disk
or a killed sweep leaves half of them.

<sweep>/trials/*        Tune's folder: one a trial, and files of trials, search and callbacks that may be of different moments
<sweep>/kept_state/*    those files as Tune last wrote them in its temporary folder, all of one moment: what is gone on from
"""

import shutil
from pathlib import Path
from typing import Any

import ray.tune

from rayrec.errors import DiskError, UserError, disk_trouble
from rayrec.files import raise_disk_error, whole_folder

KEPT = "kept_state"
_TUNER = "tuner.pkl"  # written once, before the first trial, straight into the sweep
_TRIALS = "experiment_state-"  # then the time at which the sweep was begun or gone on with, as in the names of the other files


class KeepAndShow(ray.tune.Callback):
    """Keeps Tune's state at each step that changed it, and shows one line a finished trial. A disk that refuses ends the sweep at
    once, not each of its trials."""

    def __init__(self, trials: int) -> None:
        self.trials, self.done = trials, 0
        self._seen: dict[str, int] = {}
        self._trouble: str | None = (
            None  # raised at the end of the step: Tune takes what on_trial_error raises for the trial's
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raises DiskError."""
        if self._trouble is not None:
            raise DiskError(self._trouble)
        if trials:
            self._seen = keep(
                Path(trials[0].storage.experiment_driver_staging_path), _folder(trials[0]) / "trials", self._seen
            )

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.on_step_end(0, trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trial, f"{trial.last_result.get('objective', float('nan')):.5f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        self._trouble = disk_trouble(RuntimeError(text), _folder(trial))
        if self._trouble is None:
            self._show(trial, f"failed: {(text.strip().splitlines() or ['?'])[-1]:.200}")

    def _show(self, trial: Any, outcome: str) -> None:
        self.done += 1
        evaluations = trial.last_result.get("evaluations", 0)
        print(
            f"trial {self.done} of {self.trials} ({trial.trial_id}): {outcome}, {evaluations} evaluations", flush=True
        )


def keep(written: Path, storage: Path, seen: dict[str, int]) -> dict[str, int]:
    """Copy Tune's state out of its temporary folder ``written`` if it is not as ``seen``: times of change by name, as returned.

    storage: Tune's folder of the sweep. Raises DiskError when the disk is full, read-only or closed; what was kept stays.
    """
    session = max((file.stem.removeprefix(_TRIALS) for file in written.glob(f"{_TRIALS}*.json")), default=None)
    files = [file for file in _files(written) if session is not None and file.stem.endswith(session)]
    now = {file.name: file.stat().st_mtime_ns for file in files}
    if now != seen:
        with whole_folder(storage.with_name(KEPT), _TUNER) as partial:
            for file in [storage / _TUNER, *files]:
                shutil.copyfile(file, partial / file.name)
    return now


def put_back(storage: Path) -> bool:
    """Put the kept state in place of all that Tune's folder ``storage`` holds of it; whether there is one to go on from.

    Without one no trial had begun: the folder is emptied. Raises UserError when trials are there that nothing kept tells of, and
    DiskError; what was kept stays.
    """
    kept = _files(storage.with_name(KEPT))
    if not kept and any(storage.glob("*/checkpoint_*")):
        raise UserError(
            f"{storage} holds trials, but what the sweep goes on from ({storage.with_name(KEPT)}) is not there; "
            "choose another name or remove the sweep's folder"
        )
    try:
        for file in _files(storage):
            file.unlink()
        for file in kept:
            shutil.copyfile(file, storage / file.name)
    except OSError as error:
        raise_disk_error(error, storage / _TUNER)
        raise
    return bool(kept)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in (".json", ".pkl") and file.is_file())


def _folder(trial: Any) -> Path:
    """The sweep's."""
    return Path(trial.storage.experiment_fs_path).parent
