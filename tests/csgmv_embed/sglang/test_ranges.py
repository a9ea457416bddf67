"""NVTX ranges of the hooks: there when asked for, nothing at all else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.cuda import nvtx

from csgmv_embed.sglang import installer, ranges
from csgmv_embed.sglang.hooks.registry import HOOKS
from csgmv_embed.sglang.settings import SettingError, Settings


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a build with NVTX would be told."""
    told: list[str] = []
    monkeypatch.setattr(nvtx, "range_push", told.append)
    monkeypatch.setattr(nvtx, "range_pop", lambda: told.append("end"))
    return told


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"CSGMV_EMBED_NVTX": "1"}, True),
        ({"CSGMV_EMBED_NVTX": "0", "NVTX_INJECTION64_PATH": "/nsys/lib.so"}, False),
        ({"NVTX_INJECTION64_PATH": "/nsys/lib.so"}, True),
        ({"CSGMV_EMBED_NVTX": "", "NVTX_INJECTION64_PATH": ""}, False),
    ],
)
def test_ranges_are_there_when_asked_for_or_when_a_profiler_is_attached(
    environment: dict[str, str], wanted: bool
) -> None:
    assert ranges.wanted(environment) == wanted
    Settings.from_environment({"CSGMV_EMBED_NVTX": environment.get("CSGMV_EMBED_NVTX", "")})


def test_a_value_that_is_none_is_named() -> None:
    with pytest.raises(SettingError, match="CSGMV_EMBED_NVTX is 'yes'; expected 0 or 1"):
        Settings.from_environment({"CSGMV_EMBED_NVTX": "yes"})


def test_every_hook_has_a_range_of_its_name_which_ends_with_it(said: list[str]) -> None:
    functions = installer._functions(with_ranges=True)
    assert {*functions} == {*HOOKS}
    said.clear()
    # The plugin is off here, so the hook calls SGLang's own function at once.
    assert functions["qkv"](lambda backend: said.append("SGLang's own") or 7, "backend") == 7
    assert said == ["csgmv_embed.qkv", "SGLang's own", "end"]
    said.clear()
    with pytest.raises(ZeroDivisionError):
        functions["qkv"](lambda backend: 1 / 0, "backend")
    assert said == ["csgmv_embed.qkv", "end"]


def test_without_them_a_hook_is_what_it_was(said: list[str]) -> None:
    functions = installer._functions(with_ranges=False)
    functions["qkv"](lambda backend: None, "backend")
    assert said == [] and functions["csgmv_launcher"] is HOOKS["csgmv_launcher"]


def test_a_build_without_nvtx_serves_without_ranges() -> None:
    code = (
        "from csgmv_embed.sglang import installer, ranges\n"
        "from torch.cuda import nvtx\n"
        "def none(*_): raise RuntimeError('NVTX functions not installed')\n"
        "nvtx.range_push = none\n"
        "hook = lambda: 1\n"
        "assert ranges.ranged('x', hook) is hook\n"
        "assert 'ranged' not in installer.FUNCTIONS['qkv'].__code__.co_qualname\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
