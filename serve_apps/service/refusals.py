"""What is refused, and how it is told: requests that are wrong, versions that cannot be served."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import HTTPException
from pydantic import BaseModel, ValidationError

from rayrec.errors import UserError

M = TypeVar("M", bound=BaseModel)
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Problem:
    """One wrong place of a request, in FastAPI's form. loc: path from "body" on."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class RequestError(ValueError):
    """A request that cannot be answered; ``problems`` names each wrong field (at most 20)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p.loc))}: {p.msg}" for p in problems[:3]))
        self.problems = tuple(problems[:SHOWN_PROBLEMS])

    def __reduce__(self) -> tuple[Any, ...]:  # Ray hands it from process to process
        return type(self), (self.problems,)

    @staticmethod
    def of(error: ValidationError) -> "RequestError":
        """What pydantic found wrong with a body."""
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return RequestError([Problem(("body", *item["loc"]), item["msg"], item["type"]) for item in found])


class Unavailable(HTTPException):
    """A 503: the same request may be answered later. kind: what stood in the way, a word or two for the metrics and the log."""

    def __init__(self, kind: str, detail: str, retry_after_s: int) -> None:
        super().__init__(503, detail, {"Retry-After": str(retry_after_s)})
        self.kind = kind


def parse_body(kind: type[M], body: bytes) -> M:
    """A request of a JSON body. Raises RequestError."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError.of(error) from None


class VersionError(UserError):
    """A version that cannot be served; says why in one line."""


@contextmanager
def refusing_version(which: str) -> Iterator[None]:
    """The one boundary around whatever looks up, loads or takes over a version: what it raises becomes a VersionError.

    A version comes from outside: a file that is damaged, forbidden or too large for this machine, a store that is away, a
    library that trips over what it is given. None of them may end a service that has another version in force.
    """
    try:
        yield
    except VersionError:
        raise
    except Exception as error:
        raise VersionError(f"{which}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, behind its type unless it says all in its message."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else "no message"
    return (
        first if type(error).__module__.startswith(("rayrec.", "serve_apps.")) else f"{type(error).__name__}: {first}"
    )
