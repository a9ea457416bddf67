"""The one reader and the one writer of the suite's JSON files. Everything read is checked; files are written whole."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from inspect import cleandoc
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec

from bench.model.faults import named_place, results_faults, text_faults
from bench.model.fields import in_words
from bench.model.records import SCHEMA_NAME, SCHEMA_VERSION, Point, Results, ResultsError, Schema, UsedGpu
from bench.model.text import one_line

Document = TypeVar("Document")
# What can be done with a file of another format.
ELSEWHERE = {
    "csgmv-bench-serve": ": of bench serve; show, compare, plot, history add and gate FILE --baseline FILE take it"
}


def encode(results: msgspec.Struct) -> bytes:
    """The file's bytes: sorted keys, 6 significant digits, one line for each point.

    Raises ResultsError for NaN or infinity.
    """
    return readable(_written(msgspec.to_builtins(results), ""))


def readable(document: Any) -> bytes:
    """A document as JSON with readable diffs. Takes anything that msgspec can encode."""
    return _lines(msgspec.to_builtins(document), "").encode() + b"\n"


def _lines(value: Any, indent: str) -> str:
    """A line for each item of a list of objects, else one for each field around it."""
    if isinstance(value, dict) and any(map(_has_items, value.values())):
        fields = (f"{indent} {_compact(key)}: {_lines(value[key], indent + ' ')}" for key in sorted(value))
        return "{\n" + ",\n".join(fields) + f"\n{indent}}}"
    if _has_items(value):
        return "[\n" + ",\n".join(f"{indent} {_compact(item)}" for item in value) + f"\n{indent}]"
    return _compact(value)


def _has_items(value: Any) -> bool:
    """Whether a value is, or holds outside of lists, a list of objects."""
    if isinstance(value, dict):
        return any(map(_has_items, value.values()))
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | _Encoded)


class _Encoded(str):
    """An object that is JSON already."""

    __slots__ = ()


def _compact(value: Any) -> str:
    if isinstance(value, _Encoded):
        return value
    return msgspec.json.encode(value, order="sorted").decode()


def _written(value: Any, place: str) -> Any:
    if isinstance(value, float):
        if not isfinite(value):  # JSON would say null, which is another thing
            raise ResultsError(f"{place.removeprefix('.')} is {value}; expected a finite number")
        return float(f"{value:.6g}")
    if isinstance(value, str):
        return one_line(value)  # what a worker, a tool or git said may hold anything
    if isinstance(value, dict):
        return {one_line(key): _written(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item, f"{place}[{index}]") for index, item in enumerate(value)]
    return value


def write(path: Path, results: msgspec.Struct) -> None:
    """Replace the file in one step: a reader, or a kill, sees the old or the new one, never a part of it.

    Raises ResultsError, and leaves the old file alone, if the results or the disk do not allow it.
    """
    try:
        data = encode(results)
    except ResultsError as error:
        raise ResultsError(f"{path}: cannot be written: {error}") from error
    write_bytes(path, data)


class Growing:
    """A results file that is written repeatedly. Points that did not change are not encoded again.

    Encoding a thousand points takes as long as measuring some.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[
            int, tuple[Point, _Encoded]
        ] = {}  # by the point's id, which is its own as long as it is kept here

    def write(self, results: Results, changed: Point | None = None) -> None:
        """Write like `write`.

        changed: the only point that may differ from what was written before. Raises ResultsError.
        """
        if changed is not None:
            self._lines.pop(id(changed), None)
        try:
            document = _written(msgspec.to_builtins(msgspec.structs.replace(results, points=[])), "")
            document["points"] = [self._line(index, point) for index, point in enumerate(results.points)]
        except ResultsError as error:
            raise ResultsError(f"{self._path}: cannot be written: {error}") from error
        write_bytes(self._path, _lines(document, "").encode() + b"\n")

    def _line(self, index: int, point: Point) -> _Encoded:
        known = self._lines.get(id(point))
        if known is None:
            line = _Encoded(_compact(_written(msgspec.to_builtins(point), f".points[{index}]")))
            known = self._lines[id(point)] = point, line
        return known[1]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace any file in one step. If the disk does not allow it, raises ResultsError and keeps the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def compact(results: Results) -> Results:
    """The file as a baseline: one value for each round, and no details that matter only to this machine's owner."""
    for point in results.points:
        point.wall_s = 0.0
        for item in point.rounds:
            item.blocks_us = [median(item.blocks_us)]
            if item.host_blocks_us:
                item.host_blocks_us = [median(item.host_blocks_us)]
    results.points.sort(key=lambda point: point.index)
    results.run.argv = ["bench", "baseline"]
    if results.env is not None:
        results.env.volatile = {}
    results.gpus = [UsedGpu() for _ in results.gpus]
    return results


