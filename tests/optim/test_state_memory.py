"""Predicted bytes are the bytes that a live optimizer has, for every optimizer and kind of parameter."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim import OptimizerConfig, OptimizerName, ProjectionConfig, build_optimizer
from rayrec.optim.state_memory import measured_memory, predicted_memory, step_once


class Mixed(nn.Module):
    """Matrices of both orientations, a stack of matrices, a convolution, vectors, a table, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.wide, self.tall = nn.Linear(48, 16), nn.Linear(16, 40, bias=False)
        self.towers = nn.Parameter(torch.zeros(3, 16, 10))
        self.convolution = nn.Conv1d(8, 12, 3)
        self.head = nn.Linear(16, 2)


def live_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Counted from the state dict, independently of groups."""

    def count(value: object) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list | tuple) else 0

    return count(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("embeddings", ["adamw", "rowwise_adagrad"])
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_prediction_on_the_meta_device_equals_the_live_state(
    name: OptimizerName, embeddings: Literal["adamw", "rowwise_adagrad"], dtype: torch.dtype
) -> None:
    config = OptimizerConfig(optimizer=name, embeddings=embeddings, projection=ProjectionConfig(rank_share=0.3))
    with torch.device("meta"):
        planned = Mixed().to(dtype)
        predicted = predicted_memory(planned, build_optimizer(planned, config))
    model = Mixed().to(dtype)
    optimizer = build_optimizer(model, config)
    step_once(model, optimizer)
    measured = measured_memory(model, optimizer)
    assert [g.state_bytes for g in predicted.groups] == [g.state_bytes for g in measured.groups]
    assert predicted.state_bytes == live_bytes(optimizer)
    assert predicted.projection_bytes == measured.projection_bytes
    assert predicted.parameter_bytes == sum(p.nbytes for p in model.parameters())
    dense = [g.gradient_bytes for g in measured.groups if g.kind != "rowwise_adagrad"]
    assert dense == [g.gradient_bytes for g in predicted.groups if g.kind != "rowwise_adagrad"]


def test_an_unknown_optimizer_is_refused() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(TypeError, match="SGD"):
        predicted_memory(model, torch.optim.SGD(model.parameters()))
