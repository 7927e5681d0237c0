"""What a service serves: a bundle folder or a version of the registry, and what replies call it."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rayrec.bundle import BundleError


@dataclass(frozen=True)
class ModelReference:
    """What to serve. model: a bundle folder, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    name, version: what replies call it; default: what the registry says, or the folder's name and "unregistered".
    """

    model: str
    name: str | None = None
    version: str | None = None

    @property
    def label(self) -> str | None:
        """What replies call it; None where only the registry can say."""
        if self.name is not None and self.version is not None:
            return f"{self.name}/{self.version}"
        return None if self.model.startswith("models:") else self.resolve().label

    def resolve(self) -> "ModelReference":
        """With a folder as its model, and name and version filled in. Raises RegistryError."""
        name, version, path = Path(self.model).name, "unregistered", self.model
        if self.model.startswith("models:"):
            from rayrec.registry import resolve_model  # mlflow: 2 s and 100 MB, only where the registry is asked

            found = resolve_model(self.model)
            name, version, path = found.name, found.version, str(found.path)
        return ModelReference(path, self.name or name, self.version or version)


def refuse_non_finite(model: nn.Module, path: str) -> None:
    """Raises BundleError for weights or buffers that a diverged training left."""
    for name, values in model.state_dict().items():
        if not values.isfinite().all():
            raise BundleError(f"{path}: {name} has values that are not finite; its training diverged")
