"""A stack of linear layers with ReLU and dropout."""

from collections.abc import Sequence

from torch import nn

from rayrec.models.layers.padded_linear import PaddedLinear


def feed_forward(width: int, sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """(B, width) to (B, sizes[-1]): each layer linear, ReLU, dropout; the identity when ``sizes`` is empty.

    The input may have the columns of ``padded_linear.with_padding`` behind.
    """
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(width, size) if layers else PaddedLinear(width, size), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)
