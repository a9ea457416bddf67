"""Reads TOML into typed values. A wrong key, type or value is an error that names the place and what is allowed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration or an option is wrong. The message names the place and the remedy."""


def read_toml(path: Path, kind: type[T]) -> T:
    """A TOML file as a value of `kind`, a struct. Raises ConfigError, naming the place and what is allowed there."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}; expected TOML in UTF-8") from error
    raw = parse_toml(text, str(path))
    converted: T = convert(raw, kind, str(path))
    refuse_not_finite(raw, str(path))
    return converted


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source}: nested deeper than can be read; expected the keys of bench.toml") from None


def refuse_not_finite(value: Any, source: str, place: str = "") -> None:
    """Raises ConfigError for inf and nan, which TOML has; no bound excludes nan."""
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{source}: {place} is {value}; expected a finite number")
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_not_finite(item, source, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_not_finite(item, source, f"{place}[{index}]")


def convert(raw: Mapping[str, Any], kind: Any, source: str, *, strict: bool = True) -> Any:
    """Convert with msgspec; an error says where, and what is allowed there."""
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
    if get_origin(kind) is Annotated and get_args(kind)[1].description:
        return f"allowed: {get_args(kind)[1].description}"
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
