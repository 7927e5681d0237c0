"""Balancing tasks that share a trunk: MultiBalance and its peers, as one step between representation and towers.

    inputs = balancer.branch(h)                                   (B, D) -> (T, B, D), slot t for the tower of task t
    losses = ...                                                  (T,) of the logits that the towers make of ``inputs``
    total = balancer.total(losses, h, inputs, model.parameters())
    total.backward()

One ordinary backward pass: every tower gets its own task's plain gradient, the trunk the balanced combination of all. At the
representation (MultiBalance, arXiv 2411.11871; MGDA-UB) that costs little more than the sum of the losses; on all shared
parameters, the classical way, it takes T backward passes through the trunk and is here to be compared with.

Which weights: ``rayrec.methods.gram_weights``. A new balancer is one function of a Gram matrix there, its name in
``BalancingConfig.method``, one case in ``Balancer._weights``, and one test.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrec.methods import gram_weights
from rayrec.methods.loss_weights import gradnorm_step, uncertainty_step
from rayrec.methods.shared_gradients import SharedGradients

_STATIONARY = (
    1e-3  # a combination shorter than that share of its parts is noise: float32 Gram entries cancel to about 3e-4
)


@dataclass(frozen=True)
class BalancingConfig:
    """How the gradients of tasks are combined in what they share.

    method: "multibalance"; "uniform" or "fixed" (``shares``, one a task in schema order) weights; "mgda" (at the representation:
    MGDA-UB), "pcgrad", "cagrad", "nash_mtl"; or a method that weighs losses: "gradnorm", "uncertainty".
    level: gradients with respect to the shared representation, or to all shared parameters (T backward passes).
    normalize: divide each task's gradient by the running mean of its norm. None = as in the method's paper (only multibalance).
    decay: beta of the running means of norms and Gram matrix; None = 0.99 for multibalance, 0 (this batch) for the others.
    statistic: what runs: the Gram matrix of the per-row gradients; or the gradients summed over rows, (T, D), whose Gram it is.
    solver: of multibalance: ``solver_steps`` projected gradient steps from the last weights, or the exact minimum.
    ridge: rho, added to the diagonal relative to its mean.
    rescale: bring the combination to the norm of the plain sum of gradients, so that the learning rate keeps its meaning.
    conflict_aversion: c of cagrad. asymmetry: alpha of gradnorm. learning_rate: of the loss weights of gradnorm and uncertainty.
    seed: of the random orders of pcgrad.
    """

    method: Literal[
        "multibalance", "uniform", "fixed", "mgda", "pcgrad", "cagrad", "nash_mtl", "gradnorm", "uncertainty"
    ] = "multibalance"
    level: Literal["representation", "parameters"] = "representation"
    normalize: bool | None = None
    decay: float | None = None
    statistic: Literal["gram", "summed_gradient"] = "gram"
    solver: Literal["projected_gradient", "exact"] = "projected_gradient"
    solver_steps: int = 20
    ridge: float = 1e-3
    rescale: bool = True
    shares: tuple[float, ...] = ()
    conflict_aversion: float = 0.5
    asymmetry: float = 1.5
    learning_rate: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps must be at least 1, not {self.solver_steps}")
        for name in ("ridge", "conflict_aversion", "asymmetry", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if self.level == "parameters" and self.statistic == "summed_gradient":
            raise ValueError("statistic summed_gradient belongs to level representation")
        if (self.method == "fixed") != bool(self.shares) or any(not share >= 0 for share in self.shares):
            raise ValueError("shares: one number >= 0 a task for method fixed, and none for the others")

    @property
    def weighs_losses(self) -> bool:
        """Whether the method multiplies the losses, so that towers feel it too."""
        return self.method in ("gradnorm", "uncertainty")


class Balancer(nn.Module):
    """The running state of a balancing method for T tasks; see the module for its use.

    Its buffers are part of training, not of the model: they belong into checkpoints and not into bundles, so it is no submodule
    of the model. Under torch.distributed all workers hold the same state: Gram matrices are averaged inside the backward pass,
    on the assumption that each worker's losses are scaled so that the mean of the workers' gradients is the joint gradient.

    width: D of the representation, needed by statistic "summed_gradient" only.
    Buffers: ``weights`` (T,) of the last step; ``norms`` (T,) and ``gram`` (T, T), the running means, ``seen`` (T, T), the number
    of batches they are over; ``loss_weights`` and ``first_losses`` (T,) of methods that weigh losses; ``summed`` (T, D).
    """

    weights: Tensor
    norms: Tensor
    gram: Tensor
    seen: Tensor
    steps: Tensor
    loss_weights: Tensor
    first_losses: Tensor
    summed: Tensor

    def __init__(self, config: BalancingConfig, tasks: int, width: int = 0) -> None:
        super().__init__()
        if config.method == "fixed" and len(config.shares) != tasks:
            raise ValueError(f"shares has {len(config.shares)} numbers, but there are {tasks} tasks")
        if config.statistic == "summed_gradient" and width < 1:
            raise ValueError("statistic summed_gradient needs the width of the representation")
        self.config = config
        self.tasks = tasks
        multibalance = config.method == "multibalance"
        self._combines = config.method not in ("uniform", "uncertainty")  # else: the plain backward pass
        self.normalize = multibalance if config.normalize is None else config.normalize
        self.decay = (0.99 if multibalance else 0.0) if config.decay is None else config.decay
        self.register_buffer("weights", torch.full((tasks,), 1.0 / tasks))
        self.register_buffer("norms", torch.zeros(tasks))
        self.register_buffer("gram", torch.zeros(tasks, tasks))
        self.register_buffer("seen", torch.zeros(tasks, tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if config.weighs_losses:
            self.register_buffer("loss_weights", torch.ones(tasks))
            self.register_buffer("first_losses", torch.zeros(tasks))
        if config.statistic == "summed_gradient":
            self.register_buffer("summed", torch.zeros(tasks, width))

    @property
    def shares(self) -> Tensor:
        """(T,) the weights of the last step, for the log: of the losses where the method weighs them, else of the gradients."""
        return (self.loss_weights if self.config.weighs_losses else self.weights).clone()

    def branch(self, h: Tensor) -> Tensor:
        """One view of the representation h (B, D) for each task's tower: (T, B, D), no copy; h itself for plain gradients."""
        if not self._combines:
            return h
        if self.config.level == "parameters":
            return h.detach().expand(self.tasks, *h.shape).requires_grad_()
        branches: Tensor = _Branch.apply(h, self)
        return branches

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        """What to differentiate: () of the losses (T,) that were computed from ``inputs = branch(h)``. Once a step.

        parameters: for level "parameters", the model's (those that h does not depend on are left alone).
        """
        if self.config.weighs_losses:
            losses = self._weigh(losses)
        if self.config.level == "representation" or not self._combines or not losses.requires_grad:
            return losses.sum()
        (at_h,) = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)  # (T, B, D)
        gradients = SharedGradients.of(h, at_h, [p for p in parameters if p.requires_grad])
        # A linear function of the parameters whose gradient is the combination: so it reaches them in the one backward pass
        # that also trains the towers, and DDP's hooks see it. Its value is taken off again.
        carrier = gradients.carrier(self.coefficients(gradients.gram()))
        return losses.sum() + (carrier - carrier.detach())

    @torch.no_grad()
    def coefficients(self, gram: Tensor, summed: Tensor | None = None) -> Tensor:
        """Take in one batch's Gram matrix (T, T) of raw gradients; give the (T,) factors of raw gradients in the combination.

        summed: the gradients summed over rows (T, D), for that statistic. A task without gradient in this batch (its label is
        nowhere observed) leaves the running means alone and has no say.
        """
        self.steps += 1
        if self.config.method == "gradnorm":
            gradnorm_step(
                self.loss_weights,
                norms=gram.diagonal().sqrt(),
                progress=self._losses / self.first_losses,
                asymmetry=self.config.asymmetry,
                learning_rate=self.config.learning_rate,
            )
        if self.tasks == 1 or self.config.weighs_losses:
            return torch.ones_like(gram[0])
        present = gram.diagonal() > 0.0
        self._track(gram, present, summed)
        self.weights.copy_(self._weights(present))
        factors = self.weights / self._divisors() if self.normalize else self.weights.clone()
        if not self.config.rescale:
            return factors
        plain = gram.sum().clamp_min(0.0).sqrt()
        length = (factors @ gram @ factors).clamp_min(0.0).sqrt()
        parts = factors @ gram.diagonal().sqrt()
        return factors * (plain / length.maximum(_STATIONARY * parts).clamp_min(torch.finfo(gram.dtype).tiny))

    def _track(self, gram: Tensor, present: Tensor, summed: Tensor | None) -> None:
        """Running means that start as plain means: the rate is 1 / count until that falls to 1 - decay."""
        both = present & present.unsqueeze(1)
        rate = both / (self.seen + 1.0).clamp_max(1.0 / (1.0 - self.decay))
        self.seen += both
        self.norms.lerp_(gram.diagonal().sqrt(), rate.diagonal())
        divisors = self._divisors() if self.normalize else torch.ones_like(self.norms)
        if summed is None:
            self.gram.lerp_(gram / torch.outer(divisors, divisors), rate)
        else:
            self.summed.lerp_(summed / divisors.unsqueeze(1), rate.diagonal().unsqueeze(1))
            self.gram.copy_(self.summed @ self.summed.T)

    def _divisors(self) -> Tensor:
        return torch.where(self.norms > 0.0, self.norms, 1.0)

    def _weights(self, present: Tensor) -> Tensor:
        """(T,) weights of the tracked gradients."""
        config = self.config
        if config.method == "fixed":
            return torch.tensor(config.shares).to(self.weights)
        ridge = config.ridge * self.gram.diagonal().mean()
        if config.method == "multibalance" and config.solver == "projected_gradient":
            ridged = self.gram + ridge * torch.eye(self.tasks, device=self.gram.device)
            return gram_weights.min_norm_step(ridged, self.weights, config.solver_steps, present)
        tasks = present.nonzero().squeeze(1)
        weights = torch.zeros_like(self.weights)
        if len(tasks):
            weights[tasks] = self._host_weights(self.gram[tasks][:, tasks], float(ridge)).to(weights)
        return weights

    def _host_weights(self, gram: Tensor, ridge: float) -> Tensor:
        config = self.config
        match config.method:
            case "multibalance":
                return gram_weights.min_norm(gram.cpu() + ridge * torch.eye(len(gram)))
            case "mgda":
                return gram_weights.min_norm(gram)
            case "pcgrad":
                orders = gram_weights.random_orders(len(gram), config.seed + int(self.steps))
                return gram_weights.pcgrad(gram, orders)
            case "cagrad":
                return gram_weights.cagrad(gram, config.conflict_aversion)
            case "nash_mtl":
                return gram_weights.nash_mtl(gram)
            case _:
                return gram_weights.uniform(gram)

    def _weigh(self, losses: Tensor) -> Tensor:
        """The weighted losses (T,), and the joint values of this batch kept for the update of the weights."""
        with torch.no_grad():
            self._losses = _averaged(losses.detach().clone())
            self.first_losses.copy_(torch.where(self.first_losses > 0.0, self.first_losses, self._losses))
            factors = self.loss_weights.clone()
            if self.config.method == "uncertainty":
                uncertainty_step(self.loss_weights, self._losses, self.config.learning_rate)
        return losses * factors


