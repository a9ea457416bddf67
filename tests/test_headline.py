"""README's table of speeds is what one command prints of one results file, and that file is of this library."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli.main import app
from bench.model import store
from bench.model.sources import hash_library

ROOT = Path(__file__).parents[1]
RECORD = "docs/results/h200-headline.json"
COMMAND = ["show", RECORD, "--pivot", "op+phase,contender", "--format", "markdown"]
# The plugin and adapters are no contender of the profile; the rest says where things are and what to install.
NOT_MEASURED = [f":!csgmv_embed/{name}" for name in ("sglang", "adapters", "__init__.py", "__main__.py", "py.typed")]
MARKED = re.compile(r"<!-- headline: (.*?) -->\n+(.*?)\n+<!-- end -->", re.DOTALL)


def marked() -> tuple[str, str]:
    """The command and the table between README's marks."""
    found = MARKED.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found, "README.md has no table between <!-- headline: COMMAND --> and <!-- end -->"
    return found[1], found[2]


def test_the_table_is_what_its_command_prints(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    command, table = marked()
    assert command == "python -m bench " + " ".join(COMMAND)
    printed = CliRunner().invoke(app, COMMAND, catch_exceptions=False)
    assert table.strip() == printed.stdout.strip(), "run `make headline` after a new measurement"


def test_the_file_is_of_the_kernels_as_they_are() -> None:
    """Of the whole library, or of one in which only what no point of the profile runs was another."""
    code = store.read(ROOT / RECORD).code
    assert code is not None and not code.dirty
    if code.kernel_source_sha256 == hash_library(ROOT):
        return
    diff = ["git", "-C", str(ROOT), "diff", "--name-only", code.sha, "--", "csgmv_embed", *NOT_MEASURED]
    done = subprocess.run(diff, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"commit {code.short} is not in this clone, so what has changed since cannot be told")
    assert done.stdout.split() == [], (
        f"csgmv_embed has changed since {code.short}: measure again on an H200, "
        f"`python -m bench sweep -p headline -o {RECORD}`, then `make headline`"
    )


def test_readme_names_the_commit_and_the_gpu() -> None:
    results = store.read(ROOT / RECORD)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.code is not None and results.env is not None
    assert f"`{results.code.short}`" in text
    assert str(results.env.identity["gpu"]) in text
