"""README's table of speeds is what one command prints of one results file, and that file is of this library."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli.main import suite
from bench.model import store
from bench.model.instrument import is_text
from bench.model.sources import hash_library

ROOT = Path(__file__).parents[1]
RECORD = "docs/results/h200-headline.json"
COMMAND = ["show", RECORD, "--pivot", "op+phase,contender", "--format", "markdown"]
# The plugin and adapters are no contender of the profile; the rest says where things are and what to install.
NOT_MEASURED = [f":!csgmv_embed/{name}" for name in ("sglang", "adapters", "__init__.py", "__main__.py", "py.typed")]
UNTIMED = re.compile(r"Not timed again since ((?:`\S+`,?\s+)+)changed\.")
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
    printed = CliRunner().invoke(suite(), COMMAND, catch_exceptions=False)
    assert table.strip() == printed.stdout.strip(), "run `make headline` after a new measurement"


def code_of(name: str, commit: str | None = None) -> str:
    """What a file of the checkout, or of a commit, says without comments and docstrings; empty where there is none."""
    if commit is None:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
    else:
        shown = ["git", "-C", str(ROOT), "show", f"{commit}:{name}"]
        text = subprocess.run(shown, capture_output=True, text=True, check=False).stdout
    return without_words(text) if name.endswith(".py") else text


def without_words(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not is_text(statement)]
    return ast.dump(tree)


def test_other_words_are_the_same_code_and_another_number_is_not() -> None:
    before = 'def half(x):\n    """Says one thing."""\n    return x / 2  # why\n'
    assert without_words(before) == without_words('def half(x):\n    """Says another."""\n\n    return x / 2\n')
    assert without_words(before) != without_words(before.replace("2", "3"))


def test_the_file_is_of_the_kernels_as_they_are() -> None:
    """The library of the record and this one differ at most in what no point of the profile runs, and in words."""
    code = store.read(ROOT / RECORD).code
    assert code is not None and not code.dirty
    if code.kernel_source_sha256 == hash_library(ROOT):
        return
    diff = ["git", "-C", str(ROOT), "diff", "--name-only", code.sha, "--", "csgmv_embed", *NOT_MEASURED]
    done = subprocess.run(diff, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"commit {code.short} is not in this clone, so what has changed since cannot be told")
    changed = [name for name in done.stdout.split() if code_of(name, code.sha) != code_of(name)]
    said = UNTIMED.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert changed == (re.findall(r"`(\S+)`", said[1]) if said else []), (
        f"changed since {code.short}: {', '.join(changed) or 'nothing'}. Measure again on an H200, `python -m bench "
        f"sweep -p headline -o {RECORD}`, then `make headline`; or say below README's table: {spelled(changed)}"
    )


def spelled(changed: list[str]) -> str:
    return f"Not timed again since {', '.join(f'`{name}`' for name in changed)} changed." if changed else "nothing"


def test_readme_may_say_which_files_were_not_timed_again() -> None:
    found = UNTIMED.search("text\n\n" + spelled(["a/b.py", "c.py"]).replace(" `c", "\n`c") + " More.")
    assert found is not None and re.findall(r"`(\S+)`", found[1]) == ["a/b.py", "c.py"]
    assert UNTIMED.search("Timed again since `a.py` changed.") is None


def test_readme_names_the_commit_and_the_gpu() -> None:
    results = store.read(ROOT / RECORD)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.code is not None and results.env is not None
    assert f"`{results.code.short}`" in text
    assert str(results.env.identity["gpu"]) in text
