"""Selects contenders and cases of a plan by options of the command line.

A selection that matches nothing is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_type_hints

import msgspec

from bench.model.case import Case
from bench.model.registry import fits
from bench.model.toml import ConfigError

CASE_AXES = tuple(Case.__struct_fields__)


def select_contenders(names: list[str], patterns: Sequence[str]) -> list[str]:
    """Those that match a pattern; all if there are no patterns. Raises ConfigError for a pattern without a match."""
    if not patterns:
        return names
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise ConfigError(f"--contender {pattern}: matches none of {', '.join(names)}")
    return [name for name in names if any(fits(name, pattern) for pattern in patterns)]


def case_filter(cases: Sequence[Case], selections: Sequence[str]) -> Callable[[Case], bool]:
    """A predicate for cases that have all terms of a selection. Without selections, it accepts every case.

    Raises ConfigError for a selection that none of `cases` matches.
    """
    wanted = [[_term(selection, text, cases) for text in selection.split(",")] for selection in selections]

    def fits(case: Case, terms: Sequence[tuple[str, object]]) -> bool:
        return all(getattr(case, name) == value for name, value in terms)

    for selection, terms in zip(selections, wanted, strict=True):
        if not any(fits(case, terms) for case in cases):
            raise ConfigError(f"--case {selection}: no case has all of these values")
    return lambda case: not wanted or any(fits(case, terms) for terms in wanted)


def _term(selection: str, text: str, cases: Sequence[Case]) -> tuple[str, object]:
    """`rank=16` -> (name, value), the value one that a case has."""
    name, equals, written = (part.strip() for part in text.partition("="))
    if not equals or name not in CASE_AXES:
        known = ", ".join(CASE_AXES)
        raise ConfigError(
            f"--case {selection}: {text!r} is not a term; expected NAME=VALUE[,NAME=VALUE...] with NAME one of {known}"
        )
    values = sorted({getattr(case, name) for case in cases})
    try:
        value: object = msgspec.convert(written, get_type_hints(Case)[name], strict=False)
    except msgspec.ValidationError:
        value = None
    if value not in values:
        listed = ", ".join(map(str, values))
        raise ConfigError(f"--case {selection}: no case has {name}={written}; expected one of {listed}")
    return name, value
