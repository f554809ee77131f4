"""Empty modules in the place of packages that are not installed, so that torch alone is enough to train on tensors."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("lhotse", "sentencepiece", "tqdm", "safetensors", "tensorboard")


class Empty(ModuleType):
    """A module that has whatever is imported from it, and in it nothing that works."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, item: cls)})


class Finder(MetaPathFinder, Loader):
    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] in self.packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in() -> set[str]:
    """Puts empty modules in the place of those of PACKAGES that are missing; returns their names."""
    missing = {name for name in PACKAGES if importlib.util.find_spec(name) is None}
    sys.meta_path.append(Finder(missing))
    return missing
