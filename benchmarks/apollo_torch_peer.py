"""The official optimizer, PyPI ``apollo-torch`` 1.0.3 (CC BY-NC, a development dependency only), as a peer to compare with."""

import importlib
import importlib.util
import sys
from types import ModuleType


def load_apollo_torch() -> tuple[ModuleType, ModuleType]:
    """Its modules ``apollo`` and ``random_projector``. Raises ImportError when the package is not installed.

    The package's own ``__init__`` imports bitsandbytes, a GPU library that the optimizer does not use, so it is not run.
    """
    if "apollo_torch" not in sys.modules:
        spec = importlib.util.find_spec("apollo_torch")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("apollo-torch is not installed; install the dev extra")
        package = ModuleType("apollo_torch")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["apollo_torch"] = package
    return importlib.import_module("apollo_torch.apollo"), importlib.import_module("apollo_torch.random_projector")
