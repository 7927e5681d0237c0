"""RQ-VAE and residual k-means against brute force and closed forms."""

import pytest
import torch

from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
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
        quantizer = fit_residual_kmeans(embeddings, ResidualKMeansConfig(3, 16, iterations=10))
        codes = quantizer.encode(embeddings)
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
    quantizer = fit_residual_kmeans(embeddings, ResidualKMeansConfig(1, 16))
    codes = quantizer.encode(embeddings)
    torch.testing.assert_close(quantizer.reconstructions(codes)[0], embeddings)
    assert len(codes.unique()) == 5
