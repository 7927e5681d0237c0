"""Further evaluations of a comparison's trained models: by another method, with another width, on other data.

    <trial>/bundle         the trained model, kept where further evaluations ask for it
    <trial>/further.json   what was asked, and how the model came out in each way

Something else that is asked later is answered from the bundle: a model is never trained again to be judged again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rayrec.families.table import AnyExperiment
from rayrec.files import write_text_atomically
from rayrec.freed_memory import freed_memory_kept
from rayrec.training.judging import Judged
from rayrec.typed_json import ConfigError, from_json, to_json, to_plain


class FurtherEvaluation(Protocol):
    """A frozen dataclass, whose name and fields say what is asked."""

    def check(self, experiment: Any) -> None:
        """Before anything is trained. Raises ValueErrors of what cannot be asked of the model of this experiment."""
        ...

    def judge_each(self, bundle: Path) -> Mapping[str, Judged]:
        """By name of the way, which stands behind that of the arm in reports; "" adds to what the arm's own evaluation told."""
        ...


@dataclass(frozen=True)
class FurtherRecord:
    """What ``further.json`` holds. asked: name and fields of the evaluation."""

    asked: Mapping[str, Any]
    found: Mapping[str, Judged]


def check_further(wanted: FurtherEvaluation | None, arm: str, experiment: AnyExperiment) -> None:
    """Raises ConfigError that names the arm whose model could not be judged as wanted."""
    if wanted is None:
        return
    try:
        wanted.check(experiment)
    except ValueError as error:
        raise ConfigError(f"arm {arm} cannot be judged further: {error}") from error


def bundle_folder(trial: Path) -> Path:
    return trial / "bundle"


def read_further(trial: Path, wanted: FurtherEvaluation) -> Mapping[str, Judged] | None:
    """What is known of a trial's model, or None where just this was not asked of it yet."""
    file = trial / "further.json"
    if not file.is_file():
        return None
    record = from_json(FurtherRecord, file.read_bytes(), str(file))
    return record.found if record.asked == _asked(wanted) else None


def judge_further(trial: Path, wanted: FurtherEvaluation) -> Mapping[str, Judged]:
    """As it is known, or judged now and written down."""
    known = read_further(trial, wanted)
    if known is not None:
        return known
    with freed_memory_kept():
        record = FurtherRecord(_asked(wanted), wanted.judge_each(bundle_folder(trial)))
    write_text_atomically(trial / "further.json", to_json(record))
    return record.found


def _asked(wanted: FurtherEvaluation) -> dict[str, Any]:
    return {"evaluation": type(wanted).__name__, **to_plain(wanted)}
