"""A line of SGLang's history: versions as wheels or folders, or commits of a checkout.

Only SGLang varies. The suite and this repository's library are this checkout's on every side.
"""

from __future__ import annotations

import importlib.util
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from bench.execute import installs
from bench.execute.commits import GitSource, nonempty
from bench.execute.trees import Tree, link_suite
from bench.model import git
from bench.model.environment import PEER_FILES, ROOT, package_version
from bench.model.history import Commit
from bench.model.sources import LIBRARY_SUFFIXES, hash_sources
from bench.model.toml import ConfigError
from bench.model.verdict import CannotJudge, GateError, Subject

PACKAGE = "sglang"
PLACES = (f"python/{PACKAGE}", PACKAGE)  # of the package in a checkout
OLDEST_ZIP_YEAR = 1980  # what a wheel says that has no dates


def tree_of(folder: Path, commit: Commit, root: Path) -> Tree:
    """A side whose worker imports SGLang from `root`. `folder` is created for its path. Raises CannotJudge."""
    if not (root / PACKAGE).is_dir():
        raise CannotJudge(f"{commit.short}: has no {PACKAGE}/, so there is nothing to measure on that side")
    link_suite(folder, ROOT)
    return Tree(Subject(commit.short, commit.sha, False, lora_hash(root)), folder, sglang=root)


def lora_hash(root: Path) -> str:
    """Hash of the LoRA code of the SGLang in a folder, as a worker that imports it computes it."""
    package = root / PACKAGE
    present = [package / name for name in PEER_FILES[PACKAGE] if (package / name).is_dir()]
    return hash_sources(*present, root=package, suffixes=LIBRARY_SUFFIXES)


@contextmanager
def sides(before: str, after: str | None, patterns: Sequence[str]) -> Iterator[tuple[Tree, Tree]]:
    """The trees of two SGLangs, given as versions or paths. None is the installed one.

    Raises ConfigError for a version that is not found, and CannotJudge if none is installed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-sglang-") as name, ExitStack() as stack:
        found = []
        for side, wanted in (("a", before), ("b", after)):
            source = Versions(wanted, patterns) if wanted else Installed()
            if len(source.line("..")) != 1:
                raise ConfigError(f"{wanted}: names several versions of SGLang; expected one on each side")
            commit = source.line("..")[0]
            root = source.fetch(commit, Path(name) / f"sglang-{side}")
            stack.callback(source.release, root)
            found.append(source.tree(Path(name) / side, commit, root))
        yield found[0], found[1]


class Versions:
    """SGLang's released versions, ordered by number. Each is a wheel, or a folder with its .dist-info."""

    varies_sglang = True

    def __init__(self, wanted: str, patterns: Sequence[str]) -> None:
        """`wanted`: versions or paths joined by commas, or FIRST..LAST of those that `patterns` find. ConfigError."""
        self._paths = _paths(wanted, patterns)
        self._commits = {version: _commit(version, path) for version, path in self._paths.items()}

    def line(self, wanted: str) -> list[Commit]:
        """All versions, or those of A..B."""
        listed = list(self._commits.values())
        if ".." in wanted:
            before, after = (self.commit(name) if name else None for name in wanted.split("..", 1))
            first = listed.index(before) + 1 if before else 0
            listed = listed[first : listed.index(after) + 1 if after else None]
        return nonempty(listed, wanted)

    def commit(self, name: str) -> Commit:
        found = self._commits.get(name) or next((item for item in self._commits.values() if item.sha == name), None)
        if found is None:
            raise GateError(f"{name}: unknown version; expected one of {', '.join(self._commits)}")
        return found

    def fetch(self, commit: Commit, folder: Path) -> Path:
        path = self._paths[str(commit.label)]
        return path if path.is_dir() else installs.unpacked(path, folder)

    def release(self, root: Path) -> None:
        pass

    def tree(self, folder: Path, commit: Commit, root: Path) -> Tree:
        return tree_of(folder, commit, root)


class Installed(Versions):
    """The installed SGLang alone. Raises CannotJudge if there is none."""

    def __init__(self) -> None:
        found = importlib.util.find_spec(PACKAGE)
        version = package_version(PACKAGE)
        if found is None or found.origin is None or version is None:
            raise CannotJudge("no SGLang is installed; expected one, or --sglang with a version or wheel")
        self._paths = {version: Path(found.origin).parents[1]}
        self._commits = {version: _commit(version, self._paths[version])}


