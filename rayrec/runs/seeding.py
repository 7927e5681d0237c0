"""The seed of an experiment: every field of that name, and ``{seed}`` in its texts, for data drawn anew for each seed."""

from typing import Any

from rayrec.families.table import AnyExperiment
from rayrec.typed_json import ConfigError, from_plain, to_plain

SEED = "{seed}"
"""In a path of an experiment: the trial's seed."""


def with_seed(experiment: AnyExperiment, seed: int) -> AnyExperiment:
    """The experiment with every field called ``seed`` set, wherever it is, and the seed in place of ``{seed}`` in its texts."""

    def seeded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: seed if name == "seed" else seeded(part) for name, part in value.items()}
        if isinstance(value, list):
            return [seeded(part) for part in value]
        return value.replace(SEED, str(seed)) if isinstance(value, str) else value

    return from_plain(type(experiment), seeded(to_plain(experiment)), f"the experiment with seed {seed}")


def refuse_seed_mark(experiment: AnyExperiment) -> None:
    """Raises ConfigError that names the field with ``{seed}`` in it: one run, or one sweep, has no seed to put there."""

    def look(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                look(part, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list):
            for part in value:
                look(part, name)
        elif isinstance(value, str) and SEED in value:
            raise ConfigError(
                f"{name}: {SEED} in {value!r} stands for the seed of a comparison's trial; name what is meant"
            )

    look(to_plain(experiment), "")
