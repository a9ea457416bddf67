"""bench.toml -> typed configuration -> planned points. Unknown keys and bad values are errors that say so."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from bench.case import (
    CLOCKS,
    HEAD_OPS,
    HIDDEN_OPS,
    Cache,
    Case,
    ClockName,
    DType,
    Op,
    Phase,
    RankMix,
    Storage,
    point_name,
)
from bench.contenders import FAMILIES, Family, provides

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "bench.toml"

Positive = Annotated[int, msgspec.Meta(ge=1)]
LARGEST = 1e9  # of a float: JSON, in which workers are told, has no infinity
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
Percent = PositiveFloat
Mix = Annotated[str, msgspec.Meta(pattern=r"^(one|uniform|distinct|zipf:[0-9]+(\.[0-9]+)?)$")]
ChunkSize = Literal[16, 32, 64, 128]
T = TypeVar("T")
Some = Annotated[tuple[T, ...], msgspec.Meta(min_length=1)]  # an empty list would plan nothing and call it a success

__all__ = ["CLOCKS", "Config", "ConfigError", "load", "make_plan", "parse_axis_overrides"]

CASE_AXES = tuple(Case.__struct_fields__)
VARIANT_AXES = ("storage", "chunk_size")


class ConfigError(ValueError):
    """The configuration or a command-line override is wrong; the message names the place and the remedy."""


class Axes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Values of each axis; an axis left out is inherited."""

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
    storage: Some[Storage] | None = None
    chunk_size: Some[ChunkSize] | None = None

    def over(self, base: Axes) -> Axes:
        """These axes, and those of `base` where this leaves one out."""
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
]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Effect limits of one clock, in percent of the time of a call."""

    screen_pct: Percent  # a point whose screening rounds differ by more is measured again
    floor_pct: Percent  # a confirmed change is at least this large
    unconfirmed_floor_pct: Percent  # the same against a stored baseline alone


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the gate measures and decides; bench.toml says why. Defaults: how records without the field were made."""

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
    work_tolerance_pct: dict[Figure, Annotated[float, msgspec.Meta(ge=0)]]

    def limits(self, clock: ClockName) -> Limits:
        """The limits of a timed clock."""
        return self.eager if clock == "eager" else self.graph


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How commits are measured and changes found in their series; docs/method.md says why."""

    profile: str
    work_profile: str
    contenders: tuple[str, ...]  # followed from commit to commit; the others are measured with the anchor, once
    anchor_every: Positive
    penalty: PositiveFloat
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=0.5)]
    least_pct: Percent


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of bench.toml."""

    measure: Measure
    axes: Axes
    profiles: dict[str, Profile]
    gate: Gate
    history: History


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
    return config


