"""The source trees of two sides, and the folder from which a side's worker imports.

The measuring code is always this checkout's: only `csgmv_embed` differs between the sides.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environment import ROOT, collect_code, hash_sources, source_hashes
from bench.gate.verdict import CannotJudge, GateError, Subject

LIBRARY = "csgmv_embed"


@dataclass(frozen=True)
class Tree:
    """One side's code. `path` holds the library and the suite, and nothing else, for PYTHONPATH."""

    subject: Subject
    path: Path

    @property
    def library(self) -> Path:
        """Where the library's files really are."""
        return (self.path / LIBRARY).resolve()

    def environment(self) -> dict[str, str]:
        """For a worker: this side's library and this checkout's suite, before all that is installed or on the path."""
        known = os.environ.get("PYTHONPATH")
        return {
            "PYTHONPATH": f"{self.path}{os.pathsep}{known}" if known else str(self.path),
            "PYTHONSAFEPATH": "1",  # the cwd may hold another library
        }


@contextmanager
def trees(before: str | None, after: str | None) -> Iterator[tuple[Tree, Tree]]:
    """The trees of two revisions; None is this checkout as it is, uncommitted changes included.

    Raises GateError for a name that git does not know, CannotJudge for a revision without the library.
    """
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as name:
        folder = Path(name)
        with ExitStack() as stack:
            sides = []
            for side, rev in (("a", before), ("b", after)):
                root = ROOT
                if rev is not None:
                    root = stack.enter_context(_checked_out(commit_of(rev), folder / f"worktree-{side}"))
                sides.append(_tree(folder / side, root, rev))
            yield sides[0], sides[1]


@contextmanager
def _checked_out(sha: str, root: Path) -> Iterator[Path]:
    """A worktree of the commit at `root`, as long as it is needed."""
    git("worktree", "add", "--detach", "--quiet", str(root), sha)
    try:
        yield root
    finally:
        git("worktree", "remove", "--force", str(root))


def _tree(folder: Path, root: Path, rev: str | None) -> Tree:
    digest = link(folder, root, str(rev))
    if rev is None:
        code = collect_code()
        label = f"{code.short or 'unknown commit'}{' + uncommitted changes' if code.dirty else ''}"
        return Tree(Subject(label, code.sha, code.dirty, digest), folder)
    sha = commit_of(rev)
    return Tree(Subject(sha[:9], sha, False, digest), folder)


def link(folder: Path, root: Path, label: str) -> str:
    """Make the folder for PYTHONPATH of the library below `root`; the hash of its sources.

    Raises CannotJudge if there is no library.
    """
    library = root / LIBRARY
    if not (library / "__init__.py").is_file():
        raise CannotJudge(f"{label}: has no {LIBRARY}/__init__.py, so there is nothing to measure on that side")
    folder.mkdir()
    (folder / LIBRARY).symlink_to(library, target_is_directory=True)
    (folder / "bench").symlink_to(ROOT / "bench", target_is_directory=True)
    return hash_sources(library, root=root)


def commit_of(rev: str) -> str:
    """The full hash of a revision. Raises GateError."""
    return git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")


def has_commit(sha: str | None) -> bool:
    """Whether this checkout's repository can bring the commit back."""
    if sha is None:
        return False
    try:
        return bool(commit_of(sha))
    except GateError:
        return False


def hashes_at(sha: str) -> tuple[str, str] | None:
    """The hashes of the sources of a commit, as collect_code takes them; None if git cannot bring it back."""
    if not has_commit(sha):
        return None
    with (
        tempfile.TemporaryDirectory(prefix="bench-sources-") as folder,
        _checked_out(sha, Path(folder) / "worktree") as root,
    ):
        return source_hashes(root)


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git says of a repository. Raises GateError, with git's own words."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=120
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise GateError(f"git {arguments[0]}: {error}; --against needs git") from error
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise GateError(f"git {' '.join(arguments)}: {words}; expected a revision of {root.name} and a git checkout")
    return done.stdout.strip()
