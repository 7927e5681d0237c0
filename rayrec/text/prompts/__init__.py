"""Prompts as versioned text files: a changed prompt is a new file, so that what was asked can always be read again."""

import re
from importlib.resources import files
from string import Template


def read_prompt(name: str) -> Template:
    """Template ``<name>.txt`` of this folder, with ``$placeholders``. Raises ValueError when there is none of that name."""
    found = {file.name.removesuffix(".txt"): file for file in files(__name__).iterdir() if file.name.endswith(".txt")}
    if not re.fullmatch(r"[a-z_]+\.v\d+", name) or name not in found:
        raise ValueError(f"no prompt {name!r}; there are {', '.join(sorted(found))}")
    return Template(found[name].read_text(encoding="utf-8"))
