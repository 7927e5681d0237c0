"""SCR and LSPR: closed forms of a linear model, what each perturbation does to a batch, and what is drawn when."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.methods.perturbation import Perturbation, PerturbationConfig, divergence, noise, perturb_ids, perturbed_loss
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs


def ranker(**architecture: object) -> Ranker:
    torch.manual_seed(0)
    quantiles = ((-2.0, -0.5, 0.0, 0.5, 2.0), (-1.0, -0.5, 0.0, 0.5, 1.0))
    inputs = RankerInputs((0.0, 1.0), (1.0, 2.0), (False, True), (True, False), (50, 20), (20,), (1,), 2, 0, quantiles)
    return Ranker(inputs, RankerArchitecture(embedding_dim=8, **architecture))  # type: ignore[arg-type]


def some_batch(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(rows, 2, generator=generator)
    dense[torch.rand(rows, 2, generator=generator) < 0.2] = float("nan")
    history = torch.randint(1, 20, (rows, 6), generator=generator)
    history[torch.arange(6) >= torch.randint(0, 7, (rows, 1), generator=generator)] = 0
    ids = torch.randint(1, 20, (rows, 2), generator=generator)
    return Batch(dense, ids, torch.randint(0, 2, (rows, 2), generator=generator).float(), (history,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _LinearModel(nn.Module):
    """x is the row's numbers: what perturbation needs of a model, without embeddings."""

    embedding_dim = 1
    embedding_columns = number_columns = slice(0, 0)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.dense_columns = slice(0, features)

    def embed(self, batch: Batch) -> Tensor:
        return batch.dense

    def moved_numbers(self, dense: Tensor, noise: Tensor) -> Tensor:
        return noise[:, :0]


@pytest.mark.parametrize(
    ("config", "ridge"),
    [
        (PerturbationConfig("lspr", 0.3, "balanced", dense_noise=0.5), 0.3 * 0.25),
        (PerturbationConfig("lspr", 0.3, "additive", dense_noise=0.5), 0.3 / 1.3 * 0.25),
        (PerturbationConfig("scr", 0.3, dense_noise=0.5), 0.3 * 0.25),
    ],
    ids=["lspr_balanced", "lspr_additive", "scr"],
)
def test_a_linear_model_with_squared_loss_reduces_to_ridge(config: PerturbationConfig, ridge: float) -> None:
    """In expectation over the noise, whose draws here stand in as 4,000 copies of the data: the minimum of the empirical
    objective lies at the ridge solution (X^T X / n + ridge I)^-1 X^T y / n, up to Monte-Carlo error."""
    n, d, copies = 40, 5, 4_000
    features = torch.randn(n, d, generator=seeded(3))
    target = (features @ torch.arange(1.0, d + 1) + torch.randn(n, generator=seeded(4))).double()
    batch = Batch(features, torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 1))
    perturbation, model = Perturbation(config), _LinearModel(d)
    perturbed = torch.stack(
        [perturbation.copy_of(model, batch, features).x for _ in range(copies)]
    ).double()  # (c, n, d)
    features = features.double()
    weights = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    clean = (features @ weights - target).square().mean()
    if config.loss == "lspr":
        other = (perturbed @ weights - target).square().mean()
    else:
        other = (features @ weights - perturbed @ weights).square().mean()
    objective = perturbed_loss(config, clean, other)
    # The objective is quadratic: one Newton step from zero is its minimum.
    (slope,) = torch.autograd.grad(objective, weights, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(g, weights, retain_graph=True)[0] for g in slope])
    found = -torch.linalg.solve(curvature, slope.detach())
    system = features.T @ features / n + ridge * torch.eye(d, dtype=torch.float64)
    expected = torch.linalg.solve(system, features.T @ target / n)
    unregularized = torch.linalg.lstsq(features, target).solution
    assert float((found - expected).norm()) < 0.02 * float((unregularized - expected).norm())


@settings(deadline=None)
@given(z=st.floats(-20, 20), other=st.floats(-20, 20))
def test_symmetric_kl_is_the_mean_of_both_divergences(z: float, other: float) -> None:
    first = torch.distributions.Bernoulli(logits=torch.tensor(z, dtype=torch.float64))
    second = torch.distributions.Bernoulli(logits=torch.tensor(other, dtype=torch.float64))
    both = torch.distributions.kl_divergence(first, second) + torch.distributions.kl_divergence(second, first)
    ours = divergence("symmetric_kl", first.logits, second.logits)
    torch.testing.assert_close(ours, both / 2, atol=1e-9, rtol=1e-6)


