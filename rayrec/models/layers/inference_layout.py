"""What each forward pass would do to weights again, done once for a model that only answers from here on."""

import torch
from torch import nn
from torch.nn.functional import pad

from rayrec.models.layers.interaction import CrossNetwork
from rayrec.models.layers.padded_linear import PaddedLinear, padded


def lay_out_for_inference(model: nn.Module) -> None:
    """Put zeros behind the weights of padded layers, and all matrices in memory as products read them (a third of the time for
    the few rows of a request). In place; the model is not to be trained or saved afterwards.

    Inputs of padded layers must come with the columns of ``with_padding``, as a ``Ranker`` gives them.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, CrossNetwork) and module.rank is None:
                extra = padded(module.width) - module.width
                module.width += extra
                for layer in module.layers:
                    _pad(layer, extra, extra)
            elif isinstance(module, nn.Linear):
                _pad(module, padded(module.in_features) - module.in_features if isinstance(module, PaddedLinear) else 0)
                module.weight.data = module.weight.t().contiguous().t()


def _pad(layer: nn.Module, columns: int, rows: int = 0) -> None:
    assert isinstance(layer, nn.Linear)
    layer.weight.data = pad(layer.weight, (0, columns, 0, rows))
    layer.in_features += columns
    layer.out_features += rows
    if rows:
        layer.bias.data = pad(layer.bias, (0, rows))