def read(path: Path) -> Results:
    """Read a results file. Raises ResultsError for a missing, corrupt, foreign, newer-major or unsound file."""
    return read_document(path, Results, SCHEMA_NAME, SCHEMA_VERSION, results_faults)


def read_document(
    path: Path, kind: type[Document], name: str, version: str, faults: Callable[[Document], Iterable[str]]
) -> Document:
    """Read a file of this or another format of the suite. Each has a `schema` with a name and a version.

    `faults` checks what no single field can show: how fields fit together. Raises ResultsError naming file, point and
    field.
    """
    data = read_bytes(path)
    found = _check_schema(path, data, name, version)
    return decode(path, data, kind, faults, newer=found if found != version else None)


class _Head(msgspec.Struct):
    """Enough of any of the formats to tell which one it is."""

    schema: Schema | None = None
    name: str | None = None


def format_of(path: Path, expected: str) -> str:
    """The name of a file's format. Raises ResultsError, with what was expected, if it is not one of the suite's."""
    if path.suffix == ".ncu-rep":
        raise ResultsError(f"{path}: is a report of ncu; expected python -m bench profile show {path}")
    try:
        head = msgspec.json.decode(read_bytes(path), type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultsError(f"{path}: not a file of this suite: {one_line(str(error))}; expected {expected}") from error
    return head.schema.name if head.schema is not None else head.name or "JSON file that names no format of this suite"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ResultsError naming the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error


def decode(
    path: Path,
    data: bytes,
    kind: type[Document],
    faults: Callable[[Document], Iterable[str]],
    *,
    newer: str | None = None,
) -> Document:
    """The bytes of `path` as a checked document. Raises ResultsError. `newer`: the name of its format, if not ours."""
    try:
        document = msgspec.json.decode(data, type=kind)
        plain = msgspec.json.decode(data)
    except RecursionError as error:
        raise ResultsError(f"{path}: not a valid results file: nested too deep for any record of this suite") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        axis = re.search(r"unknown field `(.*)` - at `\$\.(points\[\d+\]\.case)`", str(error))
        if axis and newer:  # ignored, it would make one case of several
            raise ResultsError(
                f"{path}: {axis[2]} has the axis {axis[1]!r}, which format {SCHEMA_VERSION} does not know; "
                f"format {newer} needs a newer version of this suite"
            ) from error
        where = named_place(data, str(error))
        raise ResultsError(f"{path}: not a valid results file: {one_line(in_words(str(error)))}{where}") from error
    for fault in itertools.chain(text_faults(plain), faults(document)):
        raise ResultsError(f"{path}: {fault}")
    return document


def _check_schema(path: Path, data: bytes, name: str, version: str) -> str:
    """The format's version."""

    class Head(msgspec.Struct):
        schema: Schema

    try:
        schema = msgspec.json.decode(data, type=Head).schema
    except RecursionError as error:
        raise ResultsError(f"{path}: not a results file of this suite: nested too deep") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not a results file of this suite: {one_line(str(error))}") from error
    if schema.name != name:
        instead = ELSEWHERE.get(schema.name, "")
        raise ResultsError(f"{path}: schema.name is {schema.name!r}; expected {name!r}{instead}")
    if schema.version.split(".")[0] != version.split(".")[0]:
        raise ResultsError(
            f"{path}: schema.version is {one_line(schema.version)}; expected {version.split('.')[0]}.x.y"
        )
    return schema.version


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, as checked in beside this module.

    Descriptions are docstrings: without their indentation, which Python 3.13 takes off and earlier ones keep.
    """
    schema = msgspec.json.schema(Results)
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = cleandoc(definition["description"])
    return schema
