"""Start-up: what `--help` imports, and that what it says of a verb is what the verb says of itself."""

from __future__ import annotations

import subprocess
import sys

import typer.main

from bench.cli.main import GROUPS, suite
from tests.support.gate import ROOT

SLOW_TO_IMPORT = {"torch", "triton", "numpy", "scipy", "pandas", "matplotlib", "msgspec", "statsmodels"}
# What a command line has imported when it ends.
PROGRAM = """
import sys
from bench.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_that_is_slow_to_import() -> None:
    found = imported_by("--help")
    assert "typer" in found and not found & SLOW_TO_IMPORT


def test_a_verb_imports_no_other_group() -> None:
    found = imported_by("accuracy", "--help")
    assert "bench.cli.accuracy" in found and "bench.cli.history" not in found


def test_the_list_of_verbs_is_that_of_the_verbs_themselves() -> None:
    verbs = typer.main.get_command(suite()).commands  # type: ignore[attr-defined]
    said = {name: " ".join((verb.help or "").split("\n\n")[0].split()) for name, verb in verbs.items()}
    assert said == {name: line for lines in GROUPS.values() for name, line in lines.items()}
    assert list(typer.main.get_command(suite("gate")).commands) == list(verbs)  # type: ignore[attr-defined]
