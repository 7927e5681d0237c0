"""The dense index: exact against a product of matrices, the approximate ones by recall; files; added items."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from rayrec.retrieval.index import DenseIndex, IndexConfig, _lists

CONFIGS = [
    IndexConfig("exact"),
    IndexConfig("hnsw", links=8, build_effort=40, search_effort=40),
    IndexConfig("ivf_pq", lists=16, probes=12, code_bytes=4),
]


def clustered(count: int, seed: int) -> torch.Tensor:
    centers = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    rows = centers[torch.randint(0, 20, (count,), generator=generator)]
    return normalize(rows + 0.5 * torch.randn(count, 16, generator=generator), dim=1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
def test_neighbours_are_those_of_the_full_product(config: IndexConfig) -> None:
    vectors, queries = clustered(2000, 1), clustered(50, 2)
    found = DenseIndex.build(vectors, config).search(queries, 10)
    wanted = (queries @ vectors.T).topk(10)
    if config.method == "exact":
        assert torch.equal(found.rows, wanted.indices)
        torch.testing.assert_close(found.scores, wanted.values)
    hits = (found.rows.unsqueeze(2) == wanted.indices.unsqueeze(1)).any(2).float().mean()
    assert hits > 0.9


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
def test_an_added_vector_is_found_at_once_and_after_loading(config: IndexConfig, tmp_path: Path) -> None:
    index = DenseIndex.build(clustered(600, 1), config)
    new = torch.zeros(1, 16)
    new[0, 3] = 1.0
    index.add(new)
    assert index.search(new, 1).rows.item() == 600
    loaded = DenseIndex.load(index.save(tmp_path / "items.faiss"), config)
    assert len(loaded) == 601
    queries = clustered(20, 3)
    assert torch.equal(loaded.search(queries, 5).rows, index.search(queries, 5).rows)
    assert index.bytes == (tmp_path / "items.faiss").stat().st_size


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
def test_rows_that_are_out_are_not_found_and_the_others_are_those_of_the_product_without_them(
    config: IndexConfig,
) -> None:
    vectors, queries = clustered(2000, 1), clustered(50, 2)
    out = torch.rand(2000, generator=torch.Generator().manual_seed(3)) < 0.4
    found = DenseIndex.build(vectors, config).search(queries, 10, out=out)
    assert not out[found.rows[found.rows >= 0]].any()
    wanted = (queries @ vectors.T).masked_fill(out, -torch.inf).topk(10)
    if config.method == "exact":
        assert torch.equal(found.rows, wanted.indices)
        torch.testing.assert_close(found.scores, wanted.values)
    hits = (found.rows.unsqueeze(2) == wanted.indices.unsqueeze(1)).any(2).float().mean()
    assert hits > 0.9
    nothing = DenseIndex.build(vectors, config).search(queries[:2], 3, out=torch.ones(2000, dtype=torch.bool))
    assert (nothing.rows == -1).all()
    assert (nothing.scores == -torch.inf).all()


def test_fewer_vectors_than_asked_for_leave_places_empty() -> None:
    found = DenseIndex.build(clustered(3, 1), IndexConfig()).search(clustered(1, 2), 5)
    assert found.rows[0, 3:].tolist() == [-1, -1]
    assert (found.scores[0, 3:] == -torch.inf).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least 256 vectors"):
        DenseIndex.build(clustered(100, 1), IndexConfig("ivf_pq", code_bytes=4))
    with pytest.raises(ValueError, match="no multiple of code_bytes 5"):
        DenseIndex.build(clustered(300, 1), IndexConfig("ivf_pq", code_bytes=5))
    with pytest.raises(ValueError, match="queries of 3 dimensions"):
        DenseIndex.build(clustered(3, 1), IndexConfig()).search(torch.zeros(1, 3), 1)
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken"):
        DenseIndex.load(tmp_path / "broken", IndexConfig())


def test_an_exact_search_of_several_blocks_finds_what_one_product_finds() -> None:
    vectors, queries = clustered(5000, 1), clustered(1500, 2)  # blocks of 2,796 vectors
    for k in (1, 10, 4000):
        found, wanted = DenseIndex.build(vectors, IndexConfig()).search(queries, k), (queries @ vectors.T).topk(k)
        torch.testing.assert_close(found.scores, wanted.values)
        torch.testing.assert_close((queries.unsqueeze(1) * vectors[found.rows[:, :10]]).sum(2), found.scores[:, :10])


@pytest.mark.parametrize("wrong", [{"lists": 0}, {"rerank": -1}, {"links": 0}, {"probes": 0}, {"threads": 0}])
def test_each_setting_of_an_index_is_checked_alone(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* at least"):
        IndexConfig(**wrong)  # type: ignore[arg-type]


def test_clusters_grow_with_the_root_of_the_items_unless_their_number_is_given() -> None:
    assert [_lists(count, IndexConfig("ivf_pq")) for count in (0, 1, 100, 10_000)] == [1, 4, 40, 400]
    assert _lists(10_000, IndexConfig("ivf_pq", lists=7)) == 7