def read_toml(path: Path, kind: type[T]) -> T:
    """A TOML file as a value of `kind`, a struct. Raises ConfigError, naming the place and what is allowed there."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}; expected TOML in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    converted: T = _convert(raw, kind, str(path))
    return converted


def parse_axis_overrides(texts: Iterable[str], source: str = "--axis") -> Axes:
    """`rank=16,64` -> Axes. Raises ConfigError naming the axis and what it allows."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or name not in Axes.__struct_fields__:
            known = ", ".join(Axes.__struct_fields__)
            raise ConfigError(f"{source} {text}: expected NAME=VALUE[,VALUE...] with NAME one of {known}")
        if name in values:
            joined = ",".join([*values[name], listed])
            raise ConfigError(f"{source} {text}: {name} is given twice; expected its values joined: {name}={joined}")
        values[name] = [part.strip() for part in listed.split(",")] if listed else []
    axes: Axes = _convert(values, Axes, source, strict=False)
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

    `contenders` are names or glob patterns; each of `cases` is a list of `name=value` that a case must have.
    Raises ConfigError if the profile is unknown or a selection leaves nothing.
    """
    profile = config.profiles.get(profile_name)
    if profile is None:
        raise ConfigError(f"profile {profile_name!r} is unknown; expected one of {', '.join(sorted(config.profiles))}")
    base = (overrides or Axes()).over(profile.axes.over(config.axes))
    names = _select_contenders(_variants(profile.contenders, base), contenders)
    grid_axes = [(overrides or Axes()).over(grid.over(profile.axes.over(config.axes))) for grid in profile.grids]
    chosen = _select_cases(list(dict.fromkeys(case for axes in grid_axes for case in _cases(axes))), cases)
    product = (
        PlannedPoint(case, name, clock)
        for case in chosen
        for clock in clocks or profile.clocks
        for name in names
        if provides(name, case.op)
    )
    points = tuple(dict.fromkeys(product))  # a value may be given twice
    if not points:
        ops = ", ".join(dict.fromkeys(case.op for case in chosen))
        raise ConfigError(f"profile {profile_name}: {', '.join(names)}: none of these has the op {ops}")
    measure = msgspec.structs.replace(
        config.measure,
        rounds=profile.rounds or config.measure.rounds,
        processes=profile.processes or config.measure.processes,
    )
    return Plan(profile_name, measure, points, profile.shuffle, profile.worker_env)


def _cases(axes: Axes) -> Iterable[Case]:
    """The product of the case axes, with what a case ignores set to one value so that equal cases are equal."""
    for values in itertools.product(*(getattr(axes, name) for name in CASE_AXES)):
        case = Case(**dict(zip(CASE_AXES, values, strict=True)))
        if case.op not in HIDDEN_OPS:
            case = msgspec.structs.replace(case, hidden=0)
        if case.phase == "decode" or case.op in HEAD_OPS:
            case = msgspec.structs.replace(case, phase="decode", seq_len=1, skew=0.0)
        if case.mix == "distinct":
            case = msgspec.structs.replace(case, adapters=case.batch_size)
        yield case


def _variants(families: Sequence[Family], axes: Axes) -> list[str]:
    """Contender names: a family times the values of the variant axes it has."""
    names: list[str] = []
    for family in families:
        options = [[_option(axis, value) for value in getattr(axes, axis)] for axis in FAMILIES[family]]
        names += ["-".join((family, *chosen)) for chosen in itertools.product(*options)]
    return names


def _option(axis: str, value: object) -> str:
    return f"chunk{value}" if axis == "chunk_size" else str(value)


def _select_contenders(names: list[str], patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return names
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"--contender {pattern}: matches none of {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _select_cases(cases: list[Case], selections: Sequence[str]) -> list[Case]:
    if not selections:
        return cases
    chosen: set[Case] = set()
    for selection in selections:
        terms = [_term(selection, text, cases) for text in selection.split(",")]
        fitting = [case for case in cases if all(getattr(case, name) == value for name, value in terms)]
        if not fitting:
            raise ConfigError(f"--case {selection}: no case of the profile has all of these values")
        chosen.update(fitting)
    return [case for case in cases if case in chosen]


def _term(selection: str, text: str, cases: Sequence[Case]) -> tuple[str, object]:
    """`rank=16` -> (name, value), the value one that a case has."""
    name, equals, written = (part.strip() for part in text.partition("="))
    if not equals or name not in CASE_AXES:
        known = ", ".join(CASE_AXES)
        raise ConfigError(
            f"--case {selection}: {text!r} is no term; expected NAME=VALUE[,NAME=VALUE...] with NAME one of {known}"
        )
    values = sorted({getattr(case, name) for case in cases})
    try:
        value: object = msgspec.convert(written, get_type_hints(Case)[name], strict=False)
    except msgspec.ValidationError:
        value = None
    if value not in values:
        listed = ", ".join(map(str, values))
        raise ConfigError(f"--case {selection}: no case of the profile has {name}={written}; expected one of {listed}")
    return name, value


def _convert(raw: Mapping[str, Any], kind: Any, source: str, *, strict: bool = True) -> Any:
    """msgspec conversion whose error says where and what is allowed there."""
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        message = str(error)
        where = re.search(r"at `(?:key in )?\$\.?(.*)`", message)
        place, found = _locate(raw, kind, where.group(1) if where else "")
        problem = message.split(" - at ")[0]
        raise ConfigError(f"{source}: {place or 'top level'}: {problem}; {_allowed(found)}") from error


def _locate(raw: Any, kind: Any, path: str) -> tuple[str, Any]:
    """A path like `profiles[...].grids[0].rank[0]` with the key for each `[...]`, and what the schema expects there."""
    place = ""
    for step in re.findall(r"[A-Za-z_]\w*|\[[^\]]*\]", path):
        kind = _bare(kind)
        if step == "[...]":  # msgspec does not say which key; it is the first whose value does not fit
            kind = get_args(kind)[-1]
            key = next(key for key, value in raw.items() if not _fits(value, kind))
            place, raw = f"{place}.{key}", raw[key]
        elif step.startswith("["):
            kind, place, raw = get_args(kind)[0], place + step, raw[int(step[1:-1])]
        else:
            kind, place, raw = get_type_hints(kind, include_extras=True)[step], f"{place}.{step}", raw[step]
    return place.removeprefix("."), _strip_optional(kind)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _allowed(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"allowed keys: {', '.join(kind.__struct_fields__)}"
    if get_origin(kind) is Literal:
        return f"allowed: {', '.join(map(str, get_args(kind)))}"
    if kind is Mix:
        return "allowed: one, uniform, distinct, zipf:EXPONENT"
    return f"allowed: {_spell(kind)}"


def _bare(kind: Any) -> Any:
    """The type without `| None` and without its bounds."""
    kind = _strip_optional(kind)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _strip_optional(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    return parts[0] if type(None) in get_args(kind) else kind


def _spell(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        meta = get_args(kind)[1]
        if meta.min_length:
            return f"{_spell(get_args(kind)[0])}, at least {meta.min_length}"
        signs = ((">=", meta.ge), (">", meta.gt), ("<=", meta.le))
        bounds = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None]
        return f"{get_args(kind)[0].__name__} {' and '.join(bounds)}"
    if get_origin(kind) is tuple:
        return f"a list, each {_spell(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind))
