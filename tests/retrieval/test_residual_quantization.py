"""RQ-VAE and residual k-means against brute force and closed forms."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from rayrec.errors import DivergedError
from rayrec.retrieval import rqvae
from rayrec.retrieval.code_assignment import balanced_codes, own_codes
from rayrec.retrieval.residual_kmeans import FittedQuantizer, ResidualKMeansConfig, fit_residual_kmeans, nearest_codes
from rayrec.retrieval.rqvae import ResidualCodebooks, RqVae, RqVaeConfig, fit_rqvae, straight_through
from rayrec.retrieval.semantic_ids import standardize

SMALL = RqVaeConfig(hidden=(32,), latent=8, levels=3, codebook_size=16, epochs=60, batch_size=128, dropout=0.0)


def clustered(items: int = 400, dim: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = torch.randn(8, dim, generator=generator), 0.3 * torch.randn(20, dim, generator=generator)
    chosen = torch.randint(0, 8, (items,), generator=generator), torch.randint(0, 20, (items,), generator=generator)
    noise = 0.05 * torch.randn(items, dim, generator=generator)
    return standardize(coarse[chosen[0]] + fine[chosen[1]] + noise)[0]


def brute_force_codes(latents: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Distances one by one."""
    rows = []
    for residual in latents.double():
        row = []
        for book in codebooks.double():
            row.append(min(range(len(book)), key=lambda k, r=residual, b=book: float((r - b[k]).square().sum())))
            residual = residual - book[row[-1]]
        rows.append(row)
    return torch.tensor(rows)


def test_rqvae_codes_are_the_nearest_codewords_of_the_residuals() -> None:
    torch.manual_seed(0)
    model = RqVae(12, SMALL).eval()
    embeddings = clustered(50)
    with torch.no_grad():
        latents = model.encoder(embeddings)
    codes = model.encode(embeddings)
    assert torch.equal(codes, brute_force_codes(latents, model.codebooks.codebooks))
    sums = model.codebooks.quantize(latents).sums
    wanted = torch.zeros_like(latents)
    for level, book in enumerate(model.codebooks.codebooks):
        wanted = wanted + book[codes[:, level]]
        torch.testing.assert_close(sums[level], wanted)


def test_straight_through_has_the_quantized_value_and_the_identity_gradient() -> None:
    torch.manual_seed(0)
    model = RqVae(12, SMALL).eval()
    latents = torch.randn(9, 8, requires_grad=True)
    quantized = model.codebooks.quantize(latents).sums[-1]
    passed = straight_through(latents, quantized)
    torch.testing.assert_close(passed, quantized)
    (through,) = torch.autograd.grad(model.decoder(passed).square().sum(), latents)
    free = quantized.detach().clone().requires_grad_()  # the decoder's own gradient at the quantized point
    (identity,) = torch.autograd.grad(model.decoder(free).square().sum(), free)
    torch.testing.assert_close(through, identity)


def test_rqvae_loss_and_gradients_equal_those_written_by_hand() -> None:
    """Linear encoder z = x W' + b and decoder y = s V' + c: the reconstruction passes straight through the codes s, and the
    commitment pulls z to the sums of 1, 2, ... M codewords, averaged over all of them."""
    torch.manual_seed(0)
    config = RqVaeConfig(hidden=(), latent=3, levels=2, codebook_size=4, commitment=0.25)
    model, x = RqVae(5, config).eval(), torch.randn(7, 5)
    (encoder,), (decoder,) = model.encoder, model.decoder
    with torch.no_grad():
        z = x @ encoder.weight.T + encoder.bias
        sums = model.codebooks.quantize(z).sums  # (2, 7, 3)
        wrong = sums[-1] @ decoder.weight.T + decoder.bias - x
        reconstruction = 2 / wrong.numel() * wrong @ decoder.weight
        commitment = 2 / sums.numel() * (z - sums).sum(0)
        to_encoder = reconstruction + 0.25 * commitment
    total, error, pull = model.loss(x)
    torch.testing.assert_close(error, wrong.square().mean())
    torch.testing.assert_close(pull, (z - sums).square().mean())
    torch.testing.assert_close(total, error + 0.25 * pull)
    total.backward()
    torch.testing.assert_close(encoder.weight.grad, to_encoder.T @ x)
    torch.testing.assert_close(encoder.bias.grad, to_encoder.sum(0))
    torch.testing.assert_close(decoder.weight.grad, 2 / wrong.numel() * wrong.T @ sums[-1])


