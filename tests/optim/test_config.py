"""From an optimizer's config to an optimizer that trains."""

import io
import math
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rayrec.optim import MuonConfig, OptimizerConfig, OptimizerName, ProjectionConfig, build_optimizer
from rayrec.optim.apollo import Apollo
from rayrec.typed_json import ConfigError

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))


class WithStack(nn.Module):
    """A table, a vector, a matrix, a narrow one, a stack of matrices, a convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide, self.narrow = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 7, bias=False)
        self.towers, self.convolution = nn.Parameter(torch.ones(3, 16, 10)), nn.Conv1d(8, 12, 3, bias=False)
        self.head = nn.Linear(16, 24, bias=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.randint(0, 20, (64,), generator=torch.Generator().manual_seed(step))
        loss = (model(ids).squeeze(1) - (ids % 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("embeddings", ["rowwise_adagrad", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_every_parameter_and_resumes_bit_for_bit(name: OptimizerName, embeddings: Any) -> None:
    config = OptimizerConfig(
        optimizer=name,
        learning_rate=0.01,
        matrix_learning_rate=0.02,
        embeddings=embeddings,
        projection=ProjectionConfig(period=7, rank_share=0.5),
    )
    weights: list[dict[str, torch.Tensor]] = []
    for interrupted in (False, True):
        model = make_model()
        start = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = build_optimizer(model, config)
        schedule = LambdaLR(optimizer, lambda step: 1.0 - step / 100)
        losses = train(model, optimizer, schedule, range(25))
        if interrupted:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
            model = make_model()
            optimizer = build_optimizer(model, config)
            schedule = LambdaLR(optimizer, lambda step: 1.0 - step / 100)
            saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            for part, state in zip((model, optimizer, schedule), saved, strict=True):
                part.load_state_dict(state)  # type: ignore[attr-defined]
        losses += train(model, optimizer, schedule, range(25, 60))
        weights.append(model.state_dict())
    assert losses[-1] < 0.5 * losses[0]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
        assert not torch.equal(value, start[key]), key


def test_mini_has_rank_one_and_one_scaling_a_matrix_unless_told_otherwise() -> None:
    settings = {}
    for name, rank in (("apollo", None), ("apollo_mini", None), ("apollo", 4), ("apollo_mini", 2)):
        optimizer = build_optimizer(
            make_model(), OptimizerConfig(optimizer=name, projection=ProjectionConfig(rank=rank))
        )  # type: ignore[arg-type]
        assert isinstance(optimizer, Apollo)
        group = optimizer.param_groups[0]
        settings[name, rank] = (group["rank"], group["scale_type"], group["scale"])
    assert settings == {
        ("apollo", None): (4, "channel", 1.0),  # a quarter of 16
        ("apollo_mini", None): (1, "tensor", 128.0),
        ("apollo", 4): (4, "channel", 1.0),
        ("apollo_mini", 2): (2, "tensor", 128.0),
    }


@pytest.mark.parametrize("name", ["apollo", "galore"])
def test_a_rank_share_of_one_is_the_whole_rank_as_an_integer_too(name: OptimizerName) -> None:
    for share in (1, 1.0):
        optimizer = build_optimizer(
            make_model(), OptimizerConfig(optimizer=name, projection=ProjectionConfig(rank_share=share))
        )
        assert optimizer.param_groups[0]["rank"] == 16


@pytest.mark.parametrize("name", NAMES)
def test_weights_decay_as_told_and_biases_never(name: OptimizerName) -> None:
    model = make_model()
    optimizer = build_optimizer(model, OptimizerConfig(optimizer=name, weight_decay=0.125, embeddings="adamw"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(layer.weight)] for layer in (model[1], model[3])] == [0.125, 0.125]
    assert [decay[id(layer.bias)] for layer in (model[1], model[3])] == [0.0, 0.0]


def test_tables_have_their_own_learning_rate_and_decay() -> None:
    for name in NAMES:
        config = OptimizerConfig(
            optimizer=name, embeddings="adamw", embedding_learning_rate=0.5, embedding_weight_decay=0.25
        )
        model = make_model()
        (group,) = [
            g for g in build_optimizer(model, config).param_groups if any(p is model[0].weight for p in g["params"])
        ]
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_matrices_have_their_own_rate_and_heads_narrow_ones_and_vectors_that_of_the_rest(name: OptimizerName) -> None:
    model = WithStack()
    config = OptimizerConfig(
        optimizer=name,
        learning_rate=0.25,
        matrix_learning_rate=0.5,
        embeddings="adamw",
        embedding_learning_rate=0.125,
    )
    rates = {id(p): group["lr"] for group in build_optimizer(model, config).param_groups for p in group["params"]}
    stacks = 0.25 if name == "muon" else 0.5  # torch's Muon takes nothing but two dimensions: AdamW has them
    assert {own: rates[id(parameter)] for own, parameter in model.named_parameters()} == {
        "table.weight": 0.125,
        "wide.weight": 0.5,
        "wide.bias": 0.25,
        "narrow.weight": 0.25,
        "towers": stacks,
        "convolution.weight": stacks,
        "head.weight": 0.25,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_rate_of_the_learning_rate_changes_no_bit(name: OptimizerName) -> None:
    weights = []
    for rate in (None, 0.01):
        model = make_model()
        optimizer = build_optimizer(
            model, OptimizerConfig(optimizer=name, learning_rate=0.01, matrix_learning_rate=rate)
        )
        train(model, optimizer, LambdaLR(optimizer, lambda step: 1.0), range(10))
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_adamw_without_a_matrix_rate_has_the_groups_that_old_checkpoints_hold() -> None:
    model = WithStack()
    groups = build_optimizer(model, OptimizerConfig(embeddings="adamw")).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [sorted(names[id(p)] for p in group["params"]) for group in groups] == [
        ["convolution.weight", "head.weight", "narrow.weight", "towers", "wide.weight"],
        ["wide.bias"],
        ["table.weight"],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"period": 0},
        {"rank_share": 1.5},
        {"scale": 0.0},
        {"scale": math.inf},
        {"norm_growth": 0.9},
        {"norm_growth": math.inf},
    ],
)
def test_wrong_projections_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"projection.{next(iter(wrong))} must"):
        ProjectionConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"iterations": 0}, {"iterations": 100}])
def test_wrong_settings_of_muon_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"muon.{next(iter(wrong))} must lie"):
        MuonConfig(**wrong)


@pytest.mark.parametrize("name", ["learning_rate", "matrix_learning_rate", "embedding_learning_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_does_not_descend_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be finite and above 0, not {value}"):
        OptimizerConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["weight_decay", "embedding_weight_decay"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_decay_that_grows_or_ends_weights_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be finite and at least 0, not {value}"):
        OptimizerConfig(**{name: value})  # type: ignore[arg-type]
