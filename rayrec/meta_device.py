"""Models that are only described: shapes and dtypes without memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset((Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_))


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Modules made here lie on torch's "meta" device, and no initial values are drawn for them: there are none to keep, and torch
    would load its compiler to draw them, 2 s of CPU in each process that only reads a bundle. The same holds for most operations
    on tensors there: a constructor that calculates does so with ``device="cpu"``, or outside of torch."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Random fills leave a tensor of the meta device as it is, and so do those functions of torch.nn.init that ask a mode."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)