def test_codebooks_follow_the_closed_form_of_the_moving_averages() -> None:
    books = ResidualCodebooks(2, 2, 1, decay=0.9, dead_below=0.0)
    books.start_at(torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]]))
    latents = torch.tensor([[1.0], [2.0], [12.0]])
    quantized = books.quantize(latents)
    assert quantized.codes.tolist() == [[0, 1], [0, 1], [1, 1]]
    books.follow(latents, quantized)
    count, total = 0.9 * 1 + 0.1 * 2, 0.9 * 0 + 0.1 * (1 + 2)
    assert books.codebooks[0, 0].item() == pytest.approx(total / count)
    assert books.codebooks[0, 1].item() == pytest.approx((0.9 * 10 + 0.1 * 12) / (0.9 + 0.1))
    # level 2 follows what the old first codewords left over: 1, 2 and 2, all assigned to its second codeword
    assert books.codebooks[1, 1].item() == pytest.approx((0.9 * 1 + 0.1 * 5) / (0.9 + 0.3))
    assert books.codebooks[1, 0].item() == pytest.approx(-1.0)  # no assignments: total and count shrink alike


def test_dead_codewords_restart_at_residuals_of_the_batch() -> None:
    torch.manual_seed(0)
    books = ResidualCodebooks(1, 3, 1, decay=0.5, dead_below=0.4)
    books.start_at(torch.tensor([[[0.0], [100.0], [200.0]]]))
    latents = torch.tensor([[1.0], [3.0]])
    for _ in range(2):  # the unused counts fall to 0.5, then to 0.25
        books.follow(latents, books.quantize(latents))
    assert set(books.codebooks[0, 1:].flatten().tolist()) <= {1.0, 3.0}
    assert (books.counts[0, 1:] == 1).all()


@pytest.mark.parametrize("kind", ["rqvae", "kmeans"])
def test_reconstruction_error_falls_with_each_level(kind: str) -> None:
    embeddings = clustered()
    if kind == "rqvae":
        model = fit_rqvae(embeddings, SMALL)
        codes, reconstructions = model.encode(embeddings), model.reconstructions(model.encode(embeddings))
    else:
        fitted = fit_residual_kmeans(embeddings, ResidualKMeansConfig(3, 16, iterations=10))
        quantizer, codes = fitted.quantizer, fitted.codes
        assert torch.equal(codes, quantizer.encode(embeddings))
        reconstructions = quantizer.reconstructions(codes)
        assert torch.equal(codes[:40], brute_force_codes(embeddings[:40], quantizer.codebooks))
    errors = [float((embeddings - r).square().mean()) for r in reconstructions]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.35  # of a variance of 1
    assert codes.shape == (400, 3)


def test_the_same_seed_gives_the_same_rqvae() -> None:
    config = RqVaeConfig(hidden=(16,), latent=4, levels=2, codebook_size=8, epochs=3, batch_size=100)
    embeddings = clustered(200)
    first, second = fit_rqvae(embeddings, config), fit_rqvae(embeddings, config)
    assert torch.equal(first.encode(embeddings), second.encode(embeddings))


def test_fewer_items_than_codes_still_reconstruct_exactly() -> None:
    embeddings = clustered(5)
    quantizer = fit_residual_kmeans(embeddings, ResidualKMeansConfig(1, 16)).quantizer
    codes = quantizer.encode(embeddings)
    torch.testing.assert_close(quantizer.reconstructions(codes)[0], embeddings)
    assert len(codes.unique()) == 5


def test_balanced_levels_use_their_codes_more_evenly_and_other_levels_stay_as_they_are() -> None:
    embeddings = clustered(600)
    plain = fit_residual_kmeans(embeddings, ResidualKMeansConfig(3, 32))
    even = fit_residual_kmeans(embeddings, ResidualKMeansConfig(3, 32, balanced=(2, 3)))
    assert torch.equal(plain.codes[:, 0], even.codes[:, 0])
    for level in (1, 2):
        counts = [torch.bincount(found.codes[:, level], minlength=32) for found in (plain, even)]
        assert counts[1].max() < counts[0].max()
        assert counts[1].min() > 0
    sums = even.quantizer.reconstructions(even.codes)
    assert float((embeddings - sums[2]).square().mean()) < float((embeddings - sums[0]).square().mean())
    with pytest.raises(ValueError, match="levels from 1 to 2"):
        ResidualKMeansConfig(2, 32, balanced=(3,))


