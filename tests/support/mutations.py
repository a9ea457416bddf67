"""Ways to spoil one field of a decoded JSON document: what the test of the reader draws from."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[str | int, ...]
GONE = object()


class Number(str):
    """A number that JSON can spell and a float cannot hold, or that JSON cannot spell."""


SPOILS: dict[str, Callable[[Any], Any]] = {
    "gone": lambda value: GONE,
    "null": lambda value: None,
    "zero": lambda value: 0,
    "zero point": lambda value: 0.0,
    "negative": lambda value: -value if is_number(value) and value else -1,
    "NaN": lambda value: Number("NaN"),
    "too large": lambda value: Number("1e400"),
    "huge": lambda value: 1e300,
    "huge count": lambda value: 10**30,
    "text": lambda value: "nonsense",
    "number": lambda value: 3 if isinstance(value, str) else "3",
    "list": lambda value: [value],
    "object": lambda value: {"of": value},
    "empty": lambda value: type(value)() if isinstance(value, list | dict | str) else [],
    "twice": lambda value: [*value, copy.deepcopy(value[-1])] if isinstance(value, list) and value else [value, value],
    "new line": lambda value: f"{value}\n::error::x" if isinstance(value, str) else "\n",
    "escape": lambda value: f"\x1b[31m{value}" if isinstance(value, str) else "\x1b[31m",
    "deep": lambda value: Number("[" * 5000 + "]" * 5000),
}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def places(document: Any, at: Place = ()) -> Iterator[Place]:
    """The path of every container and leaf but the document itself."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inside:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def spoiled(document: Any, path: Place, spoil: str) -> Any:
    """A copy with the field at `path` spoiled."""
    found = copy.deepcopy(document)
    *before, last = path
    holder = found
    for key in before:
        holder = holder[key]
    value = SPOILS[spoil](holder[last])
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return found


def at(document: Any, path: Place) -> Any:
    for key in path:
        document = document[key]
    return document


def general(path: Place) -> str:
    """`points[].rounds[].process`: a path without the numbers of its items."""
    return re.sub(r"^\.", "", "".join("[]" if isinstance(key, int) else f".{key}" for key in path))


def spelled(value: Any) -> str:
    """JSON, with every Number as it is spelled."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spelled, value)) + "]"
    return json.dumps(value)
