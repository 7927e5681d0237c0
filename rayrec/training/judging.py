"""A trained model on a stream, outside of training: the same evaluation as in the worker loop, in one process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from rayrec.training.task import AnyBatch, LeftOut, Summary, Task

B = TypeVar("B", bound=AnyBatch)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Judged:
    """How a model came out, judged in one way: the record of everything that is judged outside of training.

    split: what it was judged on, "test" or a name of its own for other data. metrics: by what is judged and name, as
    ``Evaluation.summarize`` gives them. left_out: the same without each group of users or rows, where that is known.
    costs: what answering so takes, by name and unit ("ms a user").
    """

    split: str
    metrics: Mapping[str, Mapping[str, float | None]]
    left_out: LeftOut = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def judge_stream(task: Task[B, M], model: M, batches: Iterable[B]) -> Summary:
    """What the task's evaluation says of the model on all batches; ``model``, a module, is put into evaluation mode."""
    model.eval()
    evaluation = task.evaluation()
    for batch in batches:
        evaluation.update(task.predict(model, batch), batch)
    return evaluation.summarize()
