"""The commits of a line of history and their libraries: from git, or from a folder exported on a machine with git."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec

from bench.execute.trees import LIBRARY, Tree, link
from bench.model import git, store
from bench.model.environment import ROOT
from bench.model.faults import twice
from bench.model.history import Commit
from bench.model.records import Schema
from bench.model.verdict import GateError, Subject

EXPORT_NAME, EXPORT_VERSION, EXPORT_FILE = "csgmv-bench-commits", "1.0.0", "commits.json"
FIELDS = "%H%x1f%P%x1f%cI%x1f%s"


class Source(Protocol):
    """Where commits come from. `varies_sglang`: they are commits or versions of SGLang, not of this repository."""

    varies_sglang: bool

    def line(self, wanted: str) -> list[Commit]:
        """The commits of `A..B`, or of names joined by commas; oldest first, along first parents."""

    def commit(self, name: str) -> Commit: ...

    def fetch(self, commit: Commit, folder: Path) -> Path:
        """A folder with the commit's library. `folder` is free to be created."""

    def release(self, root: Path) -> None:
        """Undo what `fetch` did besides creating the folder."""

    def tree(self, folder: Path, commit: Commit, root: Path) -> Tree:
        """The side of a commit that was fetched to `root`. `folder` is free to be created. Raises CannotJudge."""


class _OfLibrary:
    """What sources of this repository's commits share."""

    varies_sglang = False

    def tree(self, folder: Path, commit: Commit, root: Path) -> Tree:
        digest = link(folder, root, commit.short)
        return Tree(Subject(commit.short, commit.sha, False, digest), folder)


class GitSource(_OfLibrary):
    """A git repository, by default this checkout's. Its errors are GitError."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def line(self, wanted: str) -> list[Commit]:
        if ".." not in wanted:
            return nonempty([self.commit(name) for name in wanted.split(",") if name], wanted)
        before, after = (git.commit_of(name or "HEAD", self._root) for name in wanted.split("..", 1))
        listed = self._git("log", "--first-parent", "--reverse", f"--format={FIELDS}", f"{before}..{after}", "--")
        return nonempty([self._commit(line) for line in listed.splitlines()], wanted)

    def ancestry(self, name: str) -> list[str]:
        """The hashes of a commit's first-parent line, oldest first."""
        sha = git.commit_of(name, self._root)
        return self._git("rev-list", "--first-parent", "--reverse", sha, "--").splitlines()

    def commit(self, name: str) -> Commit:
        sha = git.commit_of(name, self._root)
        return self._commit(self._git("log", "-1", f"--format={FIELDS}", sha, "--"))

    def fetch(self, commit: Commit, folder: Path) -> Path:
        self._git("worktree", "add", "--detach", "--quiet", str(folder), commit.sha)
        return folder

    def release(self, root: Path) -> None:
        self._git("worktree", "remove", "--force", str(root))

    def _git(self, *arguments: str) -> str:
        return git.git(*arguments, root=self._root)

    def _commit(self, line: str) -> Commit:
        sha, parents, time, subject = line.split("\x1f", 3)
        library = self._library(sha)
        depth = int(self._git("rev-list", "--first-parent", "--count", sha, "--")) - 1
        return Commit(sha, subject, time, parents.split(" ")[0] or None, library, depth)

    def _library(self, sha: str) -> str | None:
        return self._object(f"{sha}:{LIBRARY}")

    def _object(self, name: str) -> str | None:
        """What git calls a folder of a commit; None if the commit has no such folder."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", name)
        except git.GitError:
            return None


class Exported(msgspec.Struct):
    """The list of commits in an exported folder.

    Each commit's library lies beside it, in a folder with the commit's name.
    """

    commits: list[Commit]
    schema: Schema = msgspec.field(default_factory=lambda: Schema(EXPORT_NAME, EXPORT_VERSION))


def _faults(exported: Exported) -> Iterator[str]:
    """What is unsound in the list of an exported folder."""
    yield from twice("the sha", [(f"commits[{index}]", item.sha) for index, item in enumerate(exported.commits)])


class ExportedSource(_OfLibrary):
    """A folder made by `export`, for machines without git or without this repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / EXPORT_FILE
        listed = store.read_document(file, Exported, EXPORT_NAME, EXPORT_VERSION, _faults)
        self._commits = listed.commits

    def line(self, wanted: str) -> list[Commit]:
        if ".." not in wanted:
            return nonempty([self.commit(name) for name in wanted.split(",") if name], wanted)
        before, after = wanted.split("..", 1)
        first = self._commits.index(self.commit(before)) + 1 if before else 0
        last = self._commits.index(self.commit(after)) + 1 if after else len(self._commits)
        return nonempty(self._commits[first:last], wanted)

    def commit(self, name: str) -> Commit:
        found = [commit for commit in self._commits if commit.sha.startswith(name)]
        if len(found) != 1 or not name:
            known = f"{self._commits[0].short} to {self._commits[-1].short}" if self._commits else "none"
            raise GateError(f"{name}: is not exactly one commit of {self._folder}; expected the hash of one of {known}")
        return found[0]

    def fetch(self, commit: Commit, folder: Path) -> Path:
        return self._folder / commit.sha

    def release(self, root: Path) -> None:
        pass


def nonempty(commits: list[Commit], wanted: str) -> list[Commit]:
    """The commits. Raises GateError if there are none."""
    if not commits:
        raise GateError(f"--commits {wanted}: names no commit; expected A..B with B after A, or names joined by commas")
    return commits


def export(source: Source, commits: Sequence[Commit], folder: Path) -> None:
    """Write the libraries of the commits into a folder that `ExportedSource` reads. Raises GateError, ResultsError."""
    if folder.exists():
        raise GateError(f"{folder}: exists; expected a new folder")
    with tempfile.TemporaryDirectory(prefix="bench-history-") as name:
        for commit in commits:
            root = source.fetch(commit, Path(name) / commit.sha)
            if (root / LIBRARY).is_dir():  # without one the commit is listed, and fails where it is measured
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / LIBRARY, folder / commit.sha / LIBRARY, ignore=ignored)
            source.release(root)
    store.write(folder / EXPORT_FILE, Exported(list(commits)))


class Libraries:
    """Fetches the library of each commit once, in a form that a worker can import. A context manager."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stack = ExitStack()
        self._trees: dict[str, Tree] = {}
        self._folder = Path()

    def __enter__(self) -> Libraries:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-history-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tree(self, commit: Commit) -> Tree:
        """The commit's library beside this checkout's suite. Raises CannotJudge if it has none."""
        if commit.sha not in self._trees:
            root = self._source.fetch(commit, self._folder / f"worktree-{commit.sha}")
            self._stack.callback(self._source.release, root)
            folder = self._folder / commit.sha
            self._trees[commit.sha] = self._source.tree(folder, commit, root.resolve())
        return self._trees[commit.sha]

    def without_paths(self, text: str) -> str:
        """A worker's message without this machine's folders, which mean nothing elsewhere."""
        return text.replace(f"{self._folder}/", "").replace(f"{ROOT}/", "")
