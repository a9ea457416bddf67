"""Reads bench.toml into a typed configuration, and plans points from it. Unknown keys and bad values are errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from bench.model import outside
from bench.model.case import (
    CLOCKS,
    HIDDEN_OPS,
    MODELS,
    PLAIN_VOCAB,
    SITE_OPS,
    SITES,
    Cache,
    Case,
    ClockName,
    DType,
    Model,
    Op,
    Phase,
    RankMix,
    Site,
    Storage,
    point_name,
)
from bench.model.case_terms import case_terms
from bench.model.choice import CASE_AXES, case_filter, select_contenders
from bench.model.paths import ROOT
from bench.model.registry import FAMILIES, INSTALLED, Family, provides
from bench.model.rules import Rules, limits_of
from bench.model.serving import ServeProfile, Serving
from bench.model.toml import ConfigError, convert, parse_toml, read_toml, refuse_not_finite

DEFAULT_PATH = ROOT / "bench.toml"

Positive = Annotated[int, msgspec.Meta(ge=1)]
LARGEST = 1e9  # of a float: JSON, in which workers are told, has no infinity
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
Percent = PositiveFloat
Mix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(one|uniform|distinct|zipf:[0-9]+(\.[0-9]+)?)$",
        description="one, uniform, distinct, zipf:EXPONENT",
    ),
]
ChunkSize = Literal[16, 32, 64, 128]
SglangVersion = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(installed|[0-9]+\.[0-9]+\.[0-9]+[a-z0-9.+]*)$", description="installed, or a version: 0.5.23"
    ),
]
T = TypeVar("T")
Some = Annotated[tuple[T, ...], msgspec.Meta(min_length=1)]  # an empty list would plan nothing and call it a success

__all__ = ["CLOCKS", "Config", "ConfigError", "load", "make_plan", "parse_axis_overrides", "read_toml"]


class Axes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Values of each axis. An axis that is left out is inherited."""

    phase: Some[Phase] | None = None
    batch_size: Some[Positive] | None = None
    seq_len: Some[Positive] | None = None
    skew: Some[Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]] | None = None
    adapters: Some[Positive] | None = None
    mix: Some[Mix] | None = None
    base_fraction: Some[Annotated[float, msgspec.Meta(ge=0, le=1)]] | None = None
    rank: Some[Positive] | None = None
    rank_mix: Some[RankMix] | None = None
    vocab: Some[Positive] | None = None
    dtype: Some[DType] | None = None
    cache: Some[Cache] | None = None
    op: Some[Op] | None = None
    hidden: Some[Positive] | None = None
    site: Some[Site] | None = None
    model: Some[Model] | None = None
    storage: Some[Storage] | None = None
    chunk_size: Some[ChunkSize] | None = None
    sglang: Some[SglangVersion] | None = None

    def over(self, base: Axes) -> Axes:
        """These axes, completed with those of `base`."""
        mine = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(base, **mine)


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a point is measured. Times carry their unit in the name."""

    seed: int
    nodes: Positive
    max_index_sets: Positive
    blocks: Positive
    block_ms: PositiveFloat
    eager_calls: Positive
    prepare_calls: Positive
    rounds: Positive
    processes: Positive
    point_timeout_s: PositiveFloat
    start_timeout_s: PositiveFloat
    work_lanes: Positive


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named selection of cases, contenders and clocks."""

    clocks: Some[ClockName]
    contenders: Some[Family]
    grids: Some[Axes]
    axes: Axes = Axes()
    shuffle: bool = True
    rounds: Positive | None = None
    processes: Positive | None = None
    worker_env: dict[str, str] = {}


