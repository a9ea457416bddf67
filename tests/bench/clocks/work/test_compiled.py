"""Figures of small kernels whose binaries are known by construction. This file is also the worker, run as a script."""

# Triton is untyped, and so are kernels.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
import triton
import triton.language as tl

from bench.clocks.work import compiled
from bench.model.paths import ROOT
from bench.model.records import WorkLaunch

RANK = 64


@triton.jit
def gather_rows(ids, table, out, R: tl.constexpr, B: tl.constexpr):
    token = tl.program_id(0) * B + tl.arange(0, B)
    row = tl.load(ids + token)
    column = tl.arange(0, R)
    tl.store(out + token[:, None] * R + column[None, :], tl.load(table + row[:, None] * R + column[None, :]))


@triton.jit
def gather_columns(ids, table, out, rank_stride, R: tl.constexpr):
    token = tl.program_id(0)
    column = tl.arange(0, R)
    tl.store(out + (token + column * rank_stride), tl.load(table + tl.load(ids + token) + column * rank_stride))


@triton.jit
def scale_by_sum(values, out, N: tl.constexpr):
    position = tl.arange(0, N)
    x = tl.load(values + position)
    tl.store(out + position, x * tl.sum(x))


IDS = torch.zeros(64, dtype=torch.int64)
TABLE = torch.zeros(RANK, RANK, dtype=torch.bfloat16)
OUT = torch.ones_like(TABLE)
VALUES = torch.zeros(4096)


def launch_rows() -> None:
    gather_rows[(4,)](IDS, TABLE, OUT, RANK, 16)


