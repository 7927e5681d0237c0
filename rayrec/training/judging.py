"""A trained model on a stream, outside of training: the same evaluation as in the worker loop, in one process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from rayrec.training.task import AnyBatch, LeftOut, Task

B = TypeVar("B", bound=AnyBatch)


@dataclass(frozen=True)
class Judged:
    """How a model came out, judged in one way: the record of everything that is judged outside of training.

    split: what it was judged on, "test" or a name of its own for other data. metrics: by what is judged and name, as
    ``Task.summarize`` gives them. left_out: the same without each group of users or rows, where that is known.
    costs: what answering so takes, by name and unit ("ms a user").
    """

    split: str
    metrics: Mapping[str, Mapping[str, float | None]]
    left_out: LeftOut = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def judge_stream(task: Task[B], model: nn.Module, batches: Iterable[B]) -> dict[str, dict[str, float | None]]:
    """Metric values by the name of what is judged, as ``task.summarize`` gives them; ``model`` is put into evaluation mode."""
    model.eval()
    evaluation = task.new_evaluation()
    for batch in batches:
        task.observe(evaluation, task.predict(model, batch), batch)
    return task.summarize(evaluation)
