"""What is swept: one module a space, each with a ``SPACE`` that names its families. A new sweep is one file, found by name."""

import pkgutil
from importlib import import_module

from rayrec.runs.sweeping import SweepSpace
from rayrec.typed_json import ConfigError


def space_names() -> tuple[str, ...]:
    """All spaces, in the order of the alphabet."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_space(name: str) -> SweepSpace:
    """The space of a module here, or of another one: "package.module". Raises ConfigError that lists those there are."""
    if "." in name:
        try:
            other: SweepSpace = import_module(name).SPACE
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"no space {name!r}: {error}") from None
        return other
    if name not in space_names():
        raise ConfigError(f"no space is called {name!r}; there are {', '.join(space_names())}")
    space: SweepSpace = import_module(f"{__name__}.{name}").SPACE
    return space
