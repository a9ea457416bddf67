"""Parts of a start are timed where they run; a line that was cut off, and a method that SGLang lacks, are left out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from bench.engine import startup


def test_parts_are_those_of_the_process_that_took_longest(tmp_path: Path) -> None:
    (tmp_path / "start-1").write_bytes(
        b'{"method":"load_model","began_ns":5000000,"took_ns":2000}\n'
        b'{"method":"init_cuda_graphs","began_ns":9000000,"took_ns":8000}\n'
        b'{"method":"init_cuda_graphs","began_ns":9000000,"took_ns":1000}\n'
    )
    (tmp_path / "start-2").write_bytes(
        b'{"method":"load_model","began_ns":6000000,"took_ns":1000}\n{"method":"init_lora_man'
    )
    assert startup.parts(tmp_path, 1000000) == {"processes_us": [5000.0], "weights_us": [2.0], "graphs_us": [9.0]}
    assert startup.parts(tmp_path / "nothing", 0) == {}


def test_sglang_has_what_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = pytest.importorskip(startup.MODULE)
    methods = vars(getattr(runner, startup.CLASS))
    assert {*startup.PARTS} <= {*methods}


def test_a_method_that_is_not_there_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(startup.MODULE)
    module.ModelRunner = type("ModelRunner", (), {"load_model": lambda self: time.sleep(0.002) or 7})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, startup.MODULE, module)
    monkeypatch.setenv(startup.FOLDER, str(tmp_path))
    began = time.monotonic_ns()
    startup.install()
    assert module.ModelRunner().load_model() == 7  # type: ignore[attr-defined]
    found = startup.parts(tmp_path, began)
    assert {*found} == {"processes_us", "weights_us"} and found["weights_us"][0] >= 2000
