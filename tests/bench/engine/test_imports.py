"""What SGLang's server and client import is asked for before anything is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.cli import main as cli
from bench.engine import imports
from bench.engine.imports import Wanted
from bench.model.config import ConfigError

THERE = Wanted("json", "import json")
TRACE = """Traceback (most recent call last):
  File "<string>", line 1, in <module>
  File "/home/me/.venv/lib/python3.12/site-packages/sglang/srt/entrypoints/http_server.py", line 102, in <module>
    from sglang.srt.entrypoints.openai.serving_chat import x
  File "/home/me/.venv/lib/python3.12/site-packages/sglang/srt/entrypoints/openai/serving_chat.py", line 25, in <module>
    from jsonschema import Draft202012Validator
ModuleNotFoundError: No module named 'jsonschema'
"""


def test_what_is_there_is_no_problem() -> None:
    imports.require(THERE, THERE)


def test_each_that_is_missing_is_said_in_one_line() -> None:
    lost = Wanted("the server", "import sys; sys.stderr.write('a warning\\n'); import not_there_at_all")
    killed = Wanted("the client", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(ConfigError) as error:
        imports.require(lost, THERE, killed)
    said = str(error.value)
    assert said.startswith("the server cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'")
    assert said.endswith("; the client cannot be imported: signal SIGSEGV") and "\n" not in said


def test_an_import_that_hangs_is_ended() -> None:
    with pytest.raises(ConfigError, match=r"the server was not imported within 0\.2 s"):
        imports.require(Wanted("the server", "import time; time.sleep(60)"), timeout_s=0.2)


def test_the_file_that_asked_is_named() -> None:
    assert imports.said(TRACE) == (
        "ModuleNotFoundError: No module named 'jsonschema'",
        "sglang/srt/entrypoints/openai/serving_chat.py, line 25",
    )
    assert imports.said("") == ("", "")


def test_a_cross_check_and_a_session_ask_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*wanted: Wanted) -> None:
        raise ConfigError("; ".join(item.name for item in wanted))

    monkeypatch.setattr(imports, "require", absent)
    for module in ("serve", "guards"):
        monkeypatch.setattr(f"bench.cli.{module}.has_gpu", lambda: True)
    monkeypatch.setenv("NSYS", sys.executable)
    for begun in ("bench.cli.serve._run", "profiles.workflow.run_nsys"):
        monkeypatch.setattr(begun, lambda *_, **__: pytest.fail("it has begun"))
    both = f"{imports.SERVER.name}; {imports.CLIENT.name}"
    for verb, named in (
        (["serve", "-p", "cross", "--cross-check", "-o", tmp_path / "x.json"], both),
        (["profile", "server", "-o", tmp_path / "x"], imports.SERVER.name),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, verb)])
        assert end.value.code == 2 and named in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
