"""Triton's interpreter without its repeated work: the same results in two thirds of the time.

For every device function that a kernel calls, the interpreter (Triton 3.6) puts its own functions into triton.language
again. For every operation it rebuilds its table of numpy's types. For every tuple it spells out the type's name, which
nothing reads.
"""

from __future__ import annotations

import importlib
from functools import cache, cached_property
from typing import Any


@cache
def quicken() -> None:
    """Do each of these only once, in this process from now on. A Triton with other code is left as it is."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    core: Any = importlib.import_module("triton.language.core")
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = _looked_up(interpreter._get_np_dtype, core)
    if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = _patched_once(interpreter._patch_lang, core)
    if hasattr(core, "_type_for_tuple_values"):
        _name_no_tuples(core)


def _looked_up(np_dtype: Any, core: Any) -> Any:
    """numpy's type of a type of Triton, which is that of its scalar."""
    found, pointer = cache(np_dtype), np_dtype(core.pointer_type(core.int8))

    def looked_up(dtype: Any) -> Any:
        scalar = dtype.scalar
        return pointer if isinstance(scalar, core.pointer_type) else found(scalar)

    return looked_up


def _patched_once(patch_lang: Any, core: Any) -> Any:
    """Within one launch a device function finds triton.language patched by the kernel that calls it."""
    languages = (core, importlib.import_module("triton.language"))
    patched: list[set[int]] = []  # by the launch that runs: there is one at a time

    class Scope:
        """What one launch has patched, to be undone at its end."""

        def __init__(self, scope: Any) -> None:
            self._scope = scope

        def restore(self) -> None:
            patched.clear()
            self._scope.restore()

    def patched_once(function: Any) -> Any:
        wanted = {id(value) for value in function.__globals__.values() if any(value is item for item in languages)}
        if patched:
            return None if wanted <= patched[0] else patch_lang(function)
        scope = Scope(patch_lang(function))
        patched.append(wanted)
        return scope

    return patched_once


def _name_no_tuples(core: Any) -> None:
    begin = core.tuple.__init__

    def without_type(self: Any, args: Any, type: Any = None) -> None:
        if type is None:
            self.values = [*args]
        else:
            begin(self, args, type)

    core.tuple.__init__ = without_type
    core.tuple.type = cached_property(lambda self: core._type_for_tuple_values(self.values))
    core.tuple.type.__set_name__(core.tuple, "type")
