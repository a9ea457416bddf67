"""What is built of this tree: a wheel of the library with a page that stands alone, and all else in the source."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
SETUP = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], email.message.Message]:
    """Names in the source distribution, without its folder; and its metadata, which a wheel has too."""
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77, as pyproject.toml says")
    folder = tmp_path_factory.mktemp("dist")
    command = [*SETUP, "egg_info", "--egg-base", str(folder), "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        metadata = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert metadata is not None
        return names, email.message_from_bytes(metadata.read())


def test_the_source_has_everything_that_is_tracked(source: tuple[set[str], email.message.Message]) -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no checkout")
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    assert {"CHANGELOG.md", "tests/test_distributions.py", "bench/cli/main.py", "docs/index.md"} <= tracked
    assert sorted(tracked - source[0] - {".pre-commit-config.yaml", ".gitattributes"}) == []


def test_the_page_of_the_package_links_to_nothing(source: tuple[set[str], email.message.Message]) -> None:
    page = str(source[1].get_payload())
    assert "csgmv_embed doctor" in page and not re.search(r"\]\(|<a |<img", page)


def test_the_page_tells_the_extras_apart(source: tuple[set[str], email.message.Message]) -> None:
    extras = set(source[1].get_all("Provides-Extra") or [])
    row = re.search(r"^\| extras \| (.*?) \| (.*?) \|$", (ROOT / "PACKAGE.md").read_text(encoding="utf-8"), re.M)
    assert row is not None
    of_wheel, others = (set(re.findall(r"`(\w+)`", cell)) for cell in row.groups())
    assert of_wheel | others == extras and not of_wheel & others
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras == set(project["optional-dependencies"])


def test_the_example_of_the_page_is_that_of_the_docs() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "PACKAGE.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    page = (ROOT / "docs" / "how-to" / "use-the-kernels.md").read_text(encoding="utf-8")
    lines = [line for line in code[1].splitlines() if line and not line.startswith("batch = ")]
    assert len(lines) == 4 and all(line in page for line in lines)
