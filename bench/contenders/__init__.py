"""What is compared: each contender is one implementation of an op, made here by its name."""

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
    """The contender called `name`, a `family[-option][@version]`, for an op, of a site if one is named.

    Without an op: for its first. Imports its module only now. Raises UnknownContenderError for a name, or an op of it,
    that there is not.
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
    """In the place of a contender of the library where there is none: it cannot run, and says so."""
    from bench.contenders.base import Absent

    return cast("Contender", Absent(name))


def load(names: Iterable[str]) -> None:
    """Import what these need, so that it is nobody's wall time; a file's own code runs at its points alone."""
    for name in names:
        if not is_outside(name):
            unavailable(build(name))


def unavailable(contender: Contender) -> str | None:
    """Why the contender cannot run in this process, and what would help; None if it can.

    One of another SGLang runs in a process that finds that version first: bench/execute/installs.py.
    """
    wanted, found = sglang_of(contender.name), package_version("sglang")
    if wanted is not None and wanted != found:
        return f"this process has SGLang {found}, expected {wanted}: sweep takes one with --sglang FOLDER_OR_WHEEL"
    return contender.unavailable()
