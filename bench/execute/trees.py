"""The source trees of two sides, and the folder from which a side's worker imports.

The measuring code is always this checkout's: only `csgmv_embed` differs between the sides.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.model import git
from bench.model.config import Config, ConfigError, as_before
from bench.model.environment import ROOT, VARIED_SGLANG, collect_code
from bench.model.records import Environment
from bench.model.sources import SourceHashes, hash_library, source_hashes
from bench.model.verdict import CannotJudge, GateError, Subject

LIBRARY = "csgmv_embed"


@dataclass(frozen=True)
class Tree:
    """One side's code. `path` holds the library and the suite and nothing else, for PYTHONPATH.

    sglang: the folder of the SGLang that this side uses instead of the installed one. The subject then names that.
    """

    subject: Subject
    path: Path
    sglang: Path | None = None

    @property
    def library(self) -> Path:
        """Where the library's files really are."""
        return (self.path / LIBRARY).resolve()

    def environment(self) -> dict[str, str]:
        """The environment of a worker: this side's library and this checkout's suite come first on its path."""
        parts = (self.path, self.sglang, os.environ.get("PYTHONPATH"))
        return {
            "PYTHONPATH": os.pathsep.join(str(part) for part in parts if part),
            "PYTHONSAFEPATH": "1",  # the cwd may hold another library
        } | ({VARIED_SGLANG: "1"} if self.sglang else {})

    def is_in(self, env: Environment | None) -> bool:
        """Whether a worker with this environment imported what the subject names."""
        name = "sglang_lora_sha256" if self.sglang else "library_sha256"
        return env is not None and env.volatile.get(name) == self.subject.kernel_source_sha256


@contextmanager
def trees(before: str | None, after: str | None) -> Iterator[tuple[Tree, Tree]]:
    """The trees of two revisions. None is this checkout as it is, with uncommitted changes.

    Raises GitError for a name that git does not know, CannotJudge for a revision without the library.
    """
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as name:
        folder = Path(name)
        with ExitStack() as stack:
            sides = []
            for side, rev in (("a", before), ("b", after)):
                root = ROOT
                if rev is not None:
                    rev = commit_of(rev)
                    root = stack.enter_context(_checked_out(rev, folder / f"worktree-{side}"))
                sides.append(_tree(folder / side, root, rev))
            yield sides[0], sides[1]


@contextmanager
def _checked_out(sha: str, root: Path) -> Iterator[Path]:
    """A worktree of the commit at `root`, as long as it is needed."""
    git.git("worktree", "add", "--detach", "--quiet", str(root), sha, root=ROOT)
    try:
        yield root
    finally:
        git.git("worktree", "remove", "--force", str(root), root=ROOT)


def _tree(folder: Path, root: Path, sha: str | None) -> Tree:
    digest = link(folder, root, sha[:9] if sha else "this checkout")
    if sha is None:
        code = collect_code()
        label = f"{code.short or 'unknown commit'}{' + uncommitted changes' if code.dirty else ''}"
        return Tree(Subject(label, code.sha, code.dirty, digest), folder)
    return Tree(Subject(sha[:9], sha, False, digest), folder)


def link(folder: Path, root: Path, label: str) -> str:
    """Create the PYTHONPATH folder for the library below `root`. Returns the hash of its sources.

    Raises CannotJudge if there is no library.
    """
    if not (root / LIBRARY / "__init__.py").is_file():
        raise CannotJudge(f"{label}: has no {LIBRARY}/__init__.py, so there is nothing to measure on that side")
    link_suite(folder, root)
    return hash_library(root)


def link_suite(folder: Path, root: Path) -> None:
    """Create the PYTHONPATH folder: this checkout's suite, and the library below `root` if it has one."""
    folder.mkdir()
    (folder / "bench").symlink_to(ROOT / "bench", target_is_directory=True)
    if (root / LIBRARY).is_dir():
        (folder / LIBRARY).symlink_to(root / LIBRARY, target_is_directory=True)


def commit_of(name: str) -> str:
    """The full hash of a revision of this checkout's repository. Raises GitError."""
    return git.commit_of(name, ROOT)


def has_commit(sha: str | None) -> bool:
    """Whether this checkout's repository has the commit."""
    return git.has_commit(sha, ROOT)


def hashes_at(sha: str | None, version: str) -> SourceHashes | None:
    """The hashes of a commit's sources, as results of that format have them. None if git does not have the commit."""
    if sha is None or not has_commit(sha):
        return None
    with (
        tempfile.TemporaryDirectory(prefix="bench-sources-") as folder,
        _checked_out(commit_of(sha), Path(folder) / "worktree") as root,
    ):
        return source_hashes(root, version)


def config_at(sha: str, config: Config) -> Config | None:
    """The configuration with the rules and profiles of a commit. None if the commit has no bench.toml.

    Raises GateError if this version of the suite cannot read them.
    """
    try:
        text = git.git("show", f"{sha}:bench.toml", root=ROOT)
    except git.GitError:
        return None
    try:
        return as_before(config, text, f"bench.toml of {sha[:9]}")
    except ConfigError as error:
        raise GateError(f"the rules of this commit cannot be read: {error}") from error
