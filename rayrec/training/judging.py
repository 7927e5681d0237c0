"""A trained model on a stream, outside of training: the same evaluation as in the worker loop, in one process."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from rayrec.training.task import AnyBatch, Task

B = TypeVar("B", bound=AnyBatch)


@torch.no_grad()
def judge_stream(task: Task[B], model: nn.Module, batches: Iterable[B]) -> dict[str, dict[str, float | None]]:
    """Metric values by the name of what is judged, as ``task.summarize`` gives them; ``model`` is put into evaluation mode."""
    model.eval()
    evaluation = task.new_evaluation()
    for batch in batches:
        task.observe(evaluation, task.predict(model, batch), batch)
    return task.summarize(evaluation)