def test_a_balanced_plan_gives_every_code_its_share_of_equally_spread_vectors() -> None:
    codebook = torch.tensor([[-1.0], [0.0], [1.0]])
    vectors = torch.cat([torch.linspace(-1.2, -0.6, 60), torch.linspace(0.9, 1.2, 30)]).unsqueeze(1)
    assert torch.bincount(nearest_codes(vectors, codebook), minlength=3).tolist() == [60, 0, 30]
    codes = balanced_codes(vectors, codebook)
    assert torch.bincount(codes, minlength=3).tolist() == pytest.approx([30, 30, 30], abs=2)
    assert (codes[:60].diff() >= 0).all()  # of the left ones, those nearest to the middle go there


def test_balanced_codes_are_the_likeliest_of_the_plan_that_matrix_scaling_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, codebook = (torch.randn(rows, 2, generator=generator) for rows in (120, 5))
    distances = (vectors.unsqueeze(1) - codebook).double().square().sum(2)
    kernel = torch.exp(-50 * distances / distances.mean())
    columns = torch.ones(5, dtype=torch.float64)
    for _ in range(50):
        rows = 1 / (kernel @ columns) / 120
        columns = 1 / (rows @ kernel) / 5
    plan = rows.unsqueeze(1) * kernel * columns
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 1 / 5, dtype=torch.float64))
    codes = balanced_codes(vectors, codebook)
    assert torch.equal(codes, plan.argmax(1))
    assert not torch.equal(codes, balanced_codes(vectors, codebook, sharpness=100.0))
    assert not torch.equal(codes, distances.argmin(1))


def test_rqvae_starts_from_at_least_four_latents_a_codeword(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def recording(latents: torch.Tensor, config: ResidualKMeansConfig) -> FittedQuantizer:
        started.append(len(latents))
        return fit_residual_kmeans(latents, config)

    monkeypatch.setattr(rqvae, "fit_residual_kmeans", recording)
    for batch in (8, 150):
        fit_rqvae(clustered(200), replace(SMALL, epochs=1, batch_size=batch, held_out=0.0))
    assert started == [4 * 16, 150]


def test_own_codes_tell_items_of_one_prefix_apart_at_least_cost() -> None:
    torch.manual_seed(0)
    prefixes, vectors, codebook = torch.tensor([[0], [1], [0], [0], [1]]), torch.randn(5, 2), torch.randn(4, 2)
    distances = (vectors.unsqueeze(1) - codebook).square().sum(2)

    def cost(codes: tuple[int, ...]) -> float:
        return float(sum(distances[i, c] for i, c in enumerate(codes)))

    apart = [
        codes
        for codes in product(range(4), repeat=5)
        if len({codes[0], codes[2], codes[3]}) == 3 and codes[1] != codes[4]
    ]
    assert tuple(own_codes(prefixes, vectors, codebook).tolist()) == min(apart, key=cost)


def test_more_items_of_one_prefix_than_codes_use_all_codes_and_share_the_nearest() -> None:
    vectors = torch.tensor([[0.0], [0.1], [0.2], [5.0]])
    codes = own_codes(torch.zeros(4, 1, dtype=torch.int64), vectors, torch.tensor([[0.0], [5.0]]))
    assert codes.tolist() == [0, 0, 0, 1]


def test_training_ends_after_so_many_epochs_without_a_gain_and_gives_the_best_one() -> None:
    embeddings, errors = clustered(200), list[float]()
    config = replace(SMALL, epochs=500, patience=4, learning_rate=0.03, held_out=0.0)
    model = fit_rqvae(embeddings, config, lambda epoch, train, error: errors.append(error))
    best = errors.index(min(errors))
    assert len(errors) - 1 - best == 4
    assert any(b >= a for a, b in pairwise(errors[: best + 1]))  # one epoch without a gain does not end it
    with torch.no_grad():
        assert float(model.loss(embeddings)[1]) == pytest.approx(min(errors), rel=1e-6)


def test_what_is_not_given_is_the_paper_s_rqvae() -> None:
    config = RqVaeConfig()
    assert (config.hidden, config.latent, config.levels, config.codebook_size) == ((768, 512, 256), 128, 3, 256)
    assert (config.commitment, config.learning_rate, config.weight_decay) == (0.25, 1e-3, 0.1)
    sizes = [tuple(layer.weight.shape) for layer in RqVae(384, config).encoder if isinstance(layer, torch.nn.Linear)]
    assert sizes == [(768, 384), (512, 768), (256, 512), (128, 256)]


def test_an_rqvae_that_ran_away_and_options_that_no_training_has_are_refused() -> None:
    with pytest.raises(DivergedError, match=r"the RQ-VAE's loss is (nan|inf) in epoch \d+; a lower learning_rate"):
        fit_rqvae(clustered(), replace(SMALL, learning_rate=1e12))
    for change in ({"learning_rate": 0.0}, {"commitment": -1.0}, {"patience": 0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(SMALL, **change)
