"""Checks that results were measured on a commit that can be named."""

from __future__ import annotations

from pathlib import Path

from bench.execute import trees
from bench.model.paths import shown
from bench.model.records import Results
from bench.model.sources import OLD_FORMATS
from bench.model.verdict import GateError


def refuse_unproven(results: Results, path: Path | None) -> None:
    """Raises GateError unless the results were measured on a committed tree.

    A machine without .git cannot tell. In that case the hashes of the sources must be those of the commit that it
    names.
    """
    then, version = results.code, results.schema.version
    where = shown(path) if path else "the result"
    if then.dirty:
        raise GateError(f"{where}: measured on a tree with uncommitted changes; expected a commit")
    if then.dirty is None:
        suite = then.bench_version if version in OLD_FORMATS else then.suite_source_sha256
        if trees.hashes_at(then.sha, version) != (then.kernel_source_sha256, suite):
            raise GateError(
                f"{where}: does not say whether its tree had changes, and its sources differ from those of the "
                f"commit {then.short or '(none)'} that it names; expected results of a commit of this repository"
            )
        then.dirty, then.diff_sha256 = False, None
