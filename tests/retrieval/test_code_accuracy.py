"""Accuracy of each code given the right prefix, on a model whose probabilities are written down."""

import pytest
import torch
from torch import Tensor

from rayrec.retrieval.code_accuracy import right_codes
from rayrec.retrieval.trie import ItemTrie

TOKENS = torch.tensor([[0, 0, 0], [1, 3, 5], [1, 3, 6], [1, 4, 5], [2, 3, 5]])  # four items of three codes


class Written:
    """The same log-probabilities of the codes 0..6 after every prefix, of each of U users."""

    def __init__(self, scores: list[float], users: int) -> None:
        self.scores, self.asked = torch.tensor(scores).expand(users, 1, 7), []  # type: ignore[var-annotated]

    def first(self) -> Tensor:
        return self.scores

    def next(self, parents: Tensor, tokens: Tensor) -> Tensor:
        self.asked.append((parents.tolist(), tokens.tolist()))
        return self.scores


def test_a_code_is_right_where_it_is_the_likeliest_that_continues_the_right_prefix() -> None:
    decoding = Written([9.0, -2.0, -1.0, -3.0, -4.0, -6.0, -5.0], 4)  # 2 before 1, 3 before 4, 6 before 5; 0 is none
    found = right_codes(ItemTrie.of(TOKENS), decoding, TOKENS[1:])
    assert found.choices.tolist() == [[2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 1, 1]]
    assert found.first.tolist() == [
        [False, True, False],  # after 1: 3 is; after 1 3: 6 is before 5
        [False, True, True],
        [False, False, True],  # what has no other choice is right
        [True, True, True],
    ]
    assert decoding.asked == [
        ([[0]] * 4, TOKENS[1:, :1].tolist()),
        ([[0]] * 4, TOKENS[1:, 1:2].tolist()),
    ]  # it is told the right codes, not those that it would choose


def test_equally_likely_codes_are_not_right() -> None:
    found = right_codes(ItemTrie.of(TOKENS), Written([0.0] * 7, 4), TOKENS[1:])
    assert torch.equal(found.first, found.choices == 1)


def test_codes_of_no_item_are_told() -> None:
    with pytest.raises(ValueError, match=r"tokens \[2, 4, 5\] are no item's"):
        right_codes(ItemTrie.of(TOKENS), Written([0.0] * 7, 1), torch.tensor([[2, 4, 5]]))