Figure = Literal[
    "launches",
    "programs",
    "active_programs",
    "busiest_loads",
    "busiest_stores",
    "load_bytes",
    "store_bytes",
    "load_sectors",
    "store_sectors",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "instructions",
    "widest_load_bits",
    "widest_store_bits",
    "num_warps",
    "resident_warps",
]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Effect limits of one clock, in percent of the time of a call."""

    screen_pct: Percent  # a point whose screening rounds differ by more is measured again
    floor_pct: Percent  # a confirmed change is at least this large
    unconfirmed_floor_pct: Percent  # the same against a stored baseline alone


class CaseLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Other limits for the cases that `case` selects, as `--case` does. A limit that is left out stays the clock's."""

    case: str
    clock: Literal["graph", "eager"]
    screen_pct: Percent | None = None
    floor_pct: Percent | None = None
    unconfirmed_floor_pct: Percent | None = None


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the gate measures and decides; bench.toml says why. The defaults are those of records without the field."""

    profile: str
    work_profile: str
    contenders: tuple[str, ...]
    clocks: tuple[Literal["graph", "eager"], ...]
    nodes: Positive
    screen_processes: Positive
    screen_layouts: Positive
    confirm_processes: Annotated[int, msgspec.Meta(ge=3)]
    confirm_layouts: Positive
    wave: Positive = 1
    clear_confidence: Annotated[float, msgspec.Meta(gt=0.5, le=1)] = 1.0
    visit_blocks: Positive
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=0.5)]
    power: Annotated[float, msgspec.Meta(gt=0.5, lt=1)]
    target_pct: Percent
    anchor_limit_pct: Percent
    baseline_processes: Annotated[int, msgspec.Meta(ge=2)]
    baseline_rounds: Annotated[int, msgspec.Meta(ge=2)]
    unstable_pct: Percent
    graph: Limits
    eager: Limits
    work_tolerance_pct: dict[Figure, Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]]
    cases: tuple[CaseLimits, ...] = ()

    @property
    def rules(self) -> Rules:
        """The part of this that a verdict uses, in the form in which it is recorded."""
        return msgspec.convert(msgspec.to_builtins(self), Rules)

    def limits(self, clock: ClockName) -> Limits:
        """The limits of a timed clock."""
        return self.eager if clock == "eager" else self.graph

    def limits_at(self, case: Case, clock: ClockName) -> Limits:
        """The limits of a point: its clock's, replaced where the first entry of `cases` that fits it says otherwise."""
        return limits_of(self.limits(clock), self.cases, case, clock)


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How commits are measured and changes found in their series; docs/explanation/history.md says why."""

    profile: str
    work_profile: str
    contenders: tuple[str, ...]  # followed from commit to commit; the others are measured with the anchor, once
    anchor_every: Positive
    penalty: PositiveFloat
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=0.5)]
    least_pct: Percent
    sglang_profile: str = "sglang"  # instead of both profiles where SGLang is what varies


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of bench.toml."""

    measure: Measure
    axes: Axes
    profiles: dict[str, Profile]
    gate: Gate
    history: History
    serving: Serving
    serve: dict[str, ServeProfile] = {}
    # Where the axis sglang finds versions: folders and wheels, patterns below the checkout.
    sglang_files: tuple[str, ...] = ()
    max_points: Positive = 100_000  # of one selection


class PlannedPoint(msgspec.Struct, frozen=True):
    """A point before it is measured."""

    case: Case
    contender: str
    clock: ClockName

    @property
    def name(self) -> str:
        return point_name(self.case, self.contender, self.clock)


class Plan(msgspec.Struct, frozen=True):
    """What one sweep does."""

    profile: str
    measure: Measure
    points: tuple[PlannedPoint, ...]
    shuffle: bool
    worker_env: dict[str, str]


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    config: Config = read_toml(path, Config)
    missing = [name for name in Axes.__struct_fields__ if getattr(config.axes, name) is None]
    if missing:
        raise ConfigError(f"{path}: [axes] lacks {', '.join(missing)}; expected a default for every axis")
    for index, entry in enumerate(config.gate.cases):
        try:
            case_terms(entry.case)
        except ConfigError as error:
            raise ConfigError(f"{path}: gate.cases[{index}].case: {error}") from None
    return config


def as_before(config: Config, text: str, source: str) -> Config:
    """This configuration with the axes, profiles and rules of another version's bench.toml, as far as it has them.

    Raises ConfigError if the text is not a configuration, or names something unknown to this version of the suite.
    """
    raw = parse_toml(text, source)
    now = msgspec.to_builtins(config)
    for table, kind in (("axes", Axes), ("gate", Gate)):
        known = {name: value for name, value in raw.get(table, {}).items() if name in kind.__struct_fields__}
        now[table] |= known
    now["profiles"] = raw.get("profiles", now["profiles"])
    converted: Config = convert(now, Config, source)
    refuse_not_finite(raw, source)
    return converted


