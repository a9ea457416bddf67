"""The implementations that are compared. Each contender is one implementation of an op, built here by its name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from bench.model.case import Op, Site
from bench.model.environment import package_version
from bench.model.outside import is_outside
from bench.model.registry import UnknownContenderError, asked_of, recipes_of, sglang_of
from bench.model.sources import LIBRARY

if TYPE_CHECKING:
    from bench.contenders.base import Contender


def build(name: str, op: Op | None = None, site: Site = "none") -> Contender:
    """The contender called `name` (`family[-option][@version]`) for an op, and for a site if one is named.

    Without an op, it is built for its first op. Its module is imported only now. Raises UnknownContenderError for an
    unknown name, or for an op that it does not have.
    """
    recipes = recipes_of(name)
    asked = next(iter(recipes)) if op is None else asked_of(op, site)
    if asked not in recipes:
        raise UnknownContenderError(name, asked)
    module, class_name, options = recipes[asked]
    try:
        contender_class = getattr(importlib.import_module(f"bench.contenders.{module}"), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != LIBRARY:
            raise
        return absent(name)
    contender = cast("Contender", contender_class(**options))
    if sglang_of(name) is not None:
        contender.name = name
    return contender


def absent(name: str) -> Contender:
    """A placeholder for a contender of a library that is missing. It cannot run, and says so."""
    from bench.contenders.base import Absent

    return cast("Contender", Absent(name))


def load(names: Iterable[str]) -> None:
    """Import what these contenders need, so that no point's wall time includes it.

    A file's own code runs only at its points.
    """
    for name in names:
        if not is_outside(name):
            unavailable(build(name))


def unavailable(contender: Contender) -> str | None:
    """Why the contender cannot run in this process, and how to mend that; None if it can.

    A contender of another SGLang runs in a process that finds that version first: bench/execute/installs.py.
    """
    wanted, found = sglang_of(contender.name), package_version("sglang")
    if wanted is not None and wanted != found:
        return f"this process has SGLang {found}, expected {wanted}: sweep takes one with --sglang FOLDER_OR_WHEEL"
    return contender.unavailable()
