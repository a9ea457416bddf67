"""Other versions of SGLang than the installed one, each for a worker process that imports it first.

A version is a folder that holds `sglang/` beside its .dist-info, as `pip install --no-deps --target FOLDER` writes it,
or a wheel.
"""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.model.paths import ROOT, shown
from bench.model.registry import sglang_of
from bench.model.toml import ConfigError

_VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


def wanted(contenders: Iterable[str]) -> list[str]:
    """The versions that the names of contenders ask for, each once."""
    return list(dict.fromkeys(version for name in contenders if (version := sglang_of(name)) is not None))


def version_in(path: Path) -> str:
    """The version of SGLang in a folder or wheel. Raises ConfigError unless there is exactly one."""
    expected = "expected a wheel of sglang, or a folder with sglang/ and its sglang-VERSION.dist-info"
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; {expected}")
    if path.is_dir():
        found = [file.read_text(encoding="utf-8") for file in path.glob("sglang-*.dist-info/METADATA")]
        has_package = (path / "sglang").is_dir()
    else:
        found, has_package = _of_wheel(path)
    versions = [match[1] for text in found if (match := _VERSION.search(text))]
    if len(versions) != 1 or not has_package:
        listed = ", ".join(versions) or "none"
        raise ConfigError(f"{path}: holds {'' if has_package else 'no sglang/ and '}the versions {listed}; {expected}")
    return versions[0]


def _of_wheel(path: Path) -> tuple[list[str], bool]:
    try:
        with zipfile.ZipFile(path) as files:
            names = files.namelist()
            metadata = [name for name in names if re.fullmatch(r"sglang-[^/]*\.dist-info/METADATA", name)]
            return [files.read(name).decode() for name in metadata], any(n.startswith("sglang/") for n in names)
    except (OSError, zipfile.BadZipFile):
        return [], False


def find(versions: Sequence[str], given: Sequence[Path], patterns: Sequence[str]) -> dict[str, Path]:
    """The folder or wheel of each version: a given one, or one that the patterns find below the checkout.

    Raises ConfigError for a version that is not found, or is given twice.
    """
    found: dict[str, Path] = {}
    for path in given:
        version = version_in(path)
        if version in found:
            raise ConfigError(f"--sglang {path}: is SGLang {version}, as {found[version]} is; expected each once")
        found[version] = path.resolve()
    missing = [version for version in versions if version not in found]
    if missing:
        for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
            found.setdefault(version_in(path), path)
    for version in missing:
        if version not in found:
            known = ", ".join(found) or "none"
            places = ", ".join(patterns) or "nowhere"
            raise ConfigError(
                f"SGLang {version}: found {known} (sglang_files in bench.toml: {places}); expected that version there, "
                "or its folder or wheel with --sglang"
            )
    return {version: found[version] for version in versions}


@contextmanager
def import_paths(found: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """The folder of each version for PYTHONPATH. Wheels are unpacked while this context is open."""
    with tempfile.TemporaryDirectory(prefix="bench-sglang-") as name:
        yield {
            version: path if path.is_dir() else unpacked(path, Path(name) / version) for version, path in found.items()
        }


def unpacked(wheel: Path, folder: Path) -> Path:
    """The folder with the contents of the wheel. Raises ConfigError."""
    try:
        with zipfile.ZipFile(wheel) as files:
            files.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{shown(wheel)}: cannot be unpacked: {error}; expected a wheel of sglang") from error
    return folder


def first_on_path(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker that imports from the folder first."""
    behind = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), behind)))}
