"""bfloat16 in Triton's interpreter: sums, products and roundings are a GPU's inside `faithful`, as before after it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from bench.clocks.work import tracing
from bench.clocks.work.interpreter import faithful
from tests.support.rounding import Exact, assert_rounded

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
]


@triton.jit
def halves(x, y):
    return tl.trans(x), tl.trans(y)


@triton.jit
def product_kernel(x, y, out):
    """out = (x @ y).to(out) + out, in the dtype of out."""
    at = tl.arange(0, 16)
    place = at[:, None] * 16 + at[None, :]
    left, right = halves(tl.load(x + place), tl.load(y + place))
    total = tl.dot(tl.trans(left), tl.trans(right)).to(out.dtype.element_ty)
    tl.store(out + place, total + tl.load(out + place))


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(16, 16, generator=generator).to(dtype) for _ in range(3))  # type: ignore[return-value]


def exact_product(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> Exact:
    """The product is rounded before it is added."""
    x, y = x.double(), y.double()
    return replace(Exact(x @ y, x.abs() @ y.abs(), terms=16) + out, inner=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_product_is_rounded_as_on_a_gpu(dtype: torch.dtype) -> None:
    x, y, out = operands(dtype)
    expected = exact_product(x, y, out)
    with faithful():
        product_kernel[(1,)](x, y, out)
    assert_rounded(out, expected)
    if dtype == torch.bfloat16:
        again = operands(dtype)
        product_kernel[(1,)](*again)
        off = (again[2].double() - expected.value).abs()
        assert bool((off > 10 * expected.allowed(dtype)).any()), "mended by Triton: faithful can go"


def test_a_traced_product_is_counted_and_right() -> None:
    x, y, out = operands(torch.bfloat16)
    expected = exact_product(x, y, out)
    for _ in range(2):  # a second trace must find the interpreter as the first did
        result = out.clone()
        counts = tracing.count(lambda result=result: product_kernel[(1,)](x, y, result)).counts  # type: ignore[misc]
        assert (counts.launches, counts.load_bytes, counts.store_bytes) == (1, 3 * 512, 512)
        assert_rounded(result, expected)


def test_a_launch_of_too_many_programs_is_refused_by_its_size() -> None:
    x, y, out = operands(torch.float32)
    with pytest.raises(tracing.TooManyPrograms, match="9000 programs; the work clock interprets at most 8192"):
        tracing.count(lambda: product_kernel[(9000,)](x, y, out))