class _Branch(torch.autograd.Function):
    """Forward: h (B, D) seen T times, (T, B, D). Backward: the T gradients that come back, combined as the balancer says."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, balancer: Balancer) -> Tensor:
        ctx.balancer = balancer
        return h.expand(balancer.tasks, *h.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        balancer: Balancer = ctx.balancer
        rows = gradients.reshape(balancer.tasks, -1).float()  # (T, B * D)
        gram = row_gram(rows)
        if balancer.config.statistic == "summed_gradient":
            summed = gradients.float().sum(1)
            joint = _averaged(torch.cat([gram.flatten() / _world_size(), summed.flatten()]))
            gram, summed = joint[: gram.numel()].view_as(gram), joint[gram.numel() :].view_as(summed)
            factors = balancer.coefficients(gram, summed)
        else:
            factors = balancer.coefficients(_averaged(gram / _world_size()))
        return (factors @ rows).view(gradients.shape[1:]).to(gradients.dtype), None


def row_gram(rows: Tensor) -> Tensor:
    """rows (T, P) with T small and P large to their Gram matrix (T, T), in pieces that keep all threads at work."""
    pieces = 16
    even = rows.shape[1] - rows.shape[1] % pieces
    pieced = rows[:, :even].unflatten(1, (pieces, -1)).transpose(0, 1)  # (16, T, P / 16)
    rest = rows[:, even:]
    return torch.bmm(pieced, pieced.transpose(1, 2)).sum(0) + rest @ rest.T


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _averaged(tensor: Tensor) -> Tensor:
    """The mean over workers, in place."""
    if _world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= _world_size()
    return tensor
