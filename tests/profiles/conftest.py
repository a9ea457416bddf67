"""Fake tools, a small database in nsys' schema, and where the recorded files lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.profiles import DATA, FOLDER


@pytest.fixture
def fake_tool(tmp_path, monkeypatch):
    """Installs a stand-in for nsys or ncu of a recorded version; returns a way to tell it how to behave."""
    for name in [name for name in os.environ if name.startswith("FAKE_")] + ["QDSTRMIMPORTER"]:
        monkeypatch.delenv(name, raising=False)

    def install(tool: str, version: str, **behaviour: object) -> Path:
        script = tmp_path / tool
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FOLDER / "fake_tool.py"}" "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv(tool.upper(), str(script))
        monkeypatch.setenv("FAKE_FACTS", str(DATA / f"{tool}-{version}.txt"))
        for name, value in behaviour.items():
            monkeypatch.setenv(f"FAKE_{name.upper()}", str(value))
        return script

    return install
