"""docs/how-to/offline_host.py: what it keeps of a wheel is what runs, and its parts are one archive."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = "[triton.backends]\namd = triton.backends.amd\nnvidia = triton.backends.nvidia\n"
TRUE = shutil.which("true")
pytestmark = pytest.mark.skipif(shutil.which("strip") is None or TRUE is None, reason="needs strip of binutils")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("offline_host", ROOT / "docs/how-to/offline_host.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a file of each kind that Triton's has, its binaries real ones."""
    binary = Path(str(TRUE)).read_bytes()
    files = {
        "triton/__init__.py": b"",
        "triton/_C/libtriton.so": binary,
        "triton/_C/libproton.so": binary,
        "triton/backends/amd/__init__.py": b"",
        "triton/backends/nvidia/__init__.py": b"",
        "triton/backends/nvidia/bin/ptxas": binary,
        "triton/backends/nvidia/bin/ptxas-blackwell": binary,
        "triton/backends/nvidia/include/cuda.h": b"",
        "triton/backends/nvidia/include/crt/math.h": b"",
        "triton-3.8.0.dist-info/entry_points.txt": ENTRY_POINTS.encode(),
    }
    path = tmp_path / "triton-3.8.0-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o755 if "/bin/" in name else 0o644) << 16
            archive.writestr(info, content)
    return path


def test_what_the_suite_runs_is_kept_and_no_backend_is_named_that_is_not_there(
    example: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    example.unpack(wheel, example.RECIPES["triton"], site)
    assert {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()} == {
        "triton/__init__.py",
        "triton/_C/libtriton.so",
        "triton/backends/nvidia/__init__.py",
        "triton/backends/nvidia/bin/ptxas",
        "triton/backends/nvidia/include/cuda.h",
        "triton-3.8.0.dist-info/entry_points.txt",
    }
    assert os.access(site / "triton/backends/nvidia/bin/ptxas", os.X_OK)
    named = (site / "triton-3.8.0.dist-info/entry_points.txt").read_text(encoding="utf-8")
    assert named == ENTRY_POINTS.replace("amd = triton.backends.amd\n", "")


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_join_to_the_archive(
    example: ModuleType, tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MIB", 1 << 14)
    site = tmp_path / "site"
    site.mkdir()
    (site / "random").write_bytes(os.urandom(parts * example.MIB - 2048))
    written = example.pack(site, tmp_path / "x.tar.xz", 1)
    assert [path.name for path in written] == (
        ["x.tar.xz"] if parts == 1 else [f"x.tar.xz.{n:02}" for n in range(parts)]
    )
    joined = io.BytesIO(b"".join(path.read_bytes() for path in written))
    with tarfile.open(fileobj=joined, mode="r:xz") as tar:
        member = tar.extractfile("./random")
        assert member is not None and member.read() == (site / "random").read_bytes()


def test_what_there_is_no_recipe_for_is_refused_before_anything_is_fetched(example: ModuleType) -> None:
    for requirement in ("flashinfer==0.6", "sglang"):
        with pytest.raises(ValueError, match=f"{requirement}: expected NAME==VERSION of one of triton, sglang, vllm"):
            example.recipes_of(["triton==3.8.0", requirement])
