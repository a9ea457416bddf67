"""Folds repeats of one message into one line with a count. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def folded(messages: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(name, message) pairs to each message once, in order of first use, with `name` or `name and 3 more`."""
    found: dict[str, list[str]] = {}
    for name, message in messages:
        found.setdefault(message, []).append(name)
    return [(with_more(names[0], len(names) - 1), message) for message, names in found.items()]


def with_more(name: str, more: int) -> str:
    """`name and 3 more`."""
    return f"{name} and {more} more" if more else name


def times(status: str, more: int) -> str:
    """`error x 4`: how often a verdict was given. The first point stands for all."""
    return f"{status} x {more + 1}" if more else status
