"""With which options the results of a folder were made: work that goes on later must not mix two sets of them."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rayrec.files import write_text_atomically
from rayrec.typed_json import ConfigError, to_plain

_NOTHING = object()


def options_of(command: Any, *, but: Collection[str]) -> dict[str, Any]:
    """The plain fields of a dataclass, paths made absolute. but: fields that say only where and how much is done.

    Raises ValueError for a name of ``but`` that is no field.
    """
    names = [field.name for field in fields(command)]
    if strangers := sorted(set(but) - set(names)):
        raise ValueError(f"{type(command).__name__} has no {', '.join(strangers)}")
    values = {name: getattr(command, name) for name in names}
    absolute = {name: value.resolve() for name, value in values.items() if isinstance(value, Path)}
    plain = to_plain(replace(command, **absolute))
    return {name: plain[name] for name in names if name not in but}


def hold_to_options(file: Path, options: Mapping[str, Any], *results: str) -> None:
    """Before anything is done: keep ``options`` (plain JSON) in ``file``, or compare them with those that it keeps.

    results: what is called beside the file that the options decide, data made on the way too, as glob patterns. Options that
    made none of it yet (a mistyped path) give way to others. Raises ConfigError that names each option that is another one now,
    or the first result when no file says what made it.
    """
    made = next((found for pattern in results for found in file.parent.glob(pattern) if found != file), None)
    if file.is_file():
        changed = other_options(json.loads(file.read_bytes()), options)
        if not changed:
            return
        if made is not None:
            raise ConfigError(f"{file}: results here were made with {'; '.join(changed)}: choose another place")
    elif made is not None:
        raise ConfigError(f"{made}: nothing says with which options it was made (no {file.name}): choose another place")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(options, indent=1))


def other_options(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "PATH VALUE, now VALUE" of each value in which two plain JSON objects differ, by dotted path."""
    before, after = dict(_leaves(kept)), dict(_leaves(now))
    return [
        f"{path} {_shown(before.get(path, _NOTHING))}, now {_shown(after.get(path, _NOTHING))}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path, _NOTHING) != after.get(path, _NOTHING)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "absent"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
