"""Repeats of one message as one line with a count. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def folded(messages: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(name, message) pairs -> each message once, in the order of its first: `name`, or `name and 3 more`."""
    found: dict[str, list[str]] = {}
    for name, message in messages:
        found.setdefault(message, []).append(name)
    return [(with_more(names[0], len(names) - 1), message) for message, names in found.items()]


def with_more(name: str, more: int) -> str:
    """`name and 3 more`."""
    return f"{name} and {more} more" if more else name


def times(status: str, more: int) -> str:
    """`error x 4`: how often a verdict was given, the first one's point standing for all."""
    return f"{status} x {more + 1}" if more else status
