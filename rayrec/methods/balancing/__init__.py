"""Balancing tasks that share a trunk: MultiBalance and its peers, one file a method, as one step between trunk and towers.

    balancer = config.balancer(tasks, width)                      config: one of METHODS
    inputs = balancer.branch(h)                                   (B, D) -> (T, B, D), slot t for the tower of task t
    losses = ...                                                  (T,) of the logits that the towers make of ``inputs``
    total = balancer.total(losses, h, inputs, model.parameters())
    total.backward()

One ordinary backward pass: every tower gets its own task's plain gradient, the trunk the balanced combination of all. At the
representation (MultiBalance, arXiv 2411.11871; MGDA-UB) that costs little more than the sum of the losses; on all shared
parameters, the classical way, it takes T backward passes through the trunk and is here to be compared with.

A new balancer is one file in this folder: a frozen config with its own ``method``, and what it makes of the gradients.
"""

import pkgutil
from importlib import import_module

from rayrec.methods.balancing.balancer import Balancer, Balancing


def find_methods() -> tuple[type[Balancing], ...]:
    """The config class of every balancer in this folder, by ``method``. Raises ValueError when two have the same."""
    found: dict[str, type[Balancing]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(import_module(module.name)).values():
            method = getattr(value, "method", None)
            if not (isinstance(value, type) and issubclass(value, Balancing) and isinstance(method, str)):
                continue
            if found.setdefault(method, value) is not value:
                raise ValueError(f"two balancers are called {method!r}: {found[method].__name__}, {value.__name__}")
    return tuple(found[method] for method in sorted(found))


METHODS = find_methods()

__all__ = ["METHODS", "Balancer", "Balancing", "find_methods"]
