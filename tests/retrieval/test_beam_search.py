"""The item trie and constrained beam search against brute force over all items, and against transformers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import decoding
from rayrec.retrieval.beam_search import beam_search
from rayrec.retrieval.semantic_ids import resolve_collisions
from rayrec.retrieval.trie import ItemTrie


def random_tokens(seed: int, items: int, size: int, levels: int = 2) -> torch.Tensor:
    codes = torch.randint(0, size, (items, levels), generator=torch.Generator().manual_seed(seed))
    return resolve_collisions(codes, size).item_tokens()


class TableDecoding:
    """p(token | user, prefix) from a hash of both: no structure that a wrong parent or token could hide behind."""

    def __init__(self, users: int, vocabulary: int) -> None:
        self.users, self.vocabulary = users, vocabulary
        self.prefixes = [[()] for _ in range(users)]

    def row(self, user: int, prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((user, prefix)) % 2**31)
        return torch.randn(self.vocabulary, generator=generator, dtype=torch.float64).log_softmax(0)

    def rows(self) -> torch.Tensor:
        return torch.stack([torch.stack([self.row(u, p) for p in beams]) for u, beams in enumerate(self.prefixes)])

    def first(self) -> torch.Tensor:
        return self.rows()

    def next(self, parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self.prefixes = [
            [(*old[p], t) for p, t in zip(row, toks, strict=True)]
            for old, row, toks in zip(self.prefixes, parents.tolist(), tokens.tolist(), strict=True)
        ]
        return self.rows()

    def log_likelihood(self, user: int, tuple_: list[int]) -> float:
        return sum(float(self.row(user, tuple(tuple_[:i]))[token]) for i, token in enumerate(tuple_))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5))
def test_the_trie_knows_exactly_the_children_of_every_prefix(seed: int, items: int, size: int) -> None:
    tokens = random_tokens(seed, items, size)
    trie = ItemTrie.of(tokens)
    tuples = [tuple(row) for row in tokens[1:].tolist()]
    nodes = {(): 0}
    for depth in range(3):
        assert set(nodes) == {t[:depth] for t in tuples}
        further = {}
        for prefix, node in nodes.items():
            children, found, exists = trie.children(depth, torch.tensor(node))
            wanted = sorted({t[depth] for t in tuples if t[:depth] == prefix})
            assert found[exists].tolist() == wanted
            further |= {(*prefix, t): int(c) for t, c in zip(wanted, children[exists], strict=True)}
        nodes = further
    assert {prefix: int(trie.items[node]) for prefix, node in nodes.items()} == {t: i + 1 for i, t in enumerate(tuples)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5))
def test_with_as_many_beams_as_items_it_equals_scoring_every_item(seed: int, items: int, size: int) -> None:
    tokens = random_tokens(seed, items, size)
    decoding = TableDecoding(2, int(tokens.max()) + 1)
    found = beam_search(ItemTrie.of(tokens), decoding, items)
    for user in range(2):
        scores = [decoding.log_likelihood(user, row) for row in tokens[1:].tolist()]
        order = sorted(range(items), key=lambda i, s=scores: -s[i])
        assert found.items[user].tolist() == [i + 1 for i in order]
        assert found.scores[user].tolist() == pytest.approx([scores[i] for i in order])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5), st.integers(1, 40))
def test_any_beam_gives_real_items_without_duplicates_and_equals_a_loop(
    seed: int, items: int, size: int, beams: int
) -> None:
    tokens = random_tokens(seed, items, size)
    tuples = [tuple(row) for row in tokens[1:].tolist()]
    decoding = TableDecoding(2, int(tokens.max()) + 1)
    found = beam_search(ItemTrie.of(tokens), decoding, beams)
    for user in range(2):
        kept: dict[tuple[int, ...], float] = {(): 0.0}
        for depth in range(3):
            grown = {
                t[: depth + 1]: kept[t[:depth]] + float(decoding.row(user, t[:depth])[t[depth]])
                for t in tuples
                if t[:depth] in kept
            }
            kept = dict(sorted(grown.items(), key=lambda pair: -pair[1])[:beams])
        own = [i for i in found.items[user].tolist() if i]
        assert own == [tuples.index(t) + 1 for t in kept]
        assert len(set(own)) == len(own)
        real = found.scores[user][found.items[user] > 0]
        assert real.tolist() == pytest.approx([decoding.log_likelihood(user, list(t)) for t in kept])
        assert (found.scores[user][found.items[user] == 0] == -torch.inf).all()


def test_items_that_share_a_tuple_are_refused() -> None:
    with pytest.raises(ValueError, match="share a tuple"):
        ItemTrie.of(torch.tensor([[0, 0], [1, 2], [1, 2]]))


def test_a_beam_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="beams must be at least 1"):
        beam_search(ItemTrie.of(random_tokens(0, 3, 2)), TableDecoding(1, 9), 0)


def test_it_finds_what_transformers_finds_under_the_same_constraint(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    decoding.main(decoding.Decoding(items=200, users=3, history=4, beams=7, layers=1, repeats=1, threads=1))
    torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["identical"] is True
