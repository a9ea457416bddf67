"""The values that a field of a record may have. A reader refuses any other.

The bounds of times are far outside what a clock can measure. They keep every ratio of two times finite, and so every
verdict a comparison of numbers.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

SMALLEST, LARGEST = 1e-9, 1e12
T = TypeVar("T")

Positive = Annotated[float, msgspec.Meta(ge=SMALLEST, le=LARGEST)]  # a time, floor, anchor, bandwidth
Duration = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Ratio = Annotated[float, msgspec.Meta(gt=0)]  # of two times, or the end of its interval
Measured = Annotated[float, msgspec.Meta(ge=0)]  # an error or a tolerance
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Some = Annotated[list[T], msgspec.Meta(min_length=1)]
_SHA, _UUID = r"^[0-9a-f]{7,64}$", r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
Sha = Annotated[str, msgspec.Meta(pattern=_SHA)]  # a commit or a tree, whole or shortened
Uuid = Annotated[str, msgspec.Meta(pattern=_UUID)]
_IN_WORDS = {_SHA: "the hash of a commit, 7 to 64 hexadecimal digits", _UUID: "a UUID"}


def in_words(message: str) -> str:
    """A decoder's message, with words in place of a pattern."""
    for pattern, words in _IN_WORDS.items():
        message = message.replace(f"`str` matching regex {pattern!r}", words)
    return message
