"""GaLore: Adam in the leading subspace of the gradient."""

import io

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim.galore import Galore, singular_vectors

SHAPES = [(12, 8), (8, 12), (10, 10)]


def parameter(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def low_rank_gradient(shape: tuple[int, int], step: int, rank: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    core = torch.randn(rank, rank, generator=torch.Generator().manual_seed(step + 1))
    return left @ core @ right


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_are_orthonormal_and_span_a_low_rank_gradient(shape: tuple[int, int]) -> None:
    gradient = low_rank_gradient(shape, 0)
    (vectors,) = singular_vectors(gradient.unsqueeze(0), 2)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(2), rtol=0, atol=1e-5)
    kept = gradient @ vectors.T @ vectors if shape[0] >= shape[1] else vectors.T @ vectors @ gradient
    torch.testing.assert_close(kept, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_full_rank_it_is_adamw_in_rotated_coordinates(shape: tuple[int, int]) -> None:
    (rotation,) = singular_vectors(low_rank_gradient(shape, 0, rank=min(shape)).unsqueeze(0), min(shape))
    tall = shape[0] >= shape[1]
    ours, start = parameter(shape), parameter(shape).detach()
    rotated = nn.Parameter(start @ rotation.T if tall else rotation @ start)
    optimizer = Galore([ours], lr=0.04, rank=1.0, weight_decay=0.1, scale=0.25)
    reference = torch.optim.AdamW([rotated], lr=0.01, weight_decay=0.4)
    for step in range(5):
        gradient = low_rank_gradient(shape, step, rank=min(shape))
        ours.grad, rotated.grad = gradient, gradient @ rotation.T if tall else rotation @ gradient
        optimizer.step()
        reference.step()
    expected = rotated @ rotation if tall else rotation.T @ rotated
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_stacked_matrices_step_like_each_alone() -> None:
    stack = parameter((3, 9, 6))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    together, apart = Galore([{"params": [stack], "batch_dims": 1}], rank=2), Galore(alone, rank=2)
    for step in range(3):
        stack.grad = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(step))
        for single, gradient in zip(alone, stack.grad, strict=True):
            single.grad = gradient
        together.step()
        apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), rtol=1e-5, atol=1e-6)


def test_a_saved_run_goes_on_bit_for_bit_between_decompositions() -> None:
    runs = []
    for stop in (None, 4):
        weight = parameter((12, 8))
        optimizer = Galore([weight], rank=3, projection_period=3)
        for step in range(8):
            if step == stop:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                weight = nn.Parameter(weight.detach().clone())
                optimizer = Galore([weight], rank=3, projection_period=3)
                optimizer.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
            weight.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        runs.append(weight.detach())
    assert torch.equal(*runs)


def test_a_rank_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 8"):
        Galore([parameter((12, 8))], rank=9)


def test_what_is_not_given_is_as_published() -> None:
    (group,) = Galore([parameter((12, 8))]).param_groups
    del group["params"]
    assert group == {
        "lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "rank": 0.25, "scale": 0.25,
        "projection_period": 200, "batch_dims": 0,
    }  # fmt: skip
