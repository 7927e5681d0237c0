"""Errors that end a run under Ray Train at once, instead of four attempts of a minute each.

Ray Train starts its workers again after any error. A worker whose error no attempt can change leaves a note in the run's folder;
alone it then returns as if it were done, while one of several fails, so that none waits for it, and those that are started again
find the note and return. The driver raises what it says.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path

from rayrec.errors import UserError, disk_trouble
from rayrec.files import write_text_atomically
from rayrec.training.checkpoint import read_progress
from rayrec.typed_json import from_json, to_json


@dataclass(frozen=True)
class Ending:
    """A worker's error. step: of the checkpoint before it. line: for a user's error, that line. ends: whether it ends the run."""

    step: int
    kind: str
    text: str
    line: str | None
    ends: bool


def ends_run(folder: Path, rank: int, error: Exception, checkpoint: Path | None) -> bool:
    """Note a worker's error. True when the run ends: the user must mend it, or it came from the same checkpoint before."""
    line = _user_line(error)
    note = _note(folder, rank)
    step = 0 if checkpoint is None else read_progress(checkpoint).step
    text = "".join(traceback.format_exception(error))
    ending = Ending(step, type(error).__name__, text, line, ends=line is not None)
    if line is None and note.is_file():
        before = from_json(Ending, note.read_bytes(), str(note))
        same = (before.step, before.kind, before.text.splitlines()[-1:]) == (step, ending.kind, text.splitlines()[-1:])
        ending = Ending(step, ending.kind, text, None, ends=same)
    write_text_atomically(note, to_json(ending))
    return ending.ends


def clear_endings(folder: Path) -> None:
    """Before a run is begun or goes on: what was wrong may have been mended."""
    for note in folder.glob(".ending-*.json"):
        note.unlink()


def has_ended(folder: Path) -> bool:
    """Whether a note ends the run: there is nothing to try again."""
    return bool(_endings(folder))


def raise_ending(folder: Path) -> None:
    """Raise what ended the run, if a note says so."""
    endings = _endings(folder)
    for ending in endings:
        if ending.line is not None:
            raise UserError(ending.line)
    for ending in endings:
        raise RuntimeError(f"the same error came twice from step {ending.step:,}:\n{ending.text}")


def _user_line(error: BaseException) -> str | None:
    cause = getattr(error, "cause", None)  # an error of a Ray task
    for one in (error, cause):
        if isinstance(one, UserError):
            return str(one).strip().splitlines()[-1] if one is error and cause is not None else str(one)
    return disk_trouble(error)


def _endings(folder: Path) -> list[Ending]:
    found = [from_json(Ending, note.read_bytes(), str(note)) for note in sorted(folder.glob(".ending-*.json"))]
    return [ending for ending in found if ending.ends]


def _note(folder: Path, rank: int) -> Path:
    return folder / f".ending-{rank}.json"
