"""Contenders from outside this repository: classes in files that a user names, and in installed packages.

A file is read here and not imported, so that the command line needs none of its imports; a worker imports it. A
contender is called `NAME#HASH`: the name in its class, and the first digits of the SHA-256 of its files. Other contents
make another contender. The named files reach worker processes in an environment variable.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import msgspec

from bench.model.case import Op
from bench.model.toml import ConfigError

GROUP = "csgmv_bench.contenders"  # of entry points
VARIABLE = "BENCH_CONTENDER_FILES"
MARK = "#"
DIGITS = 8  # of the hash in a name
METHODS = ("setup", "required_bytes")
PAGE = "docs/how-to/add-a-contender.md"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Outside(msgspec.Struct, frozen=True):
    """One contender. `file` is where it lies on this machine; `module` is how a package's own is imported."""

    name: str
    file: str
    class_name: str
    ops: tuple[Op, ...]
    sha256: str
    module: str | None = None


class OutsideFile(msgspec.Struct, frozen=True):
    """A record's description of one: the name of its file, without its folder, and the hash of all its sources."""

    contender: str
    file: str
    sha256: str


def is_outside(name: str) -> bool:
    """Whether a contender's name is that of a contender from outside."""
    return MARK in name


def without_hash(name: str) -> str:
    """A contender's name without the hash of its file."""
    return name.partition(MARK)[0]


def register(paths: Iterable[Path]) -> None:
    """Make the contenders of these files known in this process and in every process that it starts.

    Raises ConfigError.
    """
    found = dict.fromkeys(str(path.resolve()) for path in paths)
    for path in found:
        read_file(Path(path))
    os.environ[VARIABLE] = os.pathsep.join(found)


def of_files() -> dict[str, Outside]:
    """The contenders of the named files, by name. Raises ConfigError."""
    listed = os.environ.get(VARIABLE, "")
    return {item.name: item for path in listed.split(os.pathsep) if path for item in read_file(Path(path))}


@cache
def installed() -> dict[str, Outside]:
    """The contenders of installed packages, by name. Raises ConfigError for an entry point that is not a contender."""
    found = [_of_entry_point(point) for point in importlib.metadata.entry_points(group=GROUP)]
    return {item.name: item for item in found}


def find(name: str) -> Outside | None:
    """The contender with this name, including the hash. None if no file and no package has it."""
    return of_files().get(name) or installed().get(name)


def present(name: str) -> str:
    """The present name of a contender in a record: the one with its file's present hash, if a file has it."""
    known = {**installed(), **of_files()} if is_outside(name) else {}
    alike = [other for other in known if without_hash(other) == without_hash(name)]
    return alike[0] if name not in known and len(alike) == 1 else name


def selectable(patterns: Sequence[str]) -> list[str]:
    """Names to select from: those of files, and those of packages if anything is selected by name."""
    return [*of_files(), *(installed() if patterns else ())]


def described(names: Iterable[str]) -> list[OutsideFile]:
    """A record's description of those among `names` that are from outside."""
    found = [item for name in dict.fromkeys(names) if is_outside(name) and (item := find(name))]
    return [OutsideFile(item.name, Path(item.file).name, item.sha256) for item in found]


def read_file(path: Path, class_name: str | None = None, module: str | None = None) -> list[Outside]:
    """The contenders of a Python file. Raises ConfigError that says what is missing."""
    try:
        content = path.read_bytes()
        tree = ast.parse(content, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a Python file") from error
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid Python: {error}; expected a file as in {PAGE}") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = [node for node in classes.values() if class_name in (None, node.name)]
    found = [_read_class(path, content, node, classes, module) for node in wanted if "name" in _literals(node)]
    if not found:
        which = f"class {class_name}" if class_name else "class"
        raise ConfigError(f'{path}: has no {which} with `name = "..."`; expected a contender as in {PAGE}')
    return found


def _read_class(
    path: Path, content: bytes, node: ast.ClassDef, classes: dict[str, ast.ClassDef], module: str | None
) -> Outside:
    where, literals = f"{path}: class {node.name}", _literals(node)
    name, ops = literals["name"], literals.get("ops", ("lookup",))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: name is {name!r}; expected small letters and digits, as in my_gather")
    if not isinstance(ops, tuple | list) or not ops or any(op not in get_args(Op) for op in ops):
        raise ConfigError(f"{where}: ops is {ops!r}; expected some of {', '.join(get_args(Op))}")
    methods, complete = _methods(node, classes)
    missing = [method for method in METHODS if method not in methods]
    if complete and missing:
        raise ConfigError(f"{where}: has no method {' and no '.join(missing)}; expected both, as in {PAGE}")
    digest = sha256(content)
    for source in literals.get("sources", ()):
        digest.update(_source(where, path, source))
    known = digest.hexdigest()
    return Outside(f"{name}{MARK}{known[:DIGITS]}", str(path), node.name, tuple(ops), known, module)


def _source(where: str, path: Path, name: object) -> bytes:
    """A file that the contender's own reads, by its name beside that one."""
    try:
        return f"\0{name}\0".encode() + (path.parent / str(name)).read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: sources has {name}: {error.strerror}; expected a file beside it") from error


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """What a class sets to a constant, by name; a name set to anything else is there with None."""
    found: dict[str, object] = {}
    for statement in node.body:
        targets, value = [], None
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign):
            targets, value = [statement.target], statement.value
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                found[target.id] = _constant(value)
    return found


def _constant(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _methods(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> tuple[set[str], bool]:
    """Names of its methods, and whether all of its bases are in the file: others may have what is missing."""
    found, complete = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}, True
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id != node.name:
            more, whole = _methods(classes[base.id], classes)
            found, complete = found | more, complete and whole
        else:
            complete = False
    return found, complete


def _of_entry_point(point: importlib.metadata.EntryPoint) -> Outside:
    where = f"entry point {point.name} of {GROUP}"
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as error:  # a package whose __init__ fails
        raise ConfigError(f"{where}: {point.module} cannot be imported: {error}; expected MODULE:CLASS") from error
    if spec is None or spec.origin is None or not point.attr:
        raise ConfigError(f"{where}: {point.value} does not name a class of a module; expected MODULE:CLASS")
    return read_file(Path(spec.origin), point.attr, point.module)[0]


def spellings(name: str) -> Iterator[str]:
    """The ways to name a contender: with the hash of its file, and without."""
    yield name
    if is_outside(name):
        yield without_hash(name)
