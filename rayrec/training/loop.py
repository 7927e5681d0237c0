"""The one worker loop that trains every task: in a Ray Train worker, in a Tune trial, or in a plain process.

Each step: batches -> task.loss -> backward -> clip -> optimizer -> schedule. At every evaluation and every
``checkpoint_every_steps`` the whole state is captured, so that a killed run goes on with the very next batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from rayrec.data.log.streams import StreamPosition
from rayrec.errors import DivergedError
from rayrec.freed_memory import freed_memory_kept
from rayrec.optim import OptimizerConfig, build_optimizer, clip_gradients
from rayrec.training.checkpoint import (
    CurvePoint,
    Progress,
    TrainingState,
    copy_weights,
    read_checkpoint,
    write_checkpoint,
)
from rayrec.training.precision import Precision, has_bf16_units, runs_in_bf16
from rayrec.training.reporters import Reporter
from rayrec.training.task import COUNTS, Evaluation, Mergeable, Task
from rayrec.training.worker import B, EvaluationStream, TrainingData, TrainingStream, Worker
from rayrec.typed_json import ConfigError, reads_earlier, without

OBJECTIVE = "objective"  # the reported metric: the task's objective at the best evaluation so far


@reads_earlier(without("threads", "progress_seconds"))
@dataclass(frozen=True)
class LoopConfig:
    """How long and how carefully."""

    epochs: int = 3
    """Passes over the labeled log."""
    seed: int = 0
    """Of the model's first weights and of dropout."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate afterwards: constant, or cosine / linear decay to zero at the end."""
    gradient_clip: float | None = 10.0
    """Largest global gradient norm; None = no clipping."""
    accumulate_batches: int = 1
    """Batches whose mean gradient makes one step (fewer at the end of an epoch); ``steps`` are updates."""
    evaluate_every_steps: int | None = None
    """None = at the end of each epoch."""
    checkpoint_every_steps: int | None = None
    """Checkpoints between evaluations; None = only at evaluations."""
    patience: int | None = 2
    """Stop after that many evaluations without a gain of ``min_gain``; None = never stop early."""
    min_gain: float = 0.0
    """How much better an evaluation must be to count as a gain."""
    keep: Literal["best", "last"] = "best"
    """The weights a run ends with: of its best evaluation, or the last ones (then nothing stops early): where the
    validation split is not what the model will serve, as for a student of UKDSL, whose validation rows are
    impressions."""
    precision: Precision = "auto"
    """Bits of a product: "bfloat16" runs matrix products in bf16 (autocast), which pays for large ones on GPUs and on CPUs with
    units for it (measured: AMX); "auto" does so on GPUs that have them. Evaluations run in float32, as bundles answer."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate_batches", "evaluate_every_steps", "checkpoint_every_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, not {self.warmup_steps}")
        if self.gradient_clip is not None and not 0 < self.gradient_clip < math.inf:
            raise ConfigError(f"gradient_clip must be finite and above 0, or None, not {self.gradient_clip}")
        if not 0 <= self.min_gain < math.inf:
            raise ConfigError(f"min_gain must be finite and at least 0, not {self.min_gain}")


Say = Callable[[str], None]
MetricLog = Callable[[Mapping[str, float | None], int], None]


def run_training(
    task: Task[B, Any],
    data: TrainingData[B],
    config: LoopConfig,
    optimizer_config: OptimizerConfig,
    reporter: Reporter,
    *,
    worker: Worker | None = None,
    log_metrics: MetricLog = lambda metrics, step: None,
    say: Say = lambda text: None,
) -> Progress:
    """Train to the end (or to early stopping) from the reporter's newest checkpoint, or from scratch.

    Afterwards the best weights have been evaluated on every split but train; the last checkpoint holds them as its best.
    """
    loop = _Loop(task, data, config, optimizer_config, reporter, worker or Worker(), log_metrics, say)
    newest = reporter.latest()
    if newest is not None:
        loop.restore(newest)
    progress = loop.state.progress
    if progress.finished:
        return progress
    check_workers(progress, loop.worker.size, "this run")
    loop.state.progress = progress = replace(progress, workers=loop.worker.size)
    position = StreamPosition(progress.epoch, progress.step_in_epoch)
    if loop.leads and loop.bf16 and not has_bf16_units(loop.worker.device):
        say("precision: this machine has no units for bfloat16 products, which then take longer than float32's")
    if progress.step and loop.leads:
        say(f"going on from step {progress.step:,} (epoch {position.epoch + 1}, batch {position.step:,})")
    with freed_memory_kept(loop.worker.options.keep_freed_memory and loop.worker.device.type == "cpu"):
        if not loop.patience_exhausted:  # else it was killed between its last evaluation and its end
            with (
                closing(data.open_training(position, config.epochs)) as stream,
                closing(loop.open_validation(loop.updates(stream))) as validation,
            ):
                loop.train(stream, validation)
        return loop.finish()


def check_workers(progress: Progress, workers: int, what: str) -> None:
    """A place in an epoch is counted by the workers that share it: another number would read rows twice or never.

    Raises ConfigError.
    """
    if not progress.finished and progress.step and progress.workers not in (0, workers):
        raise ConfigError(
            f"{what} was trained by {progress.workers} {'worker' if progress.workers == 1 else 'workers'} up to step "
            f"{progress.step:,} and can go on with as many only, not {workers}: set --scaling.workers {progress.workers}, or "
            "choose another name"
        )


def finish_training(
    task: Task[B, Any],
    data: TrainingData[B],
    config: LoopConfig,
    optimizer_config: OptimizerConfig,
    checkpoint: Path,
    reporter: Reporter,
) -> Progress:
    """End a run that a scheduler stopped early, here and now: evaluate its best weights and write its last checkpoint."""
    loop = _Loop(
        task, data, config, optimizer_config, reporter, Worker(), lambda metrics, step: None, lambda text: None
    )
    loop.restore(checkpoint)
    return loop.finish()


def learning_rate_factor(config: LoopConfig, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: warm-up from 1/warmup_steps to 1, then the schedule."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
        return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def updates_of(stream: TrainingStream[B], accumulate: int) -> Iterator[list[tuple[B, B | None]]]:
    """The batches of each update: ``accumulate`` of them, fewer at the end of the epoch, which no update spans."""
    update = []
    for pair in stream.epoch_batches():
        update.append(pair)
        if len(update) == accumulate or stream.position.step == 0:
            yield update
            update = []


def state_rate(state: TrainingState) -> float:
    """The learning rate of the first group."""
    return float(state.optimizer.param_groups[0]["lr"])


def reduce_metrics(metrics: Mergeable, worker: Worker) -> None:
    """Sum the states of all workers, in place."""
    if worker.size > 1:
        total = metrics.state().to(worker.device)
        dist.all_reduce(total)
        metrics.load_state(total.cpu())


class _Step(nn.Module):
    """Model and loss as one module, so that DDP sees one forward whatever parts of the model a method calls."""

    def __init__(self, task: Task[Any, Any], model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(
        self, batch: Any, unlabeled: Any, joint_sizes: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        loss = self.task.loss(self.model, batch, unlabeled, joint_sizes)
        return loss.total, loss.parts, loss.outputs


class _Loop(Generic[B]):
    def __init__(
        self, task: Task[B, Any], data: TrainingData[B], config: LoopConfig, optimizer_config: OptimizerConfig,
        reporter: Reporter, worker: Worker, log_metrics: MetricLog, say: Say,
    ) -> None:  # fmt: skip
        self.task, self.data, self.config, self.reporter, self.worker = task, data, config, reporter, worker
        self.log_metrics, self.say = log_metrics, say
        if worker.options.threads is not None:
            torch.set_num_threads(worker.options.threads)
        torch.manual_seed(config.seed)
        model = task.build().to(worker.device)
        torch.manual_seed(config.seed * 1_000_003 + worker.rank + 1)  # workers draw different dropout masks
        optimizer = build_optimizer(model, optimizer_config, compiled=worker.options.compile_update)
        schedule = LambdaLR(optimizer, lambda step: 1.0)
        self.state = TrainingState(model, optimizer, schedule, Progress(), methods=task.methods.to(worker.device))
        self.step_module: nn.Module = _Step(task, model)
        if worker.size > 1:
            # Buffers are what the model was built with, items' tokens and texts: the same everywhere, and large.
            self.step_module = DistributedDataParallel(self.step_module, broadcast_buffers=False)
        self.bf16 = runs_in_bf16(config.precision, worker.device)

    def restore(self, checkpoint: Path) -> None:
        read_checkpoint(checkpoint, self.state, self.worker.rank)

    @property
    def leads(self) -> bool:
        return self.worker.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.worker.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def open_validation(self, steps_per_epoch: int) -> EvaluationStream[B]:
        """One stream for all evaluations to come, each a pass: a stream takes seconds to start."""
        every, epochs = self.config.evaluate_every_steps, self.config.epochs
        passes = epochs if every is None else epochs * steps_per_epoch // every + 1
        return self.data.open_evaluation("valid", passes)

    def updates(self, stream: TrainingStream[B]) -> int:
        """Steps in an epoch."""
        return -(-stream.steps_per_epoch // self.config.accumulate_batches)

    def train(self, stream: TrainingStream[B], validation: EvaluationStream[B]) -> None:
        config, state = self.config, self.state
        updates_per_epoch = self.updates(stream)
        factor = learning_rate_factor(config, config.epochs * updates_per_epoch)
        state.schedule.lr_lambdas = [factor] * len(state.optimizer.param_groups)
        for group, base in zip(state.optimizer.param_groups, state.schedule.base_lrs, strict=True):
            group["lr"] = base * factor(state.schedule.last_epoch)
        window = _Window(self.task)
        while state.progress.epoch < config.epochs:
            for batches in updates_of(stream, config.accumulate_batches):
                position = stream.position  # of the next batch
                parts = self._update(batches, window)
                state.progress = replace(
                    state.progress,
                    epoch=position.epoch,
                    step_in_epoch=position.step,
                    step=state.progress.step + 1,
                    rows=state.progress.rows + sum(len(batch) for batch, _ in batches) * self.worker.size,
                )
                self._show(parts, window, updates_per_epoch)
                at_end = position.step == 0
                every, between = config.evaluate_every_steps, config.checkpoint_every_steps
                if at_end if every is None else (state.progress.step % every == 0):
                    self._close_window(window, updates_per_epoch)
                    if self._evaluate(validation, updates_per_epoch):
                        return
                elif between is not None and state.progress.step % between == 0:
                    self._close_window(window, updates_per_epoch)
                    self._checkpoint()
        if not self._evaluated:  # the last steps count too
            if window.steps:
                self._close_window(window, updates_per_epoch)
            self._evaluate(validation, updates_per_epoch)

    def finish(self) -> Progress:
        """Evaluate the best weights on every split but train and write the last checkpoint."""
        state = self.state
        if state.best is not None:
            state.model.load_state_dict(state.best)
            state.best = None
        evaluations, calibration = dict(state.progress.evaluations), dict(state.progress.calibration)
        left_out = dict(state.progress.left_out)
        for split in self.data.splits:
            if split == "train":
                continue
            with closing(self.data.open_evaluation(split, 1)) as stream:
                evaluation = self._pass(stream.epoch_batches(), by_group=True)
            evaluations[split] = evaluation.summarize()
            if rests := evaluation.left_out():
                left_out[split] = {name: dict(values) for name, values in rests.items()}
            if curves := evaluation.calibration():
                calibration[split] = dict(curves)
        state.progress = replace(
            state.progress, finished=True, evaluations=evaluations, calibration=calibration, left_out=left_out
        )
        self._checkpoint()
        return state.progress

    def _update(self, batches: list[tuple[B, B | None]], window: "_Window[B]") -> Mapping[str, Tensor]:
        state, started, device = self.state, time.perf_counter(), self.worker.device
        state.model.train()
        here = [
            (batch.to(device, non_blocking=True), None if more is None else more.to(device, non_blocking=True))
            for batch, more in batches
        ]
        sizes = self._joint_sizes(here)
        state.optimizer.zero_grad(set_to_none=True)
        for place, (batch, unlabeled) in enumerate(here, 1):
            with self._gradient_exchange(place == len(here)):
                with self.autocast():
                    total, parts, outputs = self.step_module(batch, unlabeled, sizes)
                (total / len(here)).backward()
            window.add(parts, outputs, batch)
        if self.config.gradient_clip is not None:
            clip_gradients(state.model.parameters(), self.config.gradient_clip)
        state.optimizer.step()
        state.schedule.step()
        state.progress = replace(state.progress, seconds=state.progress.seconds + time.perf_counter() - started)
        return parts

    def _joint_sizes(self, batches: list[tuple[B, B | None]]) -> Tensor | None:
        """(P,) mean sizes over the batches of an update on all workers; None where there is but one batch."""
        if len(batches) * self.worker.size == 1:
            return None
        sizes = torch.stack([self.task.sizes(self.state.model, *pair) for pair in batches]).double().mean(0)
        sizes = sizes.to(self.worker.device)  # nccl reduces nothing that lies on a CPU
        if self.worker.size > 1:
            dist.all_reduce(sizes)
        return sizes / self.worker.size

    def _gradient_exchange(self, wanted: bool) -> AbstractContextManager[None]:
        """Workers exchange gradients once an update, at its last batch."""
        module = self.step_module
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not wanted else nullcontext()

    def _evaluate(self, validation: EvaluationStream[B], steps_per_epoch: int) -> bool:
        """One validation pass, early stopping, a checkpoint. True when training should stop."""
        state, progress = self.state, self.state.progress
        summary = self._pass(validation.epoch_batches()).summarize()
        objective = self.task.objective(summary)
        epoch = progress.step / steps_per_epoch
        points = [
            CurvePoint(progress.step, epoch, "valid", name, metric, values[metric])
            for name, values in summary.items()
            for metric in dict.fromkeys((*self.task.curve_metrics, *values))
            if metric not in COUNTS
        ]
        points.append(CurvePoint(progress.step, epoch, "valid", "", self.task.objective_name.split("/")[1], objective))
        sign = 1.0 if self.task.objective_mode == "max" else -1.0
        best = progress.best_objective
        gained = self.config.keep == "last" or best is None or sign * (objective - best) > self.config.min_gain
        if gained:
            state.best = copy_weights(state.model)
            progress = replace(progress, best_objective=objective, best_step=progress.step, evaluations_without_gain=0)
        else:
            progress = replace(progress, evaluations_without_gain=progress.evaluations_without_gain + 1)
        state.progress = replace(progress, passes=progress.passes + 1, curve=progress.curve + tuple(points))
        if self.leads:
            metrics = {f"valid/{p.task}/{p.metric}" if p.task else f"valid/{p.metric}": p.value for p in points}
            self.log_metrics(metrics, progress.step)
            mark = "kept" if gained else f"best {state.progress.best_objective:.5f} at {progress.best_step:,}"
            self.say(f"step {progress.step:,}: {self.task.objective_name} {objective:.5f} ({mark})")
        self._checkpoint()
        return self.patience_exhausted

    @property
    def patience_exhausted(self) -> bool:
        """Whether the evaluations so far end training."""
        patience = self.config.patience
        return patience is not None and self.state.progress.evaluations_without_gain >= patience

    @property
    def _evaluated(self) -> bool:
        """Whether the weights of this step have been evaluated, in this process or before a kill."""
        progress = self.state.progress
        return any(point.split == "valid" and point.step == progress.step for point in progress.curve)

    @torch.no_grad()
    def _pass(self, batches: Iterator[B], *, by_group: bool = False) -> Evaluation[B]:
        self.state.model.eval()
        evaluation = self.task.evaluation(by_group=by_group)
        for batch in batches:
            batch = batch.to(self.worker.device, non_blocking=True)
            # In float32, as a bundle answers: scores of eight bits tie, and a tie counts against the target.
            evaluation.update(self.task.predict(self.state.model, batch), batch)
        reduce_metrics(evaluation.metrics, self.worker)
        evaluation.gather()
        return evaluation

    def _close_window(self, window: "_Window[B]", steps_per_epoch: int) -> None:
        """Turn the training metrics since the last evaluation or checkpoint into curve points."""
        step = self.state.progress.step
        points: list[CurvePoint] = []
        if window.observed:
            reduce_metrics(window.evaluation.metrics, self.worker)
            points = [
                CurvePoint(step, step / steps_per_epoch, "train", name, metric, values[metric])
                for name, values in window.evaluation.summarize().items()
                for metric in self.task.curve_metrics
            ]
        parts = window.mean_parts()
        if not math.isfinite(parts.get("loss", 0.0)):
            raise DivergedError(
                f"the loss is {parts['loss']} before step {step:,}: training has diverged; lower the learning rate "
                f"(now {state_rate(self.state):g}) or gradient_clip"
            )
        points += [CurvePoint(step, step / steps_per_epoch, "train", "", n, v) for n, v in parts.items()]
        self.state.progress = replace(self.state.progress, curve=self.state.progress.curve + tuple(points))
        if self.leads:
            metrics = {f"train/{p.task}/{p.metric}" if p.task else f"train/{p.metric}": p.value for p in points}
            self.log_metrics(metrics, step)
        window.reset()

    def _checkpoint(self) -> None:
        progress = self.state.progress
        numbers = {"step": progress.step, "seconds": progress.seconds, "evaluations": progress.passes}
        if progress.best_objective is not None:
            numbers[OBJECTIVE] = progress.best_objective
        self.reporter.report(numbers, lambda folder: write_checkpoint(folder, self.state, self.worker.rank))

    def _show(self, parts: Mapping[str, Tensor], window: "_Window[B]", steps_per_epoch: int) -> None:
        progress = self.state.progress
        if window.shown_rows is None:  # what came before the first step, or a resumed one, says nothing of the speed
            window.shown, window.shown_rows = time.perf_counter(), progress.rows
        if not self.leads or time.perf_counter() - window.shown < self.worker.options.progress_seconds:
            return
        passed, rows = time.perf_counter() - window.shown, progress.rows - window.shown_rows
        window.shown, window.shown_rows = time.perf_counter(), progress.rows
        line = f"epoch {progress.step / steps_per_epoch:.2f} of {self.config.epochs}, step {progress.step:,}: "
        line += f"loss {float(parts['loss']):.5f}"
        if rows:
            left = (self.config.epochs * steps_per_epoch - progress.step) * progress.rows / progress.step
            line += f", {rows / passed:,.0f} rows/s, at most {left * passed / rows:,.0f} s left"
        self.say(line)


class _Window(Generic[B]):
    """Training metrics since the last evaluation or checkpoint; never spans one, so that a resumed run logs the same."""

    def __init__(self, task: Task[B, Any]) -> None:
        self.task = task
        self.shown = time.perf_counter()
        self.shown_rows: int | None = None  # at the line shown last
        self.reset()

    def reset(self) -> None:
        self.evaluation = self.task.evaluation()
        self.observed = False
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, parts: Mapping[str, Tensor], outputs: Tensor | None, batch: B) -> None:
        if outputs is not None:
            self.observed = True
            self.evaluation.update(outputs, batch)
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def mean_parts(self) -> dict[str, float]:
        return {name: float(total) / max(self.steps, 1) for name, total in self.sums.items()}
