"""The light install: what it lists is a part of the whole, and all that looks at records works without torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Runs the suite in an interpreter that has, of what is not its own library, the light install alone.
LIGHT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton", "sglang", "nvtx", "pynvml", "statsmodels", "pandas"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("bench", run_name="__main__")
"""
AA = "docs/results/h200-aa.json"


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIGHT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_light_group_is_a_part_of_the_whole() -> None:
    whole = PROJECT["project"]["optional-dependencies"]["bench"] + PROJECT["project"]["dependencies"]
    group = PROJECT["dependency-groups"]["light"]
    assert set(group) <= set(whole)
    assert not [name for name in group if name.startswith(("torch", "triton", "sglang"))]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", AA),
        ("compare", AA, AA),
        ("gate", AA, "--baseline", AA),
        ("history", "show", "--store", "docs/experiments/planted-slow", "-k", "graph"),
        ("report", AA, "-o", "FOLDER/report.html"),
        ("plot", "rounds", AA, "-o", "FOLDER/rounds.png"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_looks_at_records_needs_no_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = light(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("sweep", "-p", "smoke", "-o", "FOLDER/r.json"), ("gate", "--clock", "work"),
     ("history", "run", "--commits", "HEAD~1..HEAD", "-k", "work")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_what_is_missing_says_so(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = light(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.endswith(
        "bench: needs torch, which a light install leaves out; expected the full install: make setup\n"
    )
    assert not [*tmp_path.iterdir()]
