"""Peak memory of real training processes: a decoder trained with AdamW, APOLLO, APOLLO-Mini and GaLore, one process each.

python -m benchmarks.training_memory. Each process makes a few steps on random tokens in the same small batches and reports its
highest resident memory, less what it had before the model was built; beside it what ``rayrec.optim.state_memory`` predicts for
weights, gradients and optimizer state. What the process has more than that is activations, the optimizer's workspace and slack.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from statistics import median

import torch
import tyro

from rayrec.families.language_model.task import token_losses
from rayrec.models.llama import SHAPES, LlamaConfig, LlamaLanguageModel, ShapeName
from rayrec.optim import OptimizerConfig, OptimizerName, build_optimizer, clip_gradients
from rayrec.optim.state_memory import measured_memory, predicted_memory

MIB = 2**20


@dataclass(frozen=True)
class Options:
    """batch_size blocks of ``length`` tokens. only: this optimizer, in this very process (what the benchmark starts)."""

    shape: ShapeName = "60m"
    vocabulary: int = 4096
    batch_size: int = 1
    length: int = 32
    steps: int = 3
    repeats: int = 2
    threads: int = 2
    optimizers: tuple[OptimizerName, ...] = ("adamw", "apollo", "apollo_mini")
    only: OptimizerName | None = None


def train(options: Options, name: OptimizerName) -> dict[str, int]:
    """A few steps; bytes of the peak above the start, and of weights, gradients and state."""
    torch.set_num_threads(options.threads)
    config = LlamaConfig(options.vocabulary, SHAPES[options.shape])
    tokens = torch.randint(0, options.vocabulary, (options.batch_size, options.length + 1))
    warm = torch.nn.Linear(64, 64)  # loads what the first products and optimizer steps load
    warm(torch.zeros(8, 64)).sum().backward()
    torch.optim.AdamW(warm.parameters(), fused=True).step()
    start = _peak()
    model = LlamaLanguageModel(config)
    optimizer = build_optimizer(model, OptimizerConfig(optimizer=name, embeddings="adamw"))
    for step in range(options.steps):
        token_losses(model, tokens).mean().backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        if step < options.steps - 1:
            optimizer.zero_grad(set_to_none=True)
    peak = _peak() - start
    predicted, measured = predicted_memory(model, optimizer), measured_memory(model, optimizer)
    assert predicted.state_bytes == measured.state_bytes
    return {
        "peak_bytes": peak,
        "predicted_bytes": predicted.total_bytes,
        "state_bytes": predicted.state_bytes,
        "parameter_bytes": predicted.parameter_bytes,
    }


def _peak() -> int:
    """Bytes of the highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_own_process(options: Options, name: OptimizerName) -> dict[str, int]:
    command = [
        sys.executable, "-m", "benchmarks.training_memory", "--only", name, "--shape", options.shape,
        "--vocabulary", str(options.vocabulary), "--batch-size", str(options.batch_size), "--length", str(options.length),
        "--steps", str(options.steps), "--threads", str(options.threads),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.only is not None:
        print(json.dumps(train(options, options.only)))
        return
    rounds = [{name: _in_own_process(options, name) for name in options.optimizers} for _ in range(options.repeats)]
    results = {
        name: {key: int(median(r[name][key] for r in rounds)) for key in rounds[0][name]} for name in options.optimizers
    }
    print(
        f"shape {options.shape}, {options.vocabulary} tokens, batches of {options.batch_size} x {options.length}; MiB"
    )
    columns = ("peak", "predicted", "state", "peak / AdamW", "state / AdamW")
    print(f"{'optimizer':<14}" + "".join(f"{c:>15}" for c in columns))
    base = results["adamw"]
    for name, r in results.items():
        sizes = "".join(f"{r[key] / MIB:>15,.0f}" for key in ("peak_bytes", "predicted_bytes", "state_bytes"))
        ratios = f"{r['peak_bytes'] / base['peak_bytes']:>15.3f}{r['state_bytes'] / base['state_bytes']:>15.3f}"
        print(f"{name:<14}{sizes}{ratios}")
    print(json.dumps({"shape": options.shape, "vocabulary": options.vocabulary, "memory": results}))


if __name__ == "__main__":
    main()
