"""Parses `op=head,rank=16` to the values that a case must have. bench.toml and accepted changes name cases so."""

from __future__ import annotations

from functools import cache
from typing import get_type_hints

import msgspec

from bench.model.case import Case
from bench.model.toml import ConfigError


@cache
def case_terms(selection: str) -> dict[str, object]:
    """The value of each named axis. Raises ConfigError for a name or a value that no case can have."""
    kinds = get_type_hints(Case)
    found: dict[str, object] = {}
    for text in selection.split(","):
        name, equals, written = (part.strip() for part in text.partition("="))
        if not equals or name not in kinds:
            expected = f"NAME=VALUE[,NAME=VALUE...] with NAME one of {', '.join(kinds)}"
            raise ConfigError(f"{text!r} is not a term of a case; expected {expected}")
        try:
            found[name] = msgspec.convert(written, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{text!r}: no case has this {name}: {error}") from error
    return found


def fits(case: Case, selection: str) -> bool:
    """Whether the case has all of these values. Raises ConfigError."""
    return all(getattr(case, name) == value for name, value in case_terms(selection).items())
