"""Stand-ins for packages of kernels that are missing or cannot load.

Their names can be imported, and raise when called. SGLang's layers import them at the top, for kernels that embedding
LoRA does not use. Nothing is emulated.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("sgl_kernel", "flashinfer")


class _Name:
    """What is imported from the stand-in: has any attribute, and raises when called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self._name}.{name}")

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()  # a class may have it for a base

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self._name} was called; here is only a stand-in for its package")


class _Module(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self.__name__}.{name}")


class _Finder:
    """Finds the stand-in for a package and any module below it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == self._package else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def provide() -> list[str]:
    """Put a stand-in in place of each package that does not load. Returns their names."""
    return [package for package in PACKAGES if _provided(package)]


def _provided(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # missing, or its libraries do not load here
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder(package))
        return True
    return False
