"""What is compared: each contender is one implementation of an op, made here by its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from bench.model.case import Op, Site
from bench.model.registry import RECIPES, UnknownContenderError, asked_of, provides

if TYPE_CHECKING:
    from bench.contenders.base import Contender


def build(name: str, op: Op | None = None, site: Site = "none") -> Contender:
    """The contender called `name`, a `family[-option]`, for an op, of a site if one is named; for its first without.

    Imports its module only now. Raises UnknownContenderError for a name, or an op of it, that there is not.
    """
    if name not in RECIPES or (op is not None and not provides(name, op, site)):
        raise UnknownContenderError(name, asked_of(op, site) if op is not None and name in RECIPES else None)
    recipes = RECIPES[name]
    module, class_name, options = recipes[asked_of(op, site)] if op is not None else next(iter(recipes.values()))
    contender_class = getattr(importlib.import_module(f"bench.contenders.{module}"), class_name)
    return cast("Contender", contender_class(**options))
