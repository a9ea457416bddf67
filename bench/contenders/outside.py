"""A contender of a file or of an installed package, run like ours: docs/how-to/add-a-contender.md.

The class says how to launch. What a launch must return, how large its error may be and how it is compared is up to the
suite.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, cast

import torch

from bench.contenders.base import KernelRef, Launch, LookupOp, ProductOp
from bench.model import outside
from bench.model.case import Case
from bench.model.outside import Outside
from bench.model.registry import UnknownContenderError
from bench.workload.tensors import Workload

MOST_ROUNDINGS = 4  # that a class may ask for


class OutsideContender(ProductOp):
    """The contender called `name`. Raises whatever its file raises, and TypeError if its class is not a contender."""

    def __init__(self, name: str) -> None:
        found = outside.find(name)
        if found is None:
            raise UnknownContenderError(name)
        self.name = name
        self._module = _module(found)
        self._made = getattr(self._module, found.class_name)()
        for method in outside.METHODS:
            if not callable(getattr(self._made, method, None)):
                raise TypeError(f"{found.class_name} has no method {method}; expected one as in {outside.PAGE}")
        self.in_place = bool(self._has("in_place", False))
        self.tf32 = bool(self._has("tf32", False))
        self.roundings = int(self._has("roundings", 2))
        if not 0 <= self.roundings <= MOST_ROUNDINGS:
            raise TypeError(f"roundings is {self.roundings}; expected 0 to {MOST_ROUNDINGS}")

    def _has(self, attribute: str, default: object) -> Any:
        return getattr(self._made, attribute, default)

    def tolerance(self, case: Case) -> float:
        """As for our contenders. A lookup copies, whoever does it."""
        return LookupOp().tolerance(case) if case.op == "lookup" else super().tolerance(case)

    def unavailable(self) -> str | None:
        return cast("str | None", self._has("unavailable", lambda: None)())

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        launch = self._made.setup(workload, static=static)
        if not callable(launch):
            raise TypeError(f"setup returned {type(launch).__name__}; expected launch(k), which runs index set k")
        return cast("Launch", launch)

    def required_bytes(self, workload: Workload) -> int:
        found = self._made.required_bytes(workload)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise TypeError(f"required_bytes returned {found!r}; expected a number of bytes, an int")
        return found

    def kernels(self) -> list[KernelRef]:
        return [KernelRef((self._module.__name__, name)) for name in self._has("kernels", ())]

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"launch returned {type(output).__name__}; expected the output, a tensor")
        return output


def _module(found: Outside) -> ModuleType:
    """Imported once in a process; a file's under a name that no package has."""
    if found.module is not None:
        return importlib.import_module(found.module)
    name = f"bench_contender_{found.sha256}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, found.file)
        assert spec is not None and spec.loader is not None  # it was read as Python
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made  # Triton looks a kernel's source up by its module
        try:
            spec.loader.exec_module(made)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