def test_mse_is_the_squared_difference_of_probabilities() -> None:
    ours = divergence("mse", torch.tensor([0.0, 2.0]), torch.tensor([0.0, -2.0]))
    torch.testing.assert_close(ours, torch.tensor([0.0, math.tanh(1.0) ** 2]))


def test_equal_predictions_cost_nothing_and_pull_nowhere() -> None:
    for kind in ("mse", "symmetric_kl"):
        logits = torch.randn(5, 2, requires_grad=True)
        (slope,) = torch.autograd.grad(divergence(kind, logits, logits.detach()).sum(), logits)  # type: ignore[arg-type]
        assert (slope == 0).all()


def test_dense_noise_has_the_asked_deviation_and_spares_missing_values_and_other_columns() -> None:
    model, batch = ranker(), some_batch(20_000)
    x = model.embed(batch).detach()
    added = noise(model, batch, x, PerturbationConfig(dense_noise=0.3, embedding_noise=0.0), seeded())
    start = model.dense_columns.start
    numbers, missing = added[:, start : start + 2], batch.dense.isnan()
    assert (numbers[missing] == 0).all()
    assert float(numbers[~missing].std()) == pytest.approx(0.3, rel=0.02)
    assert (added[:, :start] == 0).all()
    assert (added[:, start + 2 :] == 0).all()  # the missing-indicator and the wide logits


def test_vectors_of_numbers_follow_the_noise_on_their_numbers() -> None:
    model, batch = ranker(dense_bins=4), some_batch(500)
    batch.dense[:, 0] = batch.dense[:, 0].nan_to_num(0.5)
    x = model.embed(batch).detach()
    added = noise(model, batch, x, PerturbationConfig(dense_noise=0.3, embedding_noise=0.0), seeded())
    start = model.dense_columns.start
    moved = replace(batch, dense=batch.dense.clone())
    moved.dense[:, 0] += added[:, start]  # the first number is neither scaled nor under a logarithm
    vectors = slice(model.number_columns.start, model.number_columns.start + 8)
    torch.testing.assert_close((x + added)[:, vectors], model.embed(moved)[:, vectors])
    assert (added[:, vectors] != 0).any(1).float().mean() > 0.9  # but beyond the outer quantiles
    assert (added[:, : model.number_columns.start] == 0).all()
    gone = batch.dense[:, 1].isnan()
    assert (added[gone, vectors.stop : model.number_columns.stop] == 0).all()
    added[:, vectors].sum().backward()
    assert model.numbers is not None
    assert (model.numbers.weight.grad != 0).any()

    both = noise(model, batch, x, PerturbationConfig(dense_noise=0.3, embedding_noise=0.2), seeded())
    only = noise(model, batch, x, PerturbationConfig(dense_noise=0.0, embedding_noise=0.2), seeded(5))
    assert not torch.allclose(both[:, vectors], added[:, vectors])
    assert (only[:, vectors] != 0).all()  # relative to their length, as all vectors


def test_embedding_noise_is_relative_to_each_vectors_length() -> None:
    model, batch = ranker(), some_batch(20_000)
    x = model.embed(batch).detach()
    added = noise(model, batch, x, PerturbationConfig(dense_noise=0.0, embedding_noise=0.2), seeded())
    vectors = x[:, model.embedding_columns].unflatten(1, (-1, 8)).norm(dim=2)
    moved = added[:, model.embedding_columns].unflatten(1, (-1, 8)).norm(dim=2)
    assert float((moved.square().sum() / vectors.square().sum()).sqrt()) == pytest.approx(0.2, rel=0.02)
    assert (moved[vectors == 0] == 0).all()  # an empty sequence stays empty
    assert (added[:, model.dense_columns] == 0).all()


def test_feature_fraction_is_the_share_of_numbers_and_of_whole_vectors_that_move() -> None:
    model, batch = ranker(), some_batch(5_000)
    x = model.embed(batch).detach()
    added = noise(model, batch, x, PerturbationConfig(feature_fraction=0.25), seeded())
    moved = added[:, model.embedding_columns].unflatten(1, (-1, 8)) != 0  # (B, K, d)
    assert (moved.all(2) == moved.any(2)).all()
    assert float(moved[:, :2].float().mean()) == pytest.approx(0.25, abs=0.02)
    observed = ~batch.dense.isnan()
    start = model.dense_columns.start
    assert float((added[:, start : start + 2] != 0)[observed].float().mean()) == pytest.approx(0.25, abs=0.02)


def test_dropped_features_become_missing_at_the_asked_rate() -> None:
    batch = some_batch(20_000)
    changed = perturb_ids(batch, batch, PerturbationConfig(feature_dropout=0.1), seeded())
    gone = changed.categorical != batch.categorical
    assert (changed.categorical[gone] == 0).all()
    assert float(gone.float().mean()) == pytest.approx(0.1, abs=0.01)


