"""Wraps a module of SGLang at the moment it is imported, so that the order of SGLang's imports stays."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

Wrap = Callable[[ModuleType], None]


def when_imported(name: str, wrap: Wrap) -> None:
    """Wrap a module as soon as it is loaded, or now if it already is."""
    if name in sys.modules:
        wrap(sys.modules[name])
    else:
        sys.meta_path.insert(0, ImportHook(name, wrap))


def wrap_to_folder(variable: str, name: str, wrap: Callable[[Path, ModuleType], None]) -> None:
    """Wrap a module so that it writes to the folder in an environment variable. Without the variable, do nothing."""
    folder = os.environ.get(variable)
    if folder:
        when_imported(name, partial(wrap, Path(folder)))


class ImportHook(MetaPathFinder):
    """Lets one module be imported as usual, and wraps it once it is loaded."""

    def __init__(self, module: str, wrap: Wrap) -> None:
        self.module, self._wrap = module, wrap

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Wrapping(spec.loader, self._wrap)
        return spec


class _Wrapping(Loader):
    def __init__(self, loader: Any, wrap: Wrap) -> None:
        self._loader, self._wrap = loader, wrap

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._wrap(module)
