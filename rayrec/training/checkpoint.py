"""A training checkpoint: everything needed to go on as if nothing had happened. Read without pickle.

<checkpoint>/model.safetensors   the weights now
<checkpoint>/best.safetensors    the weights at the best evaluation so far, when they are others
<checkpoint>/methods.safetensors what training methods keep beside the model, when there is anything
<checkpoint>/optimizer.pt        optimizer and schedule (plain tensors and numbers; loaded with weights_only)
<checkpoint>/rng-<rank>.pt       each worker's random state
<checkpoint>/progress.json       position in the data, curves, early stopping
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rayrec.files import write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json


@dataclass(frozen=True)
class CurvePoint:
    """One value of a learning curve. ``task`` is "" for values over all tasks."""

    step: int
    epoch: float
    split: str
    task: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    ``epoch`` and ``step_in_epoch`` are the next batch to read; ``step`` counts updates, ``passes`` evaluations.
    ``left_out``: the final evaluations on the judged rows less one group each, by split (``rayrec.training.task.LeftOut``).
    workers: how many share the rows, without which a place in an epoch means nothing; 0 in checkpoints from before this was kept.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    rows: int = 0
    seconds: float = 0.0
    best_objective: float | None = None
    best_step: int = 0
    passes: int = 0
    evaluations_without_gain: int = 0
    finished: bool = False
    workers: int = 0
    curve: tuple[CurvePoint, ...] = ()
    evaluations: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    calibration: dict[str, dict[str, tuple[tuple[float, float, float], ...]]] = field(default_factory=dict)
    left_out: dict[str, dict[str, dict[str, tuple[float, ...]]]] = field(default_factory=dict)


@dataclass
class TrainingState:
    """The live objects that a checkpoint captures. ``best`` is None while the weights now are the best."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    progress: Progress
    best: dict[str, torch.Tensor] | None = None
    methods: nn.Module = field(default_factory=nn.Module)


def write_checkpoint(folder: Path, state: TrainingState, rank: int) -> None:
    """Rank 0 writes all but the other workers' random states. The caller makes the folder appear at once (rename)."""
    torch.save(_random_state(), folder / f"rng-{rank}.pt")
    if rank != 0:
        return
    save_file(_contiguous(state.model.state_dict()), folder / "model.safetensors")
    if state.best is not None:
        save_file(state.best, folder / "best.safetensors")
    methods = _contiguous(state.methods.state_dict())
    if methods:
        save_file(methods, folder / "methods.safetensors")
    both = {"optimizer": state.optimizer.state_dict(), "schedule": state.schedule.state_dict()}
    torch.save(both, folder / "optimizer.pt")
    write_text_atomically(folder / "progress.json", to_json(state.progress))


def read_checkpoint(folder: Path, state: TrainingState, rank: int) -> None:
    """Put a checkpoint back into live objects, random state included (a rank that was not there before keeps its own)."""
    state.model.load_state_dict(load_file(folder / "model.safetensors"))
    best = folder / "best.safetensors"
    state.best = load_file(best) if best.is_file() else None
    if state.methods.state_dict():
        state.methods.load_state_dict(load_file(folder / "methods.safetensors"))
    both = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    state.optimizer.load_state_dict(both["optimizer"])
    state.schedule.load_state_dict(both["schedule"])
    state.progress = read_progress(folder)
    if (folder / f"rng-{rank}.pt").is_file():
        _set_random_state(torch.load(folder / f"rng-{rank}.pt", weights_only=True))


def read_progress(folder: Path) -> Progress:
    return from_json(Progress, (folder / "progress.json").read_bytes(), str(folder / "progress.json"))


def metric_names(tasks: Mapping[str, Mapping[str, float | None]]) -> tuple[str, ...]:
    """The metrics of a split's tasks, in the order in which they are listed."""
    return tuple(dict.fromkeys(name for metrics in tasks.values() for name in metrics))


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the most steps among a run's, whoever wrote them; None where there is none.

    Ours appear by a rename. Ray Train copies its ``checkpoint_*`` into place, and a killed run may leave half of one: only those
    count that its own list names.
    """
    copied = _copied_by_ray(folder / "checkpoint_manager_snapshot.json")
    whole = [file.parent for file in folder.glob("checkpoint-*/progress.json")]
    whole += [folder / name for name in copied if (folder / name / "progress.json").is_file()]
    steps = {path: read_progress(path) for path in whole}
    return max(steps, key=lambda path: (steps[path].step, steps[path].finished, path.stat().st_mtime_ns), default=None)


def _copied_by_ray(snapshot: Path) -> list[str]:
    """Names of the checkpoints that Ray Train has taken note of, after their copies were whole."""
    try:
        return [result["checkpoint_dir_name"] for result in json.loads(snapshot.read_text())["checkpoint_results"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{snapshot}: was cut short ({error}); remove it to go on without the checkpoints it named"
        ) from None


def best_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that early stopping chose."""
    best = folder / "best.safetensors"
    return load_file(best if best.is_file() else folder / "model.safetensors")


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _contiguous(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # to ask for it would begin a context, in runs on a CPU too
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