class Checkout(GitSource):
    """The commits of a git repository of SGLang. Commits are read as archives, so the repository is not touched."""

    varies_sglang = True

    def __init__(self, root: Path) -> None:
        """Raises ConfigError unless the folder is the top of a git repository."""
        if not git.is_checkout(root):
            raise ConfigError(
                f"--sglang-checkout {root}: is not a git checkout; expected the top folder of a checkout of SGLang"
            )
        super().__init__(root)

    def fetch(self, commit: Commit, folder: Path) -> Path:
        place = self._place(commit.sha)
        if place is None:
            return folder  # the tree says what is missing
        data = git.archive(commit.sha, [place, *self._metadata(commit.sha)], self._root)
        with tarfile.open(fileobj=BytesIO(data)) as files:
            files.extractall(folder, filter="data")
        root = (folder / place).parent
        if not list(root.glob(f"{PACKAGE}-*.dist-info")):
            _write_metadata(root, self._version(root, commit.sha))
        return root

    def release(self, root: Path) -> None:
        pass

    def tree(self, folder: Path, commit: Commit, root: Path) -> Tree:
        return tree_of(folder, commit, root)

    def _library(self, sha: str) -> str | None:
        """Of the folders that LoRA's kernels come from: equal for commits that leave them alone."""
        place = self._place(sha)
        names = [f"{place}/{name}" for name in PEER_FILES[PACKAGE]] if place else []
        found = [line for name in names for line in [self._object(f"{sha}:{name}")] if line]
        return sha256(" ".join(found).encode()).hexdigest() if found else None

    def _place(self, sha: str) -> str | None:
        return next((place for place in PLACES if self._object(f"{sha}:{place}")), None)

    def _metadata(self, sha: str) -> list[str]:
        """What lies beside the package and says its version, where a repository was made of wheels."""
        listed = self._git("ls-tree", "--name-only", sha, "--").splitlines()
        return [name for name in listed if re.fullmatch(rf"{PACKAGE}-[^/]*\.dist-info", name)]

    def _version(self, root: Path, sha: str) -> str:
        """What the commit says of itself, else the newest tag before it. Raises CannotJudge."""
        for name in ("version.py", "_version.py"):
            with suppress(OSError):
                text = (root / PACKAGE / name).read_text(encoding="utf-8")
                if found := re.search(r'version__?\s*(?::\s*str\s*)?=\s*"(\d+\.\d+\.\d+[^"]*)"', text):
                    return found[1]
        with suppress(git.GitError):
            if found := re.match(r"v?(\d+\.\d+\.\d+)", self._git("describe", "--tags", "--match", "v*", sha)):
                return found[1]
        raise CannotJudge(f"{sha[:9]}: its version of SGLang is unknown; expected a tag such as v0.5.16 before it")


def _paths(wanted: str, patterns: Sequence[str]) -> dict[str, Path]:
    """Version -> where it lies, in the order of the versions."""
    if match := re.fullmatch(r"(\d[^/]*?)\.\.(\d[^/]*)", wanted):
        known = {installs.version_in(path): path for pattern in patterns for path in ROOT.glob(pattern)}
        ends = [_number(match[1]), _number(match[2])]
        found = {name: path for name, path in known.items() if ends[0] <= _number(name) <= ends[1]}
        if not found:
            listed = ", ".join(sorted(known, key=_number)) or "none"
            raise ConfigError(
                f"--sglang {wanted}: no such version was found; sglang_files in bench.toml finds {listed}"
            )
    else:
        items = [item.strip() for item in wanted.split(",") if item.strip()]
        given = [Path(item) for item in items if Path(item).exists()]
        names = [item for item in items if not Path(item).exists()]
        wheels = {installs.version_in(path): path for path in given}
        found = installs.find([*wheels, *names], given, patterns)
    if not found:
        raise ConfigError("--sglang: no version is named; expected versions or wheels joined by commas, or FIRST..LAST")
    return dict(sorted(found.items(), key=lambda item: _number(item[0])))


def _number(version: str) -> tuple[int, ...]:
    """For the order of versions: what is behind the numbers, as in 0.5.10.post1, comes after them."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _commit(version: str, path: Path) -> Commit:
    major, minor, patch = (*_number(version), 0, 0)[:3]
    library = lora_hash(path) if path.is_dir() else _wheel_hash(path)
    sha = sha256(f"{PACKAGE} {version} {library}".encode()).hexdigest()[:40]
    depth = (major * 1000 + minor) * 1000 + patch
    return Commit(sha, f"SGLang {version}", _date(path), None, library, depth, label=version)


def _wheel_hash(wheel: Path) -> str:
    """The hash of the LoRA code in a wheel, of which only that is unpacked."""
    below = tuple(f"{PACKAGE}/{name}/" for name in PEER_FILES[PACKAGE])
    with tempfile.TemporaryDirectory(prefix="bench-sglang-") as folder, zipfile.ZipFile(wheel) as files:
        files.extractall(folder, _below(files.namelist(), below))
        return lora_hash(Path(folder))


def _below(names: Iterable[str], folders: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.startswith(folders)]


def _date(path: Path) -> str | None:
    """When a wheel was built, if it says so."""
    if path.is_dir():
        return None
    with zipfile.ZipFile(path) as files:
        built = max(info.date_time for info in files.infolist())
    return datetime(*built, tzinfo=UTC).isoformat() if built[0] > OLDEST_ZIP_YEAR else None


def _write_metadata(root: Path, version: str) -> None:
    """So that a process which imports from the folder finds the version of what it imports."""
    folder = root / f"{PACKAGE}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
