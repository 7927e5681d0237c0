"""Any balancing method in a ranker's JSON, told apart by its name; and what was written when one class held all methods.

Before, one config of thirteen fields served every method, and ``multibalance`` named our own form. Such JSON keeps the meaning
that it had: it becomes the config of its method with the settings that the method used, rescaled as it was by default.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from rayrec.methods.balancing import METHODS, Balancing

_TRACKED = {"level", "normalize", "decay", "statistic", "rescale"}
_USED: Mapping[str, set[str]] = {
    "multibalance": _TRACKED | {"solver", "solver_steps", "ridge"},
    "uniform": set(),
    "fixed": _TRACKED | {"shares"},
    "mgda": _TRACKED,
    "pcgrad": _TRACKED | {"seed"},
    "cagrad": _TRACKED | {"conflict_aversion"},
    "nash_mtl": _TRACKED,
    "gradnorm": {"level", "asymmetry", "learning_rate"},
    "uncertainty": {"learning_rate"},
}
_ALL = set().union(*_USED.values())
_ONLY_THEN = {
    "normalize",
    "decay",
    "statistic",
    "solver",
    "solver_steps",
    "ridge",
}  # of multibalance: unknown to the paper's


def of_today(plain: Any) -> Any:
    """JSON of a balancing config, that of before rewritten: told by all its fields, or by settings of the former multibalance."""
    if not isinstance(plain, dict):
        return plain
    method, settings = plain.get("method", "multibalance"), {k: v for k, v in plain.items() if k != "method"}
    whole = settings.keys() >= _ALL
    former = method == "multibalance" and bool(_ONLY_THEN & settings.keys())
    if method not in _USED or not (whole or former):
        return plain
    used = {name: value for name, value in settings.items() if name in _USED[method] or name not in _ALL}
    for name in ("normalize", "decay"):  # None was: as in the method's paper
        if used.get(name, ...) is None:
            del used[name]
    if method == "gradnorm":
        used["relative"] = True
    return {"method": "running_min_norm" if method == "multibalance" else method, **used}


if TYPE_CHECKING:
    AnyBalancing = Balancing
else:
    AnyBalancing = Annotated[Union[METHODS], Field(discriminator="method"), BeforeValidator(of_today)]  # noqa: UP007
