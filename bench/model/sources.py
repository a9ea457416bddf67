"""Hashes of source files, which tell which library and suite ran, even without git."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LIBRARY = "csgmv_embed"
LIBRARY_SUFFIXES = (".py", ".json")  # the tuned tables choose the launch as the code does
OLD_FORMATS = ("1.0.0", "1.1.0")  # of results, whose hashes are of another kind: see `_old_hashes`


class SourceHashes(NamedTuple):
    """Hashes of the library's and of the suite's sources."""

    library: str
    suite: str


def library_folder() -> Path | None:
    """The library that this process would import. None without one; only the library's own contenders need it."""
    try:
        found = importlib.util.find_spec(LIBRARY)
    except ModuleNotFoundError:
        return None
    return Path(found.origin).resolve().parent if found is not None and found.origin is not None else None


def hash_library(root: Path) -> str:
    """Hash of the library below `root`: its code and its tuned tables. Without a library, the hash of nothing."""
    folders = [root / LIBRARY] if (root / LIBRARY).is_dir() else []
    return hash_sources(*folders, root=root, suffixes=LIBRARY_SUFFIXES)


def hash_suite(root: Path) -> str:
    """Hash of all of the suite's code below `root` and of its configuration."""
    return hash_sources(root / "bench", root / "bench.toml", root=root)


def source_hashes(root: Path, version: str) -> SourceHashes | None:
    """The hashes of a checkout as results of this format have them. None if it lacks the files of that format."""
    try:
        return _old_hashes(root) if version in OLD_FORMATS else SourceHashes(hash_library(root), hash_suite(root))
    except (OSError, SyntaxError, ValueError, IndexError, TypeError):  # the last four: a list that is none
        return None


def hash_sources(*paths: Path, root: Path, suffixes: Sequence[str] = (".py",)) -> str:
    """Hash of the paths that are files, and of every file with a suffix below the others.

    Names are relative to `root`.
    """
    digest = hashlib.sha256()
    for path in paths:
        below = [file for file in path.rglob("*") if file.suffix in suffixes and file.is_file()]
        for file in sorted(below) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _old_hashes(root: Path) -> SourceHashes:
    """As results up to 1.1.0: the library without tuned tables, and 16 digits of the files that took the times.

    Each checkout then had its own list of these files.
    """
    tree = ast.parse((root / "bench" / "environment.py").read_bytes())
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BENCH_FILES"
    ]
    names = ast.literal_eval(lists[0])
    measuring = hash_sources(*(root / "bench" / name for name in names), root=root)
    return SourceHashes(hash_sources(root / "csgmv_embed", root=root), measuring[:16])
