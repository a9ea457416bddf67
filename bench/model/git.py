"""The only module that runs git: which commit a name means, and how a checkout differs from a commit.

Only a checkout's own repository is asked: a source archive inside another repository is not a checkout of ours.
Revisions named by a user, a variable or a record become hashes in `commit_of` before any other command sees them, so
that none can be read as an option.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from bench.model.config import ConfigError

TIMEOUT_S = 120
HASH = re.compile(r"[0-9a-f]{7,64}")  # of a commit, or the beginning of one
# What would point git at another repository than the one around a folder, or change what a path means to it.
_REDIRECTING = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_LITERAL_PATHSPECS",
)
_SOURCES = (".py", ".json", ".toml")  # count as changes even where a rule of the user's ignores them


class GitError(ConfigError):
    """Git cannot do what was asked. The message has git's words and what was expected."""


def git(*arguments: str, root: Path) -> str:
    """The output of git for the repository of a folder. Raises GitError with git's own words."""
    return _run(*arguments, root=root).decode(errors="replace").strip()


def commit_of(name: str, root: Path) -> str:
    """The full hash of the commit that a checkout knows by this name. Raises GitError."""
    expected = f"expected a revision of the repository {root.name}"
    if not name or name.startswith("-") or not name.isprintable():
        raise GitError(f"{name!r} is not a revision; {expected}")
    if not is_checkout(root):
        raise GitError(f"{name}: {root} is not the top of a git checkout; {expected}")
    try:
        found = git("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}", root=root)
    except GitError as error:
        raise GitError(f"{name}: this repository has no such commit; {expected}") from error
    if not HASH.fullmatch(found):  # `^HEAD` is one for git, and names everything else
        raise GitError(f"{name}: does not name exactly one commit; {expected}")
    return found


def has_commit(name: str | None, root: Path) -> bool:
    """Whether the repository of a checkout has the commit."""
    try:
        return name is not None and bool(commit_of(name, root))
    except GitError:
        return False


def archive(sha: str, paths: Sequence[str], root: Path) -> bytes:
    """These folders of a commit as a tar file. `sha` must come from `commit_of`. Raises GitError."""
    return _run("archive", "--format=tar", sha, "--", *paths, root=root)


def is_checkout(root: Path) -> bool:
    """Whether a folder is the top of a git checkout, and not just inside one."""
    try:
        top = git("rev-parse", "--show-toplevel", root=root)
    except GitError:
        return False
    return bool(top) and Path(top).resolve() == root.resolve()


def changes_since(sha: str, paths: tuple[str, ...], root: Path) -> str | None:
    """A hash of how these paths differ from a commit, including untracked files. None if they do not differ.

    `paths` are pathspecs. `sha` must come from `commit_of`. Raises GitError.
    """
    digest = sha256(_run("diff", "--no-ext-diff", "--no-textconv", "--no-color", sha, "--", *paths, root=root))
    same = digest.digest() == sha256().digest()
    for name in _untracked(paths, root):
        same = False
        path = root / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    return None if same else digest.hexdigest()


def _untracked(paths: tuple[str, ...], root: Path) -> list[str]:
    """Files below the paths that git does not track: those no rule ignores, and sources whatever the rules say."""
    everything = _listed("--others", paths=paths, root=root)
    told = set(_listed("--others", "--exclude-standard", paths=paths, root=root))
    return [name for name in everything if name in told or Path(name).suffix in _SOURCES]


def _listed(*options: str, paths: tuple[str, ...], root: Path) -> list[str]:
    listed = _run("ls-files", "-z", *options, "--", *paths, root=root)
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


def _run(*arguments: str, root: Path) -> bytes:
    environment = {name: value for name, value in os.environ.items() if name not in _REDIRECTING}
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S, env=environment)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: what no argument can hold
        raise GitError(f"git {arguments[0]}: {error}; expected git to be installed") from error
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
        raise GitError(f"git {arguments[0]}: {words}; expected the repository of a checkout of {root.name}")
    return done.stdout
