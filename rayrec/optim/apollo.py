"""APOLLO and APOLLO-Mini: AdamW's adaptive step sizes at SGD-like memory.

Each matrix keeps Adam moments of a random low-rank projection of its gradient; how much Adam would stretch a channel of the
projected gradient (or all of it, Mini) is how much the full gradient is stretched. Sources: Zhu et al. 2024, arXiv 2412.05270;
the norm-growth limiter is that of Fira (Chen et al. 2024, arXiv 2410.01623).

What is notable:
- small matrices of one shape are stacked and updated at once; large ones stay where they are, are never copied, and are
  worked on a few at a time, so that a gradient comes from memory once and from the cache afterwards;
- no host synchronization in a step, and no update of all matrices at once: the limiter works on norms of channels;
- projections come from seeds (``rayrec.optim.random_projection``): the state is moments, one norm a matrix and step counts,
  all plain tensors, loadable with ``weights_only=True`` and bit-exact in the middle of a projection period;
- the arithmetic (``rayrec.optim.apollo_update``) is functions of tensors only, which ``compiler=torch.compile`` compiles; for
  float32 on the CPU there is a kernel of it (``rayrec.optim.apollo_kernel``), which reads a gradient from memory once;
- one object also runs AdamW (vectors, heads) and row-wise Adagrad (embedding tables with sparse gradients).
"""

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rayrec.optim.apollo_groups import check_group
from rayrec.optim.apollo_kernel import cpu_kernel, is_for_kernel, update_by_kernel
from rayrec.optim.apollo_stacks import MatrixStack, StepCounts
from rayrec.optim.apollo_update import (
    ScaleType,
    UpdateSettings,
    step_sizes,
    update_adamw,
    update_in_place,
    update_stacked,
)
from rayrec.optim.eager import EagerOptimizer
from rayrec.optim.random_projection import Draw, ProjectionCache, draw_projection
from rayrec.optim.rowwise_adagrad import rowwise_adagrad_update

NonFinite = Literal["propagate", "skip", "raise"]
Compiler = Callable[[Callable[..., None]], Callable[..., None]]


