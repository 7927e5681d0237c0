"""How histories are divided, as an option of experiments and of what is made from training histories."""

from dataclasses import dataclass
from typing import Literal

from rayrec.data.sequences import SequenceData, SequenceSplit, leave_one_out, temporal_split
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class SplitConfig:
    """How a history is divided."""

    method: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """Either "leave_one_out" (last item test, second last validation), or "temporal", by two moments."""
    valid_from: int | None = None
    """Temporal: the moment, in the unit of the timestamps, from which on events are for validation."""
    test_from: int | None = None
    """Temporal: the moment from which on events are for test."""

    def __post_init__(self) -> None:
        if self.method == "temporal" and (self.valid_from is None or self.test_from is None):
            raise ConfigError("a temporal split needs valid_from and test_from")

    def split(self, data: SequenceData) -> SequenceSplit:
        if self.method == "leave_one_out":
            return leave_one_out(data.interactions)
        assert self.valid_from is not None
        assert self.test_from is not None
        return temporal_split(data.interactions, self.valid_from, self.test_from)

    def trains_on_what_is_judged_by(self, other: "SplitConfig") -> bool:
        """Whether the training part of some sequences may hold what ``other`` validates or tests on, of the same sequences."""
        if self.method != other.method:
            return True
        return self.valid_from is not None and other.valid_from is not None and self.valid_from > other.valid_from