def parse_axis_overrides(texts: Iterable[str], source: str = "--axis") -> Axes:
    """`rank=16,64` to Axes. Raises ConfigError naming the axis and its allowed values."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or name not in Axes.__struct_fields__:
            known = ", ".join(Axes.__struct_fields__)
            raise ConfigError(f"{source} {text}: expected NAME=VALUE[,VALUE...] with NAME one of {known}")
        if name in values:
            joined = ",".join([*values[name], listed])
            raise ConfigError(
                f"{source} {text}: {name} is given twice; expected its values in one option: {name}={joined}"
            )
        values[name] = [part.strip() for part in listed.split(",")] if listed else []
    axes: Axes = convert(values, Axes, source, strict=False)
    return axes


def make_plan(
    config: Config,
    profile_name: str,
    *,
    overrides: Axes | None = None,
    clocks: Sequence[ClockName] = (),
    contenders: Sequence[str] = (),
    cases: Sequence[str] = (),
) -> Plan:
    """The points of a profile after overrides and selections.

    `contenders` are names or glob patterns, of contenders of files too. Each of `cases` is a list of `name=value` that
    a case must have. Raises ConfigError if the profile is unknown or nothing is selected.
    """
    profile = config.profiles.get(profile_name)
    if profile is None:
        raise ConfigError(f"profile {profile_name!r} is unknown; expected one of {', '.join(sorted(config.profiles))}")
    base = (overrides or Axes()).over(profile.axes.over(config.axes))
    grid_axes = [(overrides or Axes()).over(grid.over(profile.axes.over(config.axes))) for grid in profile.grids]
    variants = sum(prod(len(getattr(base, axis)) for axis in FAMILIES[family]) for family in profile.contenders)
    _refuse_too_many(config, profile_name, "contenders", variants)
    names = select_contenders([*_variants(profile.contenders, base), *outside.selectable(contenders)], contenders)
    count = sum(prod(len(getattr(axes, axis)) for axis in CASE_AXES) for axes in grid_axes)
    _refuse_too_many(config, profile_name, "points", count * len(clocks or profile.clocks) * len(names))
    known = list(dict.fromkeys(case for axes in grid_axes for case in _cases(axes)))
    chosen = list(filter(case_filter(known, cases), known))
    product = (
        PlannedPoint(case, name, clock)
        for case in chosen
        for clock in clocks or profile.clocks
        for name in names
        if provides(name, case.op, case.site)
    )
    points = tuple(dict.fromkeys(product))  # a value may be given twice
    if not points:
        ops = ", ".join(dict.fromkeys(case.op for case in chosen))
        raise ConfigError(f"profile {profile_name}: {', '.join(names)}: none of these contenders has the op {ops}")
    measure = msgspec.structs.replace(
        config.measure,
        rounds=profile.rounds or config.measure.rounds,
        processes=profile.processes or config.measure.processes,
    )
    return Plan(profile_name, measure, points, profile.shuffle, profile.worker_env)


def _refuse_too_many(config: Config, profile_name: str, what: str, count: int) -> None:
    """Before they are listed: the lists of a few axes multiply to more than a machine can hold."""
    if count > config.max_points:
        raise ConfigError(
            f"profile {profile_name}: its axes make up to {count} {what}; expected at most {config.max_points} "
            "(max_points in bench.toml); give an axis fewer values"
        )


def _cases(axes: Axes) -> Iterable[Case]:
    """The product of the case axes, with what a case ignores set to one value so that equal cases are equal."""
    for values in itertools.product(*(getattr(axes, name) for name in CASE_AXES)):
        case = _at_site(Case(**dict(zip(CASE_AXES, values, strict=True))))
        if case.op not in HIDDEN_OPS:
            case = msgspec.structs.replace(case, hidden=0)
        if case.phase == "decode" or case.of_head:
            case = msgspec.structs.replace(case, phase="decode", seq_len=1, skew=0.0)
        if case.mix == "distinct":
            case = msgspec.structs.replace(case, adapters=case.batch_size)
        yield case


def _at_site(case: Case) -> Case:
    """The case with site and model where its op has them, and no vocabulary then. Raises ConfigError."""
    if case.of_head or case.op not in SITE_OPS:
        return msgspec.structs.replace(case, site="none", model="none")
    for axis, values in (("site", SITES), ("model", MODELS)):
        if getattr(case, axis) == "none":
            raise ConfigError(f"op {case.op} needs {axis}, which is none; expected one of {', '.join(values[1:])}")
    return msgspec.structs.replace(case, vocab=PLAIN_VOCAB)


def _variants(families: Sequence[Family], axes: Axes) -> list[str]:
    """Contender names: a family times the values of the variant axes it has."""
    names: list[str] = []
    for family in families:
        options = [[_option(axis, value) for value in getattr(axes, axis)] for axis in FAMILIES[family]]
        names += ["".join((family, *chosen)) for chosen in itertools.product(*options)]
    return names


def _option(axis: str, value: object) -> str:
    """What a value adds to a contender's name."""
    if axis == "sglang":
        return "" if value == INSTALLED else f"@{value}"
    return f"-chunk{value}" if axis == "chunk_size" else f"-{value}"
