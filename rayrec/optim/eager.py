"""Optimizers without torch's compiler, which torch imports as soon as an optimizer is made: a second and a half, and 70 MB.

It does so for marks on four of ``Optimizer``'s methods, and on the steps of its own optimizers, that mean something only where a
compiled function calls them. Here none does, so they are taken without their marks.
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class EagerOptimizer(Optimizer):
    """torch's base of optimizers, for steps that are not called from compiled functions."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """torch's AdamW, bit for bit; not ``differentiable``."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class Muon(EagerOptimizer, torch.optim.Muon):
    """torch's Muon, whose step has no mark."""
