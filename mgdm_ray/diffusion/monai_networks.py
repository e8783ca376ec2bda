"""The parts of MONAI that diffusion uses, without the rest of it.

``import monai`` runs all its modules, with mlflow and matplotlib: 8 CPU seconds and 450 MB in each
process, where these take half a second.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package whose ``__init__.py`` is read, not run, to find which module has a name."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks for __file__ and its like before it sets them.
        source = "" if name.startswith("__") else Path(str(self.__file__)).read_text("utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        module = importlib.import_module(f"{self.__name__}.{node.module}")
                        return getattr(module, alias.name)
        if source and sys.modules.get(self.__name__) is not self:  # asked by one of its modules
            return getattr(importlib.import_module(self.__name__), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Packages(Loader, MetaPathFinder):
    """Finds all packages of one distribution, ``top``, as a _Package."""

    def __init__(self, top: str) -> None:
        self.top, self.found = top, set[str]()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        inside = name.partition(".")[0] == self.top
        spec = PathFinder.find_spec(name, path, target) if inside else None
        if spec is None or spec.submodule_search_locations is None or spec.origin is None:
            return None
        spec.loader = self
        self.found.add(name)
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def load_alone(name: str) -> None:
    """Import the module ``name`` and what it uses, so that a later import finds it in sys.modules.

    Its packages are forgotten again: ``import`` of one runs it as usual, around the same modules.
    Where that does not work, as with another version of the library, nothing is left behind.
    """
    top = name.partition(".")[0]
    if top in sys.modules:
        return
    packages, before = _Packages(top), set(sys.modules)
    sys.meta_path.insert(0, packages)
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  # importing the whole library will say it better
        packages.found = {m for m in set(sys.modules) - before if m.partition(".")[0] == top}
    finally:
        sys.meta_path.remove(packages)
        for package in packages.found:
            sys.modules.pop(package, None)


load_alone("monai.networks.nets.diffusion_model_unet")

from monai.networks.blocks.spatialattention import SpatialAttentionBlock  # noqa: E402
from monai.networks.nets.diffusion_model_unet import (  # noqa: E402
    DiffusionModelEncoder,
    DiffusionModelUNet,
    DiffusionUNetResnetBlock,
)

__all__ = [
    "DiffusionModelEncoder",
    "DiffusionModelUNet",
    "DiffusionUNetResnetBlock",
    "SpatialAttentionBlock",
]