def test_swapped_categories_come_from_the_same_field_of_other_rows() -> None:
    batch = some_batch(20_000)
    marked = Batch(batch.dense, batch.categorical + torch.tensor([0, 100]), batch.labels)
    changed = perturb_ids(marked, marked, PerturbationConfig(category_swap=0.5), seeded()).categorical
    assert changed[:, 0].max() < 100 <= changed[:, 1].min()
    for field in range(2):
        before, after = marked.categorical[:, field].bincount(), changed[:, field].bincount()
        torch.testing.assert_close(after / 20_000, before / 20_000, atol=0.01, rtol=0.0)
    share = float((changed != marked.categorical).float().mean())
    assert share == pytest.approx(0.5 * 18 / 19, abs=0.01)


@settings(deadline=None)
@given(length=st.integers(0, 6), probability=st.floats(0.0, 1.0), seed=st.integers(0, 1000))
def test_item_drop_leaves_a_subsequence_in_order_with_zeros_behind(length: int, probability: float, seed: int) -> None:
    ids = torch.tensor([list(range(1, length + 1)) + [0] * (6 - length)])
    batch = Batch(torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 1), (ids,))
    (left,) = perturb_ids(batch, batch, PerturbationConfig(item_drop=probability), seeded(seed)).sequences
    kept = left[0][left[0] > 0].tolist()
    assert left[0].tolist() == kept + [0] * (6 - len(kept))
    assert kept == sorted(kept)
    assert set(kept) <= set(range(1, length + 1))
    if probability in (0.0, 1.0):
        assert len(kept) == (length if probability == 0.0 else 0)


def test_noise_alone_looks_nothing_up_a_second_time() -> None:
    model, batch = ranker(), some_batch(64)
    x = model.embed(batch)
    lookups = []
    model.embed = lambda batch: lookups.append(len(batch)) or x[: len(batch)]  # type: ignore[method-assign,func-returns-value]
    Perturbation(PerturbationConfig(row_fraction=0.5)).copy_of(model, batch, x)
    assert lookups == []
    Perturbation(PerturbationConfig(category_swap=0.1, row_fraction=0.5)).copy_of(model, batch, x)
    assert lookups == [32]


def test_a_fraction_of_the_rows_is_copied_each_at_most_once() -> None:
    model, batch = ranker(), some_batch(200)
    copy = Perturbation(PerturbationConfig(row_fraction=0.25)).copy_of(model, batch, model.embed(batch))
    assert copy.rows is not None
    assert len(copy.rows.unique()) == len(copy.x) == 50
    assert torch.equal(copy.of(batch.labels), batch.labels[copy.rows])


def test_the_perturbed_copy_trains_embeddings_and_trunk() -> None:
    model, batch = ranker(), some_batch(64)
    x = model.embed(batch)
    copy = Perturbation(PerturbationConfig()).copy_of(model, batch, x)
    logits = model.heads(model.represent_embedded(copy.x))
    binary_cross_entropy_with_logits(logits, copy.of(batch.labels)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.dim() > 1)


def test_draws_repeat_with_the_seed_go_on_from_a_checkpoint_and_leave_torchs_generator_alone() -> None:
    model, batch = ranker(), some_batch(64)
    x = model.embed(batch).detach()
    config = PerturbationConfig(feature_dropout=0.1, category_swap=0.1, item_drop=0.1, row_fraction=0.5)
    before = torch.get_rng_state()
    first = Perturbation(config)
    draws = [first.copy_of(model, batch, x).x for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draws[0], draws[1])
    second = Perturbation(config)
    assert torch.equal(second.copy_of(model, batch, x).x, draws[0])
    third = Perturbation(config)
    third.load_state_dict(second.state_dict())
    assert torch.equal(third.copy_of(model, batch, x).x, draws[1])


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("strength", {"strength": 1.5}),
        ("strength", {"strength": -0.1}),
        ("dense_noise", {"dense_noise": math.inf}),
        ("item_drop", {"item_drop": 2.0}),
        ("nothing is perturbed", {"dense_noise": 0.0, "embedding_noise": 0.0}),
        ("unlabeled", {"unlabeled": True}),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(message: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbationConfig(**settings)  # type: ignore[arg-type]


def test_a_model_without_embeddings_gets_noise_on_its_numbers_alone() -> None:
    batch = some_batch(50)
    both, dense = (
        noise(_LinearModel(2), batch, batch.dense.nan_to_num(), PerturbationConfig(embedding_noise=e), seeded())
        for e in (0.5, 0.0)
    )
    assert torch.equal(both, dense)
    assert bool(dense.any())
