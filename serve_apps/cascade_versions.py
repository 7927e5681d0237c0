"""What a cascade is made of: three models and the table of item features, each with a version of its own."""

from dataclasses import dataclass, fields

from serve_apps.model_reference import ModelReference


@dataclass(frozen=True)
class CascadeReferences:
    """The ``user_config`` of every deployment of a cascade: each takes from it what it serves and checks that the rest fits.

    retriever: a bundle that finds candidates. early, late: rankers. features: the table of the items' features, see
    ``rayrec.item_features``.
    """

    retriever: ModelReference
    early: ModelReference
    late: ModelReference
    features: ModelReference

    @property
    def label(self) -> str | None:
        """What ``/healthz`` calls it; None where only the registry can say."""
        labels = [getattr(self, part.name).label for part in fields(self)]
        return None if None in labels else " ".join(labels)

    def resolve(self) -> "CascadeReferences":
        """All with folders. Raises RegistryError."""
        return CascadeReferences(**{part.name: getattr(self, part.name).resolve() for part in fields(self)})
