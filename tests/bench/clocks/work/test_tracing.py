"""Counts of tiny kernels against arithmetic. This file is also the worker: a script under TRITON_INTERPRET=1."""

# Triton is untyped, and so are kernels.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped,no-untyped-call"

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.clocks.work import tracing
from bench.model.paths import ROOT

TOKENS, RANK, BLOCK = 10, 16, 4  # a row of 16 bfloat16 is one sector of 32 bytes
GRID = (4,)  # three programs have tokens, the fourth has none
IDS = [0, 16, 32, 48, 48, 48, 80, 96, 112, 128]  # 8 distinct ids, 16 elements apart
LENGTHS = [1, 5, 0, 2]


@triton.jit
def gather(ids, table, out, tokens, rank_stride, id_stride, R: tl.constexpr, B: tl.constexpr):
    token = tl.program_id(0) * B + tl.arange(0, B)
    mask = token < tokens
    row = tl.load(ids + token, mask=mask, other=0)
    column = tl.arange(0, R)
    values = tl.load(table + row[:, None] * id_stride + column[None, :] * rank_stride, mask=mask[:, None])
    tl.store(out + token[:, None] * R + column[None, :], values, mask=mask[:, None])


@triton.jit
def copy_ragged(starts, source, out):
    program = tl.program_id(0)
    for position in range(tl.load(starts + program), tl.load(starts + program + 1)):
        tl.store(out + position, tl.load(source + position))


@triton.jit
def copy_described(source, out, R: tl.constexpr, B: tl.constexpr):
    place = [tl.program_id(0) * B, 0]
    out.store(place, source.load(place))


@triton.jit
def add_one(out):
    tl.atomic_add(out, 1)


@triton.jit
def add_atomically(out):
    add_one(out)


@triton.jit
def store_far(out):
    tl.store(out + (1 << 40), 1)


KERNELS = ("gather", "copy_ragged", "copy_described", "add_atomically", "store_far")
copy_under_another_name, run_kept_for_later = copy_ragged, copy_ragged.run
copy_with_a_heuristic = triton.heuristics({})(copy_ragged)
copy_autotuned = triton.autotune([triton.Config({}, num_warps=warps) for warps in (1, 2)], key=[])(copy_ragged)
copy_made_before = JITFunction(copy_ragged.fn)  # as if decorated before TRITON_INTERPRET was set


def misaligned(values: torch.Tensor, remainder: int = 8) -> torch.Tensor:
    """The same values in a storage of their own that starts `remainder` bytes past a multiple of 32."""
    raw = values.contiguous().view(torch.uint8).numpy().ravel()
    buffer = np.empty(raw.size + 64, dtype=np.uint8)
    start = (remainder - buffer.ctypes.data) % 32
    buffer[start : start + raw.size] = raw
    moved = torch.from_numpy(buffer[start : start + raw.size])
    assert moved.untyped_storage().data_ptr() % 32 == remainder
    return moved.view(values.dtype).view(values.shape)


def gather_launch(
    *,
    rank_major: bool = False,
    place: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    shift: int = 0,
    times: int = 1,
) -> Callable[[], torch.Tensor]:
    ids = place(torch.tensor(IDS))
    vocab = 1024
    shape = (RANK, vocab) if rank_major else (vocab, RANK)
    table = place(torch.randn(shape).bfloat16())
    out = place(torch.zeros(TOKENS * RANK + shift, dtype=torch.bfloat16))[shift:].view(TOKENS, RANK)
    strides = (vocab, 1) if rank_major else (1, RANK)

    def launch() -> torch.Tensor:
        for _ in range(times):
            gather[GRID](ids, table, out, TOKENS, *strides, RANK, BLOCK)
        assert torch.equal(out, table[:, ids].T if rank_major else table[ids])
        return out

    return launch


def ragged_launch(start: Callable[..., object] = copy_ragged.run) -> object:
    starts = torch.tensor([0, *np.cumsum(LENGTHS)])
    source = torch.arange(sum(LENGTHS), dtype=torch.float32)
    out = torch.zeros_like(source)
    start(starts, source, out, grid=(len(LENGTHS),), warmup=False)
    assert torch.equal(out, source)
    return out