class Apollo(EagerOptimizer):
    """APOLLO on matrices, AdamW and row-wise Adagrad on the rest; make the groups with ``apollo_param_groups``.

    A group's ``kind`` says what updates it:

    "apollo" (default): parameters of two or more dimensions. Conv weights (out, in, ...) are flattened to (out, in * ...).
        With ``batch_dims=1`` the first dimension counts matrices, as in stacked per-task towers (tasks, in, out): each has its
        own scaling and limiter, exactly as if it were a parameter of its own.
    "adamw": ``torch.optim.AdamW``'s update.
    "rowwise_adagrad": (rows, dim) tables with sparse or dense gradients.

    rank: rows r of the projection, or a float in (0, 1]: that share of each matrix's smaller dimension.
    scale_type: "channel" (APOLLO): one scaling a channel of the larger dimension; "tensor" (Mini): one a matrix.
    scale: the update is multiplied by sqrt(scale); 1 for APOLLO and 128 for Mini in the paper.
    projection_period: steps until a new projection is drawn (T, 200 in the paper); seed: where projections come from.
    norm_growth: an update's norm is at most this many times the one before; None switches the limiter off. An all-zero
        gradient leaves the remembered norm as it is (the reference would be stuck near zero for thousands of steps).
    weight_decay: decoupled; on matrices after the update, W <- (1 - lr * weight_decay) (W - update).
    state_dtype: dtype of moments and norms; None = that of the parameter. torch.float32 is right for bfloat16 parameters.
    nonfinite: what a NaN or infinite gradient does: "propagate" (as other optimizers), "skip" the whole step, or "raise" a
        FloatingPointError. The latter two read every gradient once more and one flag on the host.
    draw: replaces the random projection, for experiments.
    compiler: ``torch.compile``, or it with options: the update of each shape is compiled at its first step.
    cpu_kernel: contiguous float32 matrices on the CPU are updated by ``rayrec.optim.apollo_kernel``, and tables by row-wise
        Adagrad's kernel, which a C++ compiler (CXX, else g++) builds at the first step; without one a line on stderr says so and
        they step eagerly. ``compiler`` is for the rest.

    State of an (m, n) matrix: 2 r max(m, n) numbers and one norm. Raises ValueError when a group does not fit its parameters.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0, rank: int | float = 0.25, scale_type: ScaleType = "channel", scale: float = 1.0,
        projection_period: int = 200, seed: int = 0, norm_growth: float | None = 1.01, batch_dims: int = 0,
        state_dtype: torch.dtype | None = None, nonfinite: NonFinite = "propagate", draw: Draw = draw_projection,
        compiler: Compiler | None = None, cpu_kernel: bool = False,
    ) -> None:  # fmt: skip
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"nonfinite must be propagate, skip or raise, not {nonfinite!r}")
        self.state_dtype, self.nonfinite, self.compiler = state_dtype, nonfinite, compiler
        self.cpu_kernel = cpu_kernel
        self.projections = ProjectionCache(draw)
        self._compiled: dict[tuple[int, int], Callable[..., None]] = {}  # by group and stack
        self._forget()
        defaults = {
            "kind": "apollo", "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "rank": rank,
            "scale_type": scale_type, "scale": scale, "projection_period": projection_period, "seed": seed,
            "norm_growth": norm_growth, "batch_dims": batch_dims,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, but checks at once that the group's settings fit its parameters."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' gradients; parameters without one are left alone and their step does not count."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.nonfinite != "propagate" and not self._finite():
            if self.nonfinite == "raise":
                raise FloatingPointError("a gradient holds NaN or infinite values")
            return loss
        for index, group in enumerate(self.param_groups):
            if group["kind"] == "apollo":
                self._step_matrices(index, group)
            elif group["kind"] == "adamw":
                self._step_adamw(index, group)
            else:
                self._step_tables(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bit-exact: unlike torch's, it keeps the dtype of the saved moments when parameters have another one."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][key] = value.to(parameter.device, copy=True)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep beside groups and state."""
        own = {name: getattr(self, name) for name in ("state_dtype", "nonfinite", "compiler", "cpu_kernel")}
        return {**super().__getstate__(), **own, "projections": ProjectionCache(self.projections.draw)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compiled = {}
        self._forget()

    def _forget(self) -> None:
        """Drop what is derived from groups and state; the next step makes it again."""
        self._stacks: dict[int, list[MatrixStack]] = {}
        self._counts: dict[int, list[StepCounts]] = {}

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        return self.state_dtype or parameter.dtype

    def _finite(self) -> bool:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        values = [v for v in (g._values() if g.is_sparse else g for g in gradients) if v.numel()]
        if not values:
            return True
        norms = torch.stack([norm.float().to(values[0].device) for norm in torch._foreach_norm(values, float("inf"))])
        return bool(norms.isfinite().all())

    def _step_matrices(self, index: int, group: dict[str, Any]) -> None:
        stacks = self._stacks.get(index)
        if stacks is None or not all(stack.current(self.state) for stack in stacks):
            stacks = self._stacks[index] = [
                MatrixStack.make(params, group, self._dtype(params[0]), self.state)
                for params in _alike(group["params"], by_shape=True)
            ]
        for number, stack in enumerate(stacks):
            periods = stack.members_by_period(group["projection_period"])
            stack.steps.advance([i for members in periods.values() for i in members])
            if not periods:
                continue
            sizes, decay = self._sizes(group, stack)
            for period, members in periods.items():
                update = self._updater(group, stack, (index, number), period)
                for start in range(0, len(members), stack.chunk):
                    self._update(stack, members[start : start + stack.chunk], sizes, decay, update)

    def _sizes(self, group: dict[str, Any], stack: MatrixStack) -> tuple[Tensor, Tensor | None]:
        """What multiplies each matrix's limited direction (k,), and the decay, () or None."""
        dtype = torch.promote_types(self._dtype(stack.params[0]), torch.float32)
        decay = group["lr"] * group["weight_decay"]
        beta1, beta2 = group["betas"]
        rate = group["lr"] * group["scale"] ** 0.5 * (1.0 - decay)
        sizes = step_sizes(stack.steps.counts, rate, beta1, beta2, dtype)
        if stack.matrices > 1:
            sizes = sizes.repeat_interleave(stack.matrices)
        return sizes, torch.full((), decay, dtype=dtype, device=sizes.device) if decay else None

    def _updater(
        self, group: dict[str, Any], stack: MatrixStack, key: tuple[int, int], period: int
    ) -> Callable[..., None]:
        """The update of a stack's members in a projection period, waiting for their tensors."""
        like, smaller = stack.params[0], min(stack.rows, stack.columns)
        projection = self.projections.get(group["seed"], period, stack.rank, smaller, like)
        by_kernel = self.cpu_kernel and is_for_kernel(stack.params, stack.exp_avg)
        kernel = cpu_kernel() if by_kernel else None
        compiler = None if by_kernel else self.compiler
        late = stack.late if compiler is None else None
        settings = UpdateSettings(
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            scale_type=group["scale_type"],
            norm_growth=group["norm_growth"],
            tall=stack.tall,
        )
        shape = (stack.rows, stack.columns)

        def update(params: list[Tensor], gradients: list[Tensor], *rest: Any) -> None:
            if kernel is not None:
                update_by_kernel(
                    kernel, params, gradients, projection, *rest, shape=shape, stacked=stack.stacked, settings=settings
                )
            elif stack.stacked:
                stacked = self._compile(update_stacked, key, compiler)
                stacked(params, gradients, projection, *rest, late, shape, settings)
            else:
                in_place = self._compile(update_in_place, key, compiler)
                matrices = (stack.matrices, *shape)
                in_place(params, gradients, projection, *rest, late, matrices, stack.scales_shape, settings)

        return update

    def _update(
        self,
        stack: MatrixStack,
        members: Sequence[int],
        sizes: Tensor,
        decay: Tensor | None,
        update: Callable[..., None],
    ) -> None:
        """One step of some parameters of one shape: k = len(members) * stack.matrices matrices."""
        params = [stack.params[i] for i in members]
        where = stack.place(members)
        exp_avg, exp_avg_sq, norms = stack.exp_avg[where], stack.exp_avg_sq[where], stack.norms[where]
        update(params, [_gradient(p) for p in params], exp_avg, exp_avg_sq, norms, sizes[where], decay)
        if not isinstance(where, slice):
            stack.exp_avg[where], stack.exp_avg_sq[where], stack.norms[where] = exp_avg, exp_avg_sq, norms

    def _compile(
        self, update: Callable[..., None], key: tuple[int, int], compiler: Compiler | None
    ) -> Callable[..., None]:
        if compiler is None:
            return update
        if key not in self._compiled:
            assert isinstance(update, FunctionType)
            # A code object of its own for each shape: torch limits the number of compilations of one.
            own = FunctionType(update.__code__.replace(), update.__globals__, update.__name__)
            self._compiled[key] = compiler(own)
        return self._compiled[key]

    def _step_adamw(self, index: int, group: dict[str, Any]) -> None:
        counts = self._counts.get(index)
        if counts is None or not all(steps.current(self.state) for steps in counts):
            counts = self._counts[index] = [
                StepCounts(params, self.state) for params in _alike(group["params"], by_shape=False)
            ]
        for steps in counts:
            members = [i for i, p in enumerate(steps.params) if p.grad is not None]
            if not members:
                continue
            steps.advance(members)
            present = [steps.params[i] for i in members]
            for parameter in present:
                state = self.state[parameter]
                for key in ("exp_avg", "exp_avg_sq"):
                    if key not in state:
                        state[key] = torch.zeros_like(parameter, dtype=self._dtype(parameter))
            states = [self.state[p] for p in present]
            update_adamw(
                present, [_gradient(p) for p in present], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                [steps.views[i] for i in members], group["lr"], group["weight_decay"], group["betas"], group["eps"],
            )  # fmt: skip

    def _step_tables(self, group: dict[str, Any]) -> None:
        for table in group["params"]:
            if table.grad is not None:
                state = self.state[table]
                if not state:
                    state["sum"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
                rowwise_adagrad_update(
                    table,
                    state["sum"],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    by_kernel=self.cpu_kernel,
                )


def _alike(params: Iterable[Tensor], *, by_shape: bool) -> list[list[Tensor]]:
    """The parameters grouped by dtype, device and perhaps shape, in order."""
    alike: dict[tuple[object, ...], list[Tensor]] = {}
    for parameter in params:
        shape = parameter.shape if by_shape else ()
        alike.setdefault((shape, parameter.dtype, parameter.device), []).append(parameter)
    return list(alike.values())


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None or gradient.is_sparse:
        raise ValueError(f"a {tuple(parameter.shape)} table has a sparse gradient; put it into a rowwise_adagrad group")
    return gradient
