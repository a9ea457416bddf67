"""Batch preparation is timed where it runs, by a module that is wrapped when it is imported and no sooner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bench.engine import preparation


def test_each_call_leaves_its_time_and_the_method_its_result(tmp_path: Path) -> None:
    timed = preparation.timed(lambda value, *, more: time.sleep(0.002) or value + more, tmp_path)
    before = time.monotonic_ns()
    assert [timed(1, more=2), timed(3, more=4)] == [3, 7]
    middle = time.monotonic_ns()
    timed(1, more=1)
    assert len(preparation.between(tmp_path, before, middle)) == 2
    (after,) = preparation.between(tmp_path, middle, time.monotonic_ns())
    assert 2000 <= after < 1e6


def test_a_record_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    preparation.timed(lambda: time.sleep(0.001), tmp_path)()
    (file,) = tmp_path.glob("prepare-*")
    file.write_bytes(file.read_bytes() + b"\x01\x02")
    assert len(preparation.between(tmp_path, 0, time.monotonic_ns())) == 1


def test_a_method_that_raises_leaves_no_time(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        preparation.timed(lambda: 1 / 0, tmp_path)()
    assert preparation.between(tmp_path, 0, time.monotonic_ns()) == []


SCRIPT = """
import sys
from bench.engine import preparation
preparation.install()
assert preparation.MODULE not in sys.modules
import importlib
manager = importlib.import_module(preparation.MODULE).LoRAManager()
assert [manager.prepare_lora_batch(4), manager.prepare_lora_batch(5)] == [8, 10]
assert not any(type(item).__name__ == "ImportHook" for item in sys.meta_path)
"""


def test_a_module_is_wrapped_when_it_is_imported(tmp_path: Path) -> None:
    """With a module of SGLang's name in its place, in a process of its own."""
    package = tmp_path / "site" / "sglang" / "srt" / "lora"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    text = "class LoRAManager:\n    def prepare_lora_batch(self, batch):\n        return 2 * batch\n"
    (package / "lora_manager.py").write_text(text, encoding="utf-8")
    times = tmp_path / "times"
    times.mkdir()
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    environment = os.environ | {preparation.FOLDER: str(times), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)
    assert len(preparation.between(times, 0, time.monotonic_ns())) == 2
    (said,) = times.glob("plugin-*.json")
    assert json.loads(said.read_text(encoding="utf-8"))["active"] is False


def test_a_module_that_is_there_already_is_wrapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(preparation.MODULE)
    module.LoRAManager = type("LoRAManager", (), {"prepare_lora_batch": lambda self: "done"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, preparation.MODULE, module)
    monkeypatch.setenv(preparation.FOLDER, str(tmp_path))
    preparation.install()
    assert module.LoRAManager().prepare_lora_batch() == "done"  # type: ignore[attr-defined]
    assert len(preparation.between(tmp_path, 0, time.monotonic_ns())) == 1


@pytest.mark.parametrize(
    ("active", "wanted", "said"),
    [
        ([True], True, None),
        ([False], False, None),
        ([True, False], True, "the plugin is off: told"),
        ([True], False, "on in a mode without it"),
        ([], True, "no scheduler prepared"),
        ([], False, None),
    ],
)
def test_a_mode_is_what_its_name_says_or_its_figures_are_worth_nothing(
    active: list[bool], wanted: bool, said: str | None, tmp_path: Path
) -> None:
    for place, value in enumerate(active):
        (tmp_path / f"plugin-{place}.json").write_text(
            json.dumps({"active": value, "reason": "told"}), encoding="utf-8"
        )
    found = preparation.plugin_problem(tmp_path, wanted=wanted)
    assert found is None if said is None else said in str(found)


def test_the_plugins_own_word_is_written_with_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = [SimpleNamespace(name="qkv", off="CSGMV_EMBED_LINEAR=0"), SimpleNamespace(name="lookup", off="")]
    status = SimpleNamespace(active=True, reason="", hooks=hooks)
    monkeypatch.setitem(sys.modules, "csgmv_embed.sglang", SimpleNamespace(status=lambda: status))  # type: ignore[arg-type]
    preparation.timed(lambda: None, tmp_path)()
    (said,) = tmp_path.glob("plugin-*.json")
    assert json.loads(said.read_text(encoding="utf-8")) == {"active": True, "reason": "", "off": ["qkv"]}
