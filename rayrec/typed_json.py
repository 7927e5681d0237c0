"""Frozen dataclasses to JSON and back, strictly: an unknown field or a wrong type is an error that names the field."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import core_schema

from rayrec.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A config file or value that does not fit its dataclass."""


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON text of a (nested) dataclass; floats keep their exact value, tuples become lists."""
    return _adapter(type(value)).dump_json(value, indent=indent).decode()


def to_plain(value: Any) -> Any:
    """The JSON form as Python dicts, lists and scalars."""
    return json.loads(to_json(value, indent=None))


def from_json(kind: type[T], text: str | bytes, where: str = "the given text") -> T:
    """Parse ``text`` as ``kind``. Raises ConfigError that names ``where`` and every field that is wrong."""
    parsed: T = parse(_adapter(kind), text, where)
    return parsed


def parse(adapter: TypeAdapter[T], text: str | bytes, where: str) -> T:
    """Parse ``text`` by a type adapter. Raises ConfigError that names ``where`` and every field that is wrong or unknown.

    The one name that may stand for nothing is ``kind``: classes that are told apart by it declare it as a constant.
    """
    try:
        return adapter.validate_json(text, extra="forbid")
    except ValidationError as error:
        if not all(_is_kind(item) for item in error.errors(include_url=False)):
            raise ConfigError(f"{where}: {explain(error)}") from None
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from None


def from_plain(kind: type[T], value: Any, where: str = "the given value") -> T:
    """Like ``from_json`` for already parsed JSON."""
    return from_json(kind, json.dumps(value), where)


def explain(error: ValidationError) -> str:
    """One line: each wrong field, what was wrong, and what stood there."""
    parts = []
    wrong = [item for item in error.errors(include_url=False) if not _is_kind(item)]
    for item in wrong[:10]:
        place = ".".join(str(part) for part in item["loc"]) or "the whole document"
        given = item.get("input")
        size = len(given) if isinstance(given, list | dict | tuple) else 0
        given = f"{size:,} values" if size > 1000 else repr(given)
        shown = given if len(given) <= 60 else given[:57] + "..."
        parts.append(f"{place}: {item['msg']} (given: {shown})")
    return "; ".join(parts)


def _is_kind(item: Any) -> bool:
    return item["type"] == "unexpected_keyword_argument" and item["loc"][-1] == "kind"


def reads_earlier(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[type[T]], type[T]]:
    """A dataclass whose JSON of earlier versions meant something else: ``change`` makes of it what means the same now."""

    def schema(source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_before_validator_function(
            lambda given: change(given) if isinstance(given, dict) else given, handler(source)
        )

    def decorated(cls: type[T]) -> type[T]:
        cls.__get_pydantic_core_schema__ = staticmethod(schema)  # type: ignore[attr-defined]  # pydantic's hook
        return cls

    return decorated


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For ``reads_earlier``: fields of before that no longer say anything."""
    return lambda given: {name: value for name, value in given.items() if name not in names}