def launch_columns() -> None:
    gather_columns[lambda arguments: (arguments["R"] // 32, 3)](IDS, TABLE, OUT, RANK, R=RANK)


def launch_spill() -> None:
    scale_by_sum[(1,)](VALUES, torch.zeros_like(VALUES), 4096, num_warps=1, maxnreg=32)  # 128 values a thread


def launch_roomy() -> None:
    scale_by_sum[(1,)](VALUES, torch.zeros_like(VALUES), 4096, num_warps=8)  # 16 values a thread


def launch_all() -> None:
    launch_columns()
    launch_rows()
    launch_columns()


def launch_broken() -> None:
    launch_rows()
    raise ValueError("broken launch")


def left_behind() -> dict[str, bool]:
    """Whether a launch that fails leaves anything; the active driver and a GPU's cache entry are stand-ins here."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    before, run, real = dict(vars(driver)), JITFunction.run, object()
    driver.set_active(real)
    cached: tuple[object, ...] = ({}, {}, None, None, None)
    gather_rows.device_caches[0] = cached
    with contextlib.suppress(ValueError):
        compiled.compile_launch(launch_broken)
    restored = vars(driver) == {**before, "_active": real}
    return {
        "driver": not restored,
        "run": JITFunction.run is not run,
        "caches": list(gather_rows.device_caches.items()) != [(0, cached)],
        "cuda": torch.cuda.is_initialized(),
        "launched": not bool((OUT == 1).all()),
    }


def work() -> None:
    launches: list[Callable[[], None]] = [launch_rows, launch_columns, launch_spill, launch_roomy, launch_all]
    found = {launch.__name__: compiled.compile_launch(launch) for launch in launches}
    found["ampere"] = compiled.compile_launch(launch_rows, capability=80)
    found["nothing"] = compiled.compile_launch(lambda: torch.zeros(8))
    results: dict[str, Any] = {name: each.kernels for name, each in found.items()}
    results["launches"] = {name: each.launches for name, each in found.items()}
    results["left_behind"] = left_behind()
    sys.stdout.buffer.write(msgspec.json.encode(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    worker = [sys.executable, "-m", __name__]
    done = subprocess.run(worker, env=environment, capture_output=True, check=False, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    decoded: dict[str, Any] = json.loads(done.stdout)
    return decoded


def only(figures: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(figures) == 1
    return figures[0]


def test_contiguous_rows_move_sixteen_bytes(results: dict[str, Any]) -> None:
    rows = only(results["launch_rows"])
    assert (rows["widest_load_bits"], rows["widest_store_bits"]) == (128, 128)
    assert (rows["kernel"], rows["capability"], rows["num_warps"]) == ("gather_rows", 90, 4)
    assert (rows["spill_bytes"], rows["shared_bytes"]) == (0, 0)
    assert 0 < rows["registers"] <= 64
    assert 10 < rows["instructions"] < 100


def test_strided_elements_move_two_bytes(results: dict[str, Any]) -> None:
    # The id is a scalar of 64 bits; the elements are the only stores.
    columns = only(results["launch_columns"])
    assert (columns["widest_load_bits"], columns["widest_store_bits"]) == (64, 16)


def test_spills_are_seen(results: dict[str, Any]) -> None:
    spill, roomy = only(results["launch_spill"]), only(results["launch_roomy"])
    assert spill["registers"] <= 32
    assert spill["spill_bytes"] >= (128 - 32) * 4
    assert roomy["spill_bytes"] == 0
    assert spill["instructions"] > roomy["instructions"]


def test_shared_memory_of_a_reduction_across_warps(results: dict[str, Any]) -> None:
    assert only(results["launch_spill"])["shared_bytes"] == 0
    assert only(results["launch_roomy"])["shared_bytes"] == 8 * 4  # one float a warp


def test_distinct_kernels_in_launch_order(results: dict[str, Any]) -> None:
    assert results["launch_all"] == [*results["launch_columns"], *results["launch_rows"]]


def test_launches_name_their_binary_and_their_programs(results: dict[str, Any]) -> None:
    columns = {"kernel": "gather_columns", "programs": 2 * 3, "compiled": 0}  # of a grid that is a function
    rows = {"kernel": "gather_rows", "programs": 4, "compiled": 1}
    assert results["launches"]["launch_all"] == [columns, rows, columns]
    assert results["launches"]["nothing"] == []


def test_counted_launches_get_their_binaries() -> None:
    counted = [WorkLaunch("shrink", 4, 2), WorkLaunch("expand", 8, 8)]
    seen = [compiled.Launched("shrink", 4, 0), compiled.Launched("expand", 8, 1)]
    assert [launch.compiled for launch in compiled.with_binaries(counted, seen)] == [0, 1]


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [compiled.Launched("shrink", 4, 0)] * 2,
        [compiled.Launched("shrink", 5, 0)],
        [compiled.Launched("expand", 4, 0)],
    ],
)
def test_launches_that_only_one_side_sees_are_an_error(seen: list[compiled.Launched]) -> None:
    with pytest.raises(RuntimeError, match="counted the launches shrink of 4 programs, a GPU would run"):
        compiled.with_binaries([WorkLaunch("shrink", 4, 2)], seen)


def test_capability_is_the_callers(results: dict[str, Any]) -> None:
    assert only(results["ampere"])["capability"] == 80


def test_a_launch_without_kernels(results: dict[str, Any]) -> None:
    assert results["nothing"] == []


def test_nothing_is_left_behind(results: dict[str, Any]) -> None:
    assert not any(results["left_behind"].values()), results["left_behind"]


@pytest.mark.parametrize(
    ("mnemonics", "opcodes", "bits"),
    [
        (["LDG.E", "STG.E.128"], ("LDG",), 32),
        (["LDG.E.U8", "LDG.E.U16.CONSTANT", "LDG.E.S8"], ("LDG",), 16),
        (["LDG.E.LTC128B.64"], ("LDG",), 64),
        (["LDGSTS.E.BYPASS.128", "LDS.64"], ("LDG", "LDGSTS"), 128),
        (["ULDC.64", "LDC"], ("LDG",), 0),
    ],
)
def test_width_of_a_mnemonic(mnemonics: list[str], opcodes: tuple[str, ...], bits: int) -> None:
    assert compiled._widest_bits(mnemonics, opcodes) == bits


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compiled.compile_launch(lambda: None)


if __name__ == "__main__":
    work()
