"""Matrix products at widths that the hardware likes.

A ranker's input has as many columns as its features happen to give, 429 for 26 fields of 16 and 13 numbers. CPU libraries
multiply such matrices at half the speed of ones whose rows are whole vector registers (429: 40 GFLOP/s a core, 432: 70, both
AVX2), and tensor cores want multiples of 8. So inputs get columns behind, the first of ones and the others of zeros; parameters
keep their true shapes. A bias is then the column of weights that meets the ones: no pass over a product adds it, and none over a
gradient sums it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MULTIPLE = 16


def padded(width: int) -> int:
    """The next multiple of 16."""
    return -(-width // MULTIPLE) * MULTIPLE


def padding(rows: int, width: int, like: Tensor) -> Tensor:
    """(rows, padded(width) - width): what belongs behind that many columns, ones and then zeros; no column for a multiple."""
    columns = like.new_zeros(rows, padded(width) - width)
    columns[:, :1] = 1.0
    return columns


def with_padding(x: Tensor) -> Tensor:
    """(B, N) to (B, padded(N)); the same tensor when N is a multiple already."""
    behind = padding(len(x), x.shape[1], x)
    return torch.cat([x, behind], dim=1) if behind.shape[1] else x


def with_bias(weight: Tensor, bias: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """(rows, columns) of W (M, N), N < columns: the bias in the column that meets the ones of ``with_padding``, zeros elsewhere.
    rows: None = M."""
    m, n = weight.shape
    whole = weight.new_zeros(m if rows is None else rows, columns)
    whole[:m, :n] = weight
    whole[:m, n] = bias
    return whole


class PaddedLinear(nn.Linear):
    """A linear layer of (B, in_features) that also takes its input with the columns of ``with_padding`` behind."""

    def forward(self, input: Tensor) -> Tensor:
        extra = input.shape[1] - self.in_features
        if not extra:
            return linear(input, self.weight, self.bias)
        if torch.is_autocast_enabled(input.device.type):  # a bias is to be added to a sum in float32
            return linear(input, pad(self.weight, (0, extra)), self.bias)
        return linear(input, pad(torch.cat([self.weight, self.bias.unsqueeze(1)], dim=1), (0, extra - 1)))
