"""Merging the rows of a sparse gradient: what torch's coalesce gives."""

import pytest
import torch
from torch import Tensor

from rayrec.optim.sparse_rows import merge_rows


def sparse(rows: list[int], values: Tensor, height: int) -> Tensor:
    indices = torch.tensor(rows, dtype=torch.int64).unsqueeze(0)
    return torch.sparse_coo_tensor(indices, values, (height, values.shape[1]), check_invariants=True)


@pytest.mark.parametrize("height", [7, 2**31 + 9])
@pytest.mark.parametrize("rows", [[3, 6, 3, 0, 6, 3], [5], [4, 3, 2, 1], []])
def test_rows_that_occur_several_times_are_summed_once(rows: list[int], height: int) -> None:
    rows = [height - 1 - row for row in rows]
    gradient = sparse(rows, torch.randn(len(rows), 3), height)
    merged, expected = merge_rows(gradient), gradient.coalesce()
    assert merged.is_coalesced()
    assert torch.equal(merged.indices(), expected.indices())
    torch.testing.assert_close(merged.values(), expected.values())
    assert merge_rows(merged) is merged
