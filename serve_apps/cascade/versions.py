"""What a cascade is made of: three models and the table of item features, each with a version of its own, and what is tried
on its users beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rayrec.traffic.assignment import Assignment
from rayrec.typed_json import ConfigError
from serve_apps.service.model_reference import ModelReference

PARTS = ("retriever", "early", "late", "features")
MAX_ARMS, _MAX_NAME = 16, 100
OWN, MIXED = "all", "mixed"  # names of no arm: without an experiment, or a user; while a version changed
WATCHED = "shadow"  # neither: by the shadow ranker, which only those are answered by who ask for it
RESERVED = (OWN, MIXED, WATCHED)


@dataclass(frozen=True)
class Arm:
    """Some of the users, and what ranks for them."""

    name: str
    """As replies and the log of decisions have it."""
    share: float
    """Of the users, in proportion to those of the other arms; 0 = nobody."""
    early: ModelReference | None = None
    """In place of the cascade's own early ranker."""
    late: ModelReference | None = None
    """In place of the cascade's own late ranker."""


@dataclass(frozen=True)
class Experiment:
    """Which rankers answer whom, and one that is only watched. Raises ConfigError."""

    name: str
    """Users are assigned by it: under another name they are drawn anew."""
    arms: tuple[Arm, ...] = ()
    """A user is in one of them; empty = the cascade's own rankers for all."""
    shadow: ModelReference | None = None
    """A ranker that scores what the late ranker scores, and changes no reply."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(names) > MAX_ARMS:
            raise ConfigError(f"experiment {self.name!r}: {len(names)} arms, at most {MAX_ARMS} are possible")
        for name in names:
            if not 0 < len(name) <= _MAX_NAME or name in RESERVED or names.count(name) > 1:
                raise ConfigError(
                    f"experiment {self.name!r}: an arm cannot be named {name!r}: each has a name of its own of 1 to {_MAX_NAME} "
                    f"characters, not {OWN!r}, {MIXED!r} or {WATCHED!r}"
                )
        _ = self.assignment

    @property
    def assignment(self) -> Assignment | None:
        """Of users to arms; None without arms."""
        return Assignment(self.name, {arm.name: arm.share for arm in self.arms}) if self.arms else None

    def resolve(self) -> "Experiment":
        """All with folders. Raises RegistryError."""
        return replace(
            self,
            arms=tuple(replace(arm, early=_resolved(arm.early), late=_resolved(arm.late)) for arm in self.arms),
            shadow=_resolved(self.shadow),
        )


@dataclass(frozen=True)
class CascadeReferences:
    """The ``user_config`` of every deployment of a cascade: each takes from it what it serves and checks that the rest fits.

    retriever: a bundle that finds candidates. early, late: rankers. features: the table of the items' features, see
    ``rayrec.item_features``. experiment: what is tried on users, None = nothing.
    """

    retriever: ModelReference
    early: ModelReference
    late: ModelReference
    features: ModelReference
    experiment: Experiment | None = None

    @property
    def label(self) -> str | None:
        """What ``/healthz`` calls it; None where only the registry can say."""
        own = [getattr(self, part).label for part in PARTS]
        if self.experiment is None:
            return _joined(own)
        arms = [
            _joined([arm.name, *(r.label for r in (arm.early, arm.late) if r)], ":") for arm in self.experiment.arms
        ]
        shadow = [] if self.experiment.shadow is None else [_joined(["shadow", self.experiment.shadow.label], ":")]
        return _joined([*own, self.experiment.name, *arms, *shadow])

    def rankers(self, stage: str) -> Mapping[str, ModelReference]:
        """Of a stage, by arm; "" is the cascade's own. The stage "shadow" has one, or none."""
        if stage == "shadow":
            shadow = None if self.experiment is None else self.experiment.shadow
            return {} if shadow is None else {"": shadow}
        arms = () if self.experiment is None else self.experiment.arms
        found = {"": getattr(self, stage)} | {arm.name: getattr(arm, stage) for arm in arms}
        return {name: reference for name, reference in found.items() if reference is not None}

    def stage_label(self, stage: str) -> str | None:
        """What replicas of a stage call what they serve; None where only the registry can say."""
        if stage == "retrieve":
            return self.retriever.label
        return _joined(list(dict.fromkeys(reference.label for reference in self.rankers(stage).values())))

    def resolve(self) -> "CascadeReferences":
        """All with folders. Raises RegistryError."""
        experiment = None if self.experiment is None else self.experiment.resolve()
        return CascadeReferences(**{part: getattr(self, part).resolve() for part in PARTS}, experiment=experiment)


def _resolved(reference: ModelReference | None) -> ModelReference | None:
    return None if reference is None else reference.resolve()


def _joined(labels: Iterable[str | None], by: str = " ") -> str | None:
    found = list(labels)
    return None if None in found else by.join(label for label in found if label is not None)
