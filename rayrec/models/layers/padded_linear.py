"""Matrix products at widths that the hardware likes.

A ranker's input has as many columns as its features happen to give, 429 for 26 fields of 16 and 13 numbers. CPU libraries
multiply such matrices at half the speed of ones whose rows are whole vector registers (429: 40 GFLOP/s a core, 432: 70, both
AVX2), and tensor cores want multiples of 8. So inputs get columns of zeros behind; parameters keep their true shapes.
"""

from torch import Tensor, nn
from torch.nn.functional import linear, pad

MULTIPLE = 16


def padded(width: int) -> int:
    """The next multiple of 16."""
    return -(-width // MULTIPLE) * MULTIPLE


def with_zero_columns(x: Tensor) -> Tensor:
    """(B, N) to (B, padded(N)), zeros behind; the same tensor when N is a multiple already."""
    extra = padded(x.shape[1]) - x.shape[1]
    return pad(x, (0, extra)) if extra else x


class PaddedLinear(nn.Linear):
    """A linear layer of (B, in_features) that also takes its input with columns of zeros behind."""

    def forward(self, input: Tensor) -> Tensor:
        extra = input.shape[1] - self.in_features
        return linear(input, pad(self.weight, (0, extra)) if extra else self.weight, self.bias)
