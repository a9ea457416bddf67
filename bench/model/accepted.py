"""Accepted slowdowns of timed points: who accepted which one, why and until when. A TOML file beside bench.toml."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from bench.model.case_terms import case_terms
from bench.model.config import Percent
from bench.model.paths import ROOT
from bench.model.toml import ConfigError, read_toml

DEFAULT_PATH = ROOT / "accepted.toml"
Words = Annotated[str, msgspec.Meta(pattern=r"\S", description="some words")]


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry.

    It applies to the points that `case` (as `--case`), `contender` (name or glob pattern) and `clock` select.
    """

    case: str
    contender: Words
    clock: Literal["graph", "eager"]
    up_to_pct: Percent  # a slowdown of so much of the time of a call is accepted
    who: Words
    why: Words
    until: datetime.date  # the last day on which it is


class AcceptedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    accepted: tuple[Accepted, ...] = ()


def load(path: Path | None) -> tuple[Accepted, ...]:
    """The entries of a file. If the default file does not exist, there are none. Raises ConfigError."""
    if path is None and not DEFAULT_PATH.exists():
        return ()
    path = path or DEFAULT_PATH
    entries: tuple[Accepted, ...] = read_toml(path, AcceptedFile).accepted
    for index, entry in enumerate(entries):
        try:
            case_terms(entry.case)
        except ConfigError as error:
            raise ConfigError(f"{path}: accepted[{index}].case: {error}") from None
    return entries
