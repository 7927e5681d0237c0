"""Which arm of an experiment a user is in: weighted rendezvous hashing, the same in every process on every machine.

Each arm draws an exponential time of rate ``weight`` from the hash of (salt, arm, user); the first one has the user (Thaler and
Ravishankar 1998, "Using name-based mappings to increase hit rates", with weights as in an exponential race). So the arms come
out in proportion to their weights, and when one arm's weight grows, users move to that arm and nowhere else.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rayrec.typed_json import ConfigError

_STEPS = 2**53


@dataclass(frozen=True)
class Assignment:
    """Arms of one experiment. Their order does not matter. Raises ConfigError for weights that are no shares."""

    salt: str
    """Name of the experiment: two with different salts assign independently of each other."""
    weights: Mapping[str, float]
    """By arm, in proportion to the share of users; 0 = nobody."""

    def __post_init__(self) -> None:
        for arm, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(
                    f"experiment {self.salt!r}: the weight of arm {arm!r} must be 0 or more, not {weight}"
                )
        if not any(self.weights.values()):
            raise ConfigError(f"experiment {self.salt!r}: no arm has a weight above 0")

    def share(self, arm: str) -> float:
        """Of users, in expectation."""
        return self.weights[arm] / math.fsum(self.weights.values())

    def arm(self, user: str) -> str:
        """The arm of a user."""
        live = (arm for arm, weight in self.weights.items() if weight > 0)
        return min(live, key=lambda arm: (-math.log(_uniform(self.salt, arm, user)) / self.weights[arm], arm))


def _uniform(*parts: str) -> float:
    """In (0, 1), from a hash of texts; their lengths are hashed too, so that no two lists of texts read the same."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return ((int.from_bytes(digest.digest(), "big") >> 11) + 0.5) / _STEPS
