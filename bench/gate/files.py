"""Which files may become a baseline, and what files are called."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from bench.environment import ROOT, collect_code
from bench.gate import trees
from bench.gate.verdict import GateError
from bench.results import Code, Results
from bench.sources import OLD_FORMATS

BASELINES = ROOT / "bench" / "baselines"


def results_path(what: str) -> Path:
    """A new file below results/."""
    return ROOT / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{what}.json"


def shown(path: Path) -> str:
    """A path as a person in the checkout would write it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def refuse_dirty(code: Code | None = None) -> None:
    """Raises GateError unless this checkout is exactly a commit."""
    code = code or collect_code()
    if code.dirty is None:
        raise GateError("this is no git checkout, so no commit can be named; expected to make baselines in a checkout")
    if code.dirty:
        raise GateError("the tree has uncommitted changes; expected a baseline to name the commit it was made of")


def refuse_unproven(results: Results, path: Path | None) -> None:
    """Raises GateError unless the results were measured on a committed tree.

    A machine without .git cannot say; then the sources' hashes must be those of the commit that it names.
    """
    then, version = results.code, results.schema.version
    where = shown(path) if path else "the result"
    if then.dirty:
        raise GateError(f"{where}: measured on a tree with uncommitted changes; expected a commit")
    if then.dirty is None:
        suite = then.bench_version if version in OLD_FORMATS else then.suite_source_sha256
        if trees.hashes_at(then.sha, version) != (then.kernel_source_sha256, suite):
            raise GateError(
                f"{where}: does not say whether its tree had changes, and its sources are not those of the "
                f"commit {then.short or '(none)'} it names; expected results of a commit of this repository"
            )
        then.dirty, then.diff_sha256 = False, None


def work_faults(results: Results) -> list[str]:
    """Counted points without compiled figures, which a baseline needs."""
    return [
        f"{point.contender}, {point.case.label} has no compiled figures: {point.work.compiled_reason}"
        for point in results.points
        if point.work is not None and not point.work.compiled
    ]


def baseline_name(results: Results) -> str:
    """`work` for counts, else the GPU model: `nvidia-h100-80gb-hbm3`."""
    if all(point.clock == "work" for point in results.points):
        return "work"
    gpu = results.env.identity.get("gpu") if results.env else None
    return re.sub(r"[^a-z0-9]+", "-", str(gpu or "unknown-gpu").lower()).strip("-")
