"""CONTRIBUTING.md can be followed: its examples are applied to a copy of the tree, and then their commands pass."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^## (Add [^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```\n\n```sh\n(.*?)\n```", re.M | re.S)
EXAMPLES = EXAMPLE.findall(PAGE)
COPIED = ("bench", "csgmv_embed", "plots", "profiles", "tests")
FILES = ("bench.toml", "pyproject.toml", "Makefile")
PYTEST = "python -m pytest "


def test_there_is_an_example_of_each_kind() -> None:
    assert [title.split()[-1] for title, *_ in EXAMPLES] == ["contender", "clock", "op", "version"]


def test_the_examples_can_be_followed(tmp_path: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)  # a copy, and no checkout
    for title, diff, _ in EXAMPLES:
        done = subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, env=environment, text=True, check=False)
        assert done.returncode == 0, title
    commands = [command for *_, command in EXAMPLES]
    files = [command.removeprefix(PYTEST) for command in commands if command.startswith(PYTEST)]  # torch takes seconds
    for command in (PYTEST + " ".join(files), *(command for command in commands if not command.startswith(PYTEST))):
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"


def test_the_files_that_it_points_to_are_there() -> None:
    folders = "bench|csgmv_embed|docs|plots|profiles|tests"
    named = set(re.findall(rf"`((?:{folders})/[\w/.]+)`", EXAMPLE.sub("", PAGE)))
    assert len(named) > 10 and [name for name in sorted(named) if not (ROOT / name).exists()] == []
