"""Judge a trained model, whichever the bundle holds: python -m jobs.evaluate MODEL [options of its family].

MODEL is a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION; ``python -m jobs.evaluate MODEL --help`` lists the options.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jobs.command_line import read
from rayrec.bundle import bundle_kind
from rayrec.errors import told
from rayrec.families.table import family_of, follow
from rayrec.freed_memory import freed_memory_kept
from rayrec.registry import resolve_model
from rayrec.reporting import Table
from rayrec.reporting.page import text_table
from rayrec.typed_json import ConfigError


class Evaluate(Protocol):
    """A family's options of ``jobs.evaluate``: a frozen dataclass."""

    def evaluate(self, folder: Path) -> Table: ...


def run(model: str, options: Sequence[str]) -> Table:
    """Judge ``model`` by its family's options, print and return the table."""
    folder = resolve_model(model).path
    family = family_of(bundle_kind(folder))
    if family.evaluation_path is None:
        raise ConfigError(f"{folder}: holds a {family.name}, which cannot be judged outside of training")
    command: Evaluate = read(follow(family.evaluation_path), arguments=options, prog=f"python -m jobs.evaluate {model}")
    with freed_memory_kept():
        table = command.evaluate(folder)
    print(text_table(table))
    return table


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip())
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    with told():
        run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()
