"""The quickened interpreter: what is no longer done again, and that nothing is missing for it."""

from __future__ import annotations

import os
from unittest.mock import patch

import pytest
import torch

from bench.clocks.work import quick

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("of Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def doubled(values, factors: tl.constexpr):
    pair = (values, values)
    return pair[0] * factors[0] + pair[1] * factors[1]


@triton.jit
def kernel(pointer, out, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    values = tl.load(pointer + place)
    for _ in range(3):
        values = doubled(values, (1.0, 1.0))
    tl.store(out + place, values.to(tl.bfloat16))


def test_a_kernel_that_calls_functions_is_patched_once_a_launch_and_gives_the_same() -> None:
    quick.quicken()
    given, out = torch.arange(8, dtype=torch.float32), torch.zeros(8, dtype=torch.bfloat16)
    before = tl.core.tensor.__add__
    with patch.object(interpreter, "_patch_builtin", side_effect=interpreter._patch_builtin) as patched:
        kernel[(1,)](given, out, 8)
        once = patched.call_count
        kernel[(1,)](given, out, 8)
    assert torch.equal(out, (8 * given).bfloat16())
    assert 0 < once < 10 and patched.call_count == 2 * once  # a function that is called adds as many
    assert tl.core.tensor.__add__ is before, "what a launch patches it restores"


def test_types_of_numpy_and_of_tuples_are_as_they_were() -> None:
    quick.quicken()
    scalars = {tl.int1: "bool", tl.bfloat16: "uint16", tl.float32: "float32", tl.float8e5: "uint8"}
    for dtype, name in scalars.items():
        assert interpreter._get_np_dtype(dtype) == interpreter._get_np_dtype(tl.block_type(dtype, [4])) == name
        pointer = tl.pointer_type(dtype)
        assert interpreter._get_np_dtype(pointer) == interpreter._get_np_dtype(tl.block_type(pointer, [2])) == "uint64"
    made = tl.tuple([tl.constexpr(1), tl.constexpr(2)])
    assert made.type == tl.core._type_for_tuple_values(made.values)
    assert tl.tuple([], made.type).type is made.type
