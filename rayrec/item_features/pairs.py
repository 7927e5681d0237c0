"""Features of a request and an item together, made when both are known, as the training log has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from rayrec.data.log.encoding import spelled
from rayrec.errors import UserError


class ItemFeaturesError(UserError):
    """A table of item features that cannot be made, or does not fit; names the column, and the item where it is one."""


@dataclass(frozen=True)
class PairFeature:
    """kind "joined": the request's code, a blank and the item's code. "share": which part of the request's list of codes is the
    item's code, 0 of an empty list.

    request, item: the features that it is made of; one that is missing makes a joined one missing, and a share 0.
    """

    name: str
    kind: Literal["joined", "share"]
    request: str
    item: str
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def values(self, given: Any, codes: Sequence[str | None]) -> list[Any]:
        """One value an item. given: of the request. Raises TypeError for a value of another type."""
        if self.kind == "joined":
            code = spelled(given, True)
            return [None if code is None or own is None else f"{code} {own}" for own in codes]
        if given is not None and not isinstance(given, list):
            raise TypeError(f"expected a list, got {given!r:.80}")
        history = [spelled(value, True) for value in given or ()]
        shares: Mapping[str | None, float] = (
            {code: history.count(code) / len(history) for code in set(codes)} if history else {}
        )
        return [0.0 if own is None else shares.get(own, 0.0) for own in codes]