def described_launch() -> torch.Tensor:
    source = torch.arange(TOKENS * RANK, dtype=torch.int16).view(TOKENS, RANK)
    out = torch.zeros_like(source)
    described = [TensorDescriptor.from_tensor(tensor, [BLOCK, RANK]) for tensor in (source, out)]
    copy_described[GRID](*described, RANK, BLOCK)
    assert torch.equal(out, source)
    return out


def rows_then_ragged() -> None:
    gather_launch()()
    ragged_launch()


# Ways to launch copy_ragged: every one is counted or refused.
COUNTED_WAYS: dict[str, Callable[..., object]] = {
    "another_name": copy_under_another_name.run,
    "run_kept": run_kept_for_later,
    "heuristic": copy_with_a_heuristic.run,
    "other_object": triton.jit(copy_ragged.fn).run,
}
REFUSED_WAYS: dict[str, Callable[..., object]] = {
    "autotuned": lambda *arguments, **options: copy_autotuned.run(*arguments, **options),
    "made_before": lambda *arguments, **options: copy_made_before.run(*arguments, **options),
}

SCENARIOS: dict[str, Callable[[], object]] = {
    "rows": gather_launch(),
    "moved": gather_launch(place=misaligned),
    "scattered": gather_launch(rank_major=True),
    "twice": gather_launch(times=2),
    "shifted": gather_launch(shift=8),
    "ragged": ragged_launch,
    "described": described_launch,
    "too_many": lambda: copy_ragged[(tracing.MAX_PROGRAMS // 2, 3)](*[torch.zeros(1)] * 3),
    "torch_only": lambda: torch.zeros(1000),
    "atomic": lambda: add_atomically[(1,)](torch.zeros(1)),
    "far": lambda: store_far[(1,)](torch.zeros(1)),
    "both": rows_then_ragged,
}
SCENARIOS |= {name: partial(ragged_launch, way) for name, way in (COUNTED_WAYS | REFUSED_WAYS).items()}


def attempt(launch: Callable[[], object]) -> Any:
    try:
        return tracing.count(launch)
    except (RuntimeError, tracing.TooManyPrograms) as error:
        return f"{type(error).__name__}: {error}"


def left_behind(originals: dict[str, object]) -> dict[str, bool]:
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    ways = {kind.__name__: vars(kind)["run"] for kind in (JITFunction, Autotuner)}
    return {
        "ways": any(way.__name__ != "run" or way.__qualname__ != f"{kind}.run" for kind, way in ways.items())
        or vars(CompiledKernel)["run"].fget.__qualname__ != "CompiledKernel.run",
        "kernels": any(globals()[name] is not kernel for name, kernel in originals.items()),
        "builder": any(callable(value) for value in vars(interpreter_builder).values()),
        "grid_executor": GridExecutor.__call__.__module__ != GridExecutor.__module__,
    }


def work() -> None:
    originals = {name: globals()[name] for name in KERNELS}
    attempts = {name: attempt(launch) for name, launch in SCENARIOS.items()}
    results = {name: getattr(found, "counts", found) for name, found in attempts.items()}
    results["launches"] = {name: getattr(found, "launches", None) for name, found in attempts.items()}
    results["left_behind"] = left_behind(originals)
    sys.stdout.buffer.write(msgspec.json.encode(results))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    worker = [sys.executable, "-m", __name__]
    done = subprocess.run(worker, env=environment, capture_output=True, check=False, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    decoded: dict[str, Any] = json.loads(done.stdout)
    return decoded


def test_rows_of_one_sector(results: dict[str, Any]) -> None:
    ids_bytes, row_bytes = TOKENS * 8, TOKENS * RANK * 2
    assert results["rows"] == {
        "launches": 1,
        "programs": 4,
        "active_programs": 3,
        "busiest_loads": 2,
        "busiest_stores": 1,
        "load_bytes": ids_bytes + row_bytes,
        "store_bytes": row_bytes,
        "load_sectors": 3 + 8,  # 80 bytes of ids, one sector for each distinct row
        "store_sectors": TOKENS,
    }


def test_scattered_elements_each_touch_a_sector(results: dict[str, Any]) -> None:
    rows, scattered = results["rows"], results["scattered"]
    assert scattered["load_sectors"] == 3 + 8 * RANK
    assert {**scattered, "load_sectors": 0} == {**rows, "load_sectors": 0}


def test_counts_do_not_depend_on_addresses(results: dict[str, Any]) -> None:
    assert results["moved"] == results["rows"]


def test_a_view_keeps_its_place_in_the_storage(results: dict[str, Any]) -> None:
    # Ten rows of 32 bytes that start half a sector late reach into an eleventh.
    assert results["shifted"] == {**results["rows"], "store_sectors": TOKENS + 1}


def test_bytes_add_up_over_launches_and_sectors_do_not(results: dict[str, Any]) -> None:
    once, twice = results["rows"], results["twice"]
    summed = {name: 2 * once[name] for name in ("launches", "programs", "active_programs", "load_bytes", "store_bytes")}
    assert twice == {**once, **summed}


def test_busiest_program_of_a_loop(results: dict[str, Any]) -> None:
    total = sum(LENGTHS)
    assert results["ragged"] == {
        "launches": 1,
        "programs": 4,
        "active_programs": 3,
        "busiest_loads": 2 + 5,
        "busiest_stores": 5,
        "load_bytes": 4 * 2 * 8 + total * 4,
        "store_bytes": total * 4,
        "load_sectors": 2 + 1,  # 40 bytes of starts, 32 of values
        "store_sectors": 1,
    }


def test_accesses_through_a_descriptor_are_counted(results: dict[str, Any]) -> None:
    sizes = {"load_bytes": TOKENS * RANK * 2, "store_bytes": TOKENS * RANK * 2}
    assert results["described"] == {
        "launches": 1,
        "programs": 4,
        "active_programs": 3,  # of the third's block two rows are inside, of the fourth's none
        "busiest_loads": 1,
        "busiest_stores": 1,
        "load_sectors": TOKENS,
        "store_sectors": TOKENS,
        **sizes,
    }


def test_a_launch_that_would_take_too_long_is_not_begun(results: dict[str, Any]) -> None:
    assert results["too_many"].startswith(f"TooManyPrograms: a launch of {tracing.MAX_PROGRAMS // 2 * 3} programs")


def test_torch_kernels_are_not_counted(results: dict[str, Any]) -> None:
    assert set(results["torch_only"].values()) == {0}


@pytest.mark.parametrize("way", sorted(COUNTED_WAYS))
def test_a_kernel_is_counted_by_whatever_name_it_is_held(results: dict[str, Any], way: str) -> None:
    assert results[way] == results["ragged"]


@pytest.mark.parametrize("way", sorted(REFUSED_WAYS))
def test_a_launch_that_the_interpreter_does_not_see_is_an_error(results: dict[str, Any], way: str) -> None:
    assert "the kernel copy_ragged was launched and not counted" in results[way]


def test_launches_are_listed_in_order_with_their_programs(results: dict[str, Any]) -> None:
    rows = {"kernel": "gather", "programs": 4, "active_programs": 3, "compiled": None}
    assert results["launches"]["both"] == [rows, {**rows, "kernel": "copy_ragged"}]
    assert results["launches"]["twice"] == [rows, rows]
    assert results["launches"]["torch_only"] == []


def test_uncountable_work_is_refused(results: dict[str, Any]) -> None:
    assert results["atomic"].startswith("RuntimeError: a kernel used an atomic")  # in a function that it calls
    assert "outside its tensor arguments" in results["far"]


def test_nothing_is_left_behind(results: dict[str, Any]) -> None:
    assert not any(results["left_behind"].values()), results["left_behind"]


def test_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        tracing.count(lambda: None)


if __name__ == "__main__":
    work()
