"""The compiler of an optimizer's updates, which runs them as they are where there is none."""

import sys
from collections.abc import Callable
from typing import Any

import torch

_told: set[str] = set()


def compiled_or_plain(update: Callable[..., None]) -> Callable[..., None]:
    """``update`` by ``torch.compile``, compiled at its first call for each shape of its arguments.

    Where that fails (torch finds no C++ compiler, for one) stderr is told in one line, once, and the update runs as it is.
    """
    compiled, running = torch.compile(update, fullgraph=True, dynamic=False), True

    def run(*arguments: Any) -> None:
        nonlocal running
        if running:
            from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # seconds of imports

            try:
                compiled(*arguments)
                return
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:  # nothing was updated yet
                running = False
                tell_uncompiled(str(getattr(error, "inner_exception", error)))  # what a backend raised
        update(*arguments)

    return run


def tell_uncompiled(cause: str) -> None:
    """Say the first line of ``cause`` on stderr, once in a process."""
    why = next((line for line in cause.splitlines() if line.strip()), "no reason given")
    if why not in _told:
        _told.add(why)
        print(f"the optimizer's update is not compiled ({why}); it runs uncompiled", file=sys.stderr, flush=True)
