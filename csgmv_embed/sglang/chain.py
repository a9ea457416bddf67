"""Finds out whether a function of ours still runs where it was installed, by looking at what replaced it.

It finds ours itself, and any function that holds ours in its closure, its default values, a global that its code names,
a partial, a method or a callable object, even if it does not call it. It does not find ours if the replacement looks it
up in another way, from a list or an attribute of an object. A `__wrapped__` alone proves nothing: SGLang's own REPLACE
hooks set it and never call what it names.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

MOST = 1000  # functions looked at; a wrapper reaches a handful


def holds(function: Any, ours: Any) -> bool:
    """Whether this is exactly the function that was installed around ours."""
    return any(value is ours for value in _closure(function))


def reaches(function: Any, ours: Any) -> bool:
    """Whether a function's contents lead to ours."""
    seen: set[int] = set()
    waiting = [(function, True)]
    while waiting and len(seen) < MOST:
        at, with_globals = waiting.pop()
        if at is ours:
            return True
        if id(at) in seen:
            continue
        seen.add(id(at))
        waiting += [(value, with_globals) for value in _held(at) if _is_code(value)]
        if with_globals:  # one step: from there on code leads everywhere
            waiting += [(value, False) for value in _named(at) if _is_code(value)]
    return False


def described(function: Any) -> str:
    """Where a function was written. A wrapper bears the name of what it wraps, so its own code is asked."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return f"{type(function).__module__}.{type(function).__qualname__} object"
    return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


def _is_code(value: Any) -> bool:
    return callable(value) and not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType))


def _held(function: Any) -> Iterator[Any]:
    """What a callable carries with it."""
    if isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif isinstance(function, types.MethodType):
        yield from (function.__func__, function.__self__)
    elif isinstance(function, types.FunctionType):
        yield from _closure(function)
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
    else:
        yield from getattr(function, "__dict__", {}).values()
        yield inspect.getattr_static(type(function), "__call__", None)


def _closure(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _named(function: Any) -> Iterator[Any]:
    """The globals that a function's code names."""
    if isinstance(function, types.FunctionType):
        known = function.__globals__
        yield from (known[name] for name in function.__code__.co_names if name in known)
