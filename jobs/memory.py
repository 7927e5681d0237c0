"""What training keeps in memory, by optimizer: python -m jobs.memory lm --shape 60m, or ranker --log LOG.

Parameters, gradients and optimizer state by parameter group, predicted from shapes; --measure also builds the model, makes a step
and counts. --card-gib: what fits such a card beside --reserve-gib for activations and everything else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, get_args

import torch
import tyro
from torch import nn

from jobs.command_line import read_one_of
from rayrec.errors import told
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.models.llama import SHAPES, LlamaConfig, LlamaLanguageModel, ShapeName
from rayrec.optim import OptimizerConfig, OptimizerName, build_optimizer
from rayrec.optim.state_memory import TrainingMemory, measured_memory, predicted_memory, step_once

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GIB = 2**30


@dataclass(frozen=True)
class MemoryOptions:
    """What is compared, and with what it must fit."""

    optimizers: tuple[OptimizerName, ...] = get_args(OptimizerName)
    """Those that are compared."""
    measure: bool = False
    """Also build the model, make a step and count what is there."""
    card_gib: float = 80.0
    """Memory of the card in GiB."""
    reserve_gib: float = 10.0
    """Kept free for activations, the context and fragments."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters, gradients and state."""

    @property
    def room(self) -> float:
        """Bytes for parameters, gradients and state."""
        return (self.card_gib - self.reserve_gib) * GIB


@dataclass(frozen=True)
class LanguageModelMemory:
    """A decoder of ``rayrec.models.llama``; optimizer: its settings, of which the optimizer itself is varied."""

    shape: ShapeName = "60m"
    """Of the decoder."""
    vocabulary: int = 32_000
    """Tokens of the model."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(embeddings="adamw"))
    """Whose state is counted."""
    options: Annotated[MemoryOptions, tyro.conf.arg(name="")] = field(default_factory=MemoryOptions)
    """What is compared, and with what it must fit."""


@dataclass(frozen=True)
class RankerMemory:
    """The ranker of an experiment."""

    experiment: Annotated[RankerExperiment, tyro.conf.arg(name="")]
    """What would be trained."""
    options: Annotated[MemoryOptions, tyro.conf.arg(name="")] = field(default_factory=MemoryOptions)
    """What is compared, and with what it must fit."""


def run(command: LanguageModelMemory | RankerMemory) -> dict[str, dict[str, object]]:
    """Print the tables; returns the totals by optimizer."""
    options = command.options
    if isinstance(command, RankerMemory):
        build: Callable[[], nn.Module] = command.experiment.task().build
        config = command.experiment.optimizer
    else:
        build = partial(LlamaLanguageModel, LlamaConfig(command.vocabulary, SHAPES[command.shape]))
        config = command.optimizer
    results: dict[str, dict[str, object]] = {}
    for name in options.optimizers:
        chosen = replace(config, optimizer=name)
        predicted = predict(build, chosen, options.dtype)
        measured = measure(build, chosen, options.dtype) if options.measure else None
        print_memory(name, predicted, measured)
        results[name] = {
            "parameter_bytes": predicted.parameter_bytes,
            "gradient_bytes": predicted.gradient_bytes,
            "state_bytes": predicted.state_bytes,
            "projection_bytes": predicted.projection_bytes,
            "measured_state_bytes": None if measured is None else measured.state_bytes,
        }
        if isinstance(command, LanguageModelMemory):
            largest = largest_shape(chosen, command.vocabulary, options)
            results[name]["largest_shape"] = largest
            print(
                f"  largest shape in {options.card_gib:g} GiB with {options.reserve_gib:g} GiB kept free: {largest or 'none'}"
            )
        else:
            times = options.room / predicted.total_bytes
            results[name]["times"] = times
            print(
                f"  {options.card_gib:g} GiB with {options.reserve_gib:g} GiB kept free hold {times:,.1f} times as much"
            )
    print(json.dumps(results))
    return results


def predict(build: Callable[[], nn.Module], config: OptimizerConfig, dtype: str) -> TrainingMemory:
    """Without allocating anything."""
    with torch.device("meta"):
        model = build().to(DTYPES[dtype])
        return predicted_memory(model, build_optimizer(model, config))


def measure(build: Callable[[], nn.Module], config: OptimizerConfig, dtype: str) -> TrainingMemory:
    """With a real model and a real step."""
    model = build().to(DTYPES[dtype])
    optimizer = build_optimizer(model, config)
    step_once(model, optimizer)
    return measured_memory(model, optimizer)


def largest_shape(config: OptimizerConfig, vocabulary: int, options: MemoryOptions) -> ShapeName | None:
    """The largest of the decoder's shapes whose parameters, gradients and state leave the reserve free."""
    configs = {name: LlamaConfig(vocabulary, shape) for name, shape in SHAPES.items()}
    for name in sorted(configs, key=lambda name: -configs[name].parameters):
        if 2 * configs[name].parameters * DTYPES[options.dtype].itemsize > options.room:
            continue  # weights and gradients alone are too much
        if predict(partial(LlamaLanguageModel, configs[name]), config, options.dtype).total_bytes <= options.room:
            return name
    return None


def print_memory(name: str, predicted: TrainingMemory, measured: TrainingMemory | None) -> None:
    """One optimizer's groups, in MiB."""
    columns = ("group", "tensors", "parameters", "weights", "gradients", "state", "state measured")
    print(f"\n{name} (MiB)\n" + f"  {columns[0]:<18}" + "".join(f"{c:>15}" for c in columns[1:]))
    rows = measured.groups if measured is not None else (None,) * len(predicted.groups)
    for group, counted in zip(predicted.groups, rows, strict=True):
        sizes = [group.parameter_bytes, group.gradient_bytes, group.state_bytes]
        sizes += [] if counted is None else [counted.state_bytes]
        numbers = f"{group.tensors:>15,}{group.numbers:>15,}" + "".join(f"{size / 2**20:>15,.3f}" for size in sizes)
        print(f"  {group.kind:<18}{numbers}")
    totals = [predicted.parameter_bytes, predicted.gradient_bytes, predicted.state_bytes]
    totals += [] if measured is None else [measured.state_bytes]
    print(f"  {'all':<48}" + "".join(f"{size / 2**20:>15,.3f}" for size in totals))
    if predicted.projection_bytes:
        print(f"  random projections, shared and drawn from seeds: {predicted.projection_bytes / 2**20:,.3f}")


def main() -> None:
    with told():
        run(read_one_of({"lm": LanguageModelMemory, "ranker": RankerMemory}, description=__doc__))


if __name__ == "__main__":
    main()
