"""Turns a recipe or cases of the command line into points, with how often each is launched."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from bench.model import config as configuration
from bench.model.case import Case, ClockName
from bench.model.config import Axes, Config, ConfigError, PlannedPoint, Positive, Profile, Some
from bench.model.registry import FAMILIES, Family, names

RECIPES = Path(__file__).resolve().parent / "recipes"
Mode = Literal["graph", "eager"]
MODES: tuple[Mode, ...] = ("graph", "eager")
DEFAULT_CONTENDERS: tuple[Family, ...] = ("csgmv_embed", "sglang_csgmv", "sglang_triton")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe, a target as a TOML file: a profile of bench.toml, and how much of it a tool is shown.

    launches  calls in one graph, each on index set of its own; in eager mode, calls in a row
    replays   replays of that graph; in eager mode, rows of calls
    """

    about: str
    grids: Some[Axes]
    contenders: Some[Family] = DEFAULT_CONTENDERS
    clocks: Some[Mode] = ("graph",)
    axes: Axes = Axes()
    launches: Positive = 4
    replays: Positive = 3


class Target(msgspec.Struct, frozen=True):
    """The points of one profiled process and how often each is launched. `seed` makes the workloads."""

    name: str
    points: tuple[PlannedPoint, ...]
    launches: int
    replays: int
    seed: int


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe of this folder by name, or from any file that ends in .toml. Raises ConfigError."""
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
        if not path.exists():
            known = ", ".join(recipe_names())
            raise ConfigError(f"--recipe {name}: expected one of {known}, or a file that ends in .toml")
    return configuration.read_toml(path, Recipe)


def make_target(
    config: Config,
    *,
    recipe: str | None = None,
    cases: Sequence[str] = (),
    contenders: Sequence[str] = (),
    clocks: Sequence[str] = (),
    launches: int | None = None,
    replays: int | None = None,
) -> Target:
    """The target of a recipe, of cases, or of a recipe's contenders on other cases.

    Each of `cases` is `NAME=VALUE,...` with one value for an axis; other axes come from bench.toml. `contenders` are
    names or patterns. Raises ConfigError.
    """
    if recipe is None and not cases:
        known = ", ".join(recipe_names())
        raise ConfigError(f"nothing to profile: expected CASE (NAME=VALUE,...) or --recipe with one of {known}")
    for clock in clocks:
        if clock not in MODES:
            raise ConfigError(f"--clock {clock}: expected one of {', '.join(MODES)}")
    name = Path(recipe).stem if recipe else "cases"
    found = load_recipe(recipe) if recipe else Recipe(about="cases of the command line", grids=(Axes(),))
    grids = tuple(_case_axes(text) for text in cases) or found.grids
    families = found.contenders if recipe else _wanted_families(contenders)
    profile = Profile(clocks=found.clocks, contenders=families, grids=grids, axes=found.axes)
    chosen: list[ClockName] = [mode for mode in MODES if mode in clocks]
    plan = configuration.make_plan(
        msgspec.structs.replace(config, profiles={name: profile}), name, clocks=chosen, contenders=contenders
    )
    return Target(name, plan.points, launches or found.launches, replays or found.replays, seed=config.measure.seed)


def _case_axes(text: str) -> Axes:
    axes = configuration.parse_axis_overrides(text.split(","), "CASE")
    for axis in ("storage", "chunk_size", "sglang"):
        if getattr(axes, axis) is not None:
            raise ConfigError(f"CASE {text}: {axis} belongs to a contender; choose it with --contender")
    return axes


def _wanted_families(patterns: Sequence[str]) -> tuple[Family, ...]:
    """The default contenders; with patterns, every family that has a name they fit."""
    if not patterns:
        return DEFAULT_CONTENDERS
    fitting = [
        family
        for family in FAMILIES
        if any(fnmatchcase(name, pattern) for name in _variant_names(family) for pattern in patterns)
    ]
    return tuple(fitting) or DEFAULT_CONTENDERS


def _variant_names(family: Family) -> list[str]:
    return [name for name in names() if name == family or name.startswith(f"{family}-")]


def parse_point(name: str) -> PlannedPoint:
    """The point with a name from `bench.model.case.point_name`. Raises ConfigError."""
    contender, _, rest = name.partition("|")
    clock, _, listed = rest.partition("|")
    terms = [term.partition("=") for term in listed.split("|")]
    try:
        case = msgspec.convert({key: value for key, _, value in terms}, Case, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: not a point:  {error}; expected CONTENDER|CLOCK|NAME=VALUE|...") from error
    if clock not in MODES:
        raise ConfigError(f"{name}: not a point:  clock {clock!r}; expected one of {', '.join(MODES)}")
    return PlannedPoint(case, contender, clock)
