"""The bounds of the tests: they hold for every order of summation, and one rounding too many breaks them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.rounding import UNIT, Exact, assert_errs_no_more, assert_rounded, distance, gamma

pytestmark = pytest.mark.numeric
TERMS = 300


def products(seed: int) -> tuple[torch.Tensor, torch.Tensor, Exact]:
    """Rows of two matrices in float32, and their inner products."""
    x, y = torch.randn(2, 50, TERMS, generator=torch.Generator().manual_seed(seed))
    terms = x.double() * y.double()
    return x, y, Exact(terms.sum(1), terms.abs().sum(1), TERMS)


def test_gamma_is_highams() -> None:
    assert gamma(1, 0.25) == pytest.approx(1 / 3)
    with pytest.raises(AssertionError):
        gamma(4, 0.25)


def test_any_order_of_summation_is_within_the_bound_and_a_term_left_out_is_not() -> None:
    x, y, exact = products(1)
    one_by_one = torch.zeros(50)
    for at in np.random.default_rng(1).permutation(TERMS):
        one_by_one += x[:, at] * y[:, at]
    for found in (one_by_one, (x * y).sum(1), (x[:, None] @ y[:, :, None]).flatten()):
        assert_rounded(found, exact)
    with pytest.raises(AssertionError, match="elements, by"):
        assert_rounded(one_by_one - x[:, 0] * y[:, 0], exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounding_that_is_not_counted_is_found(dtype: torch.dtype) -> None:
    x, y, exact = products(2)
    x, y = (part[:, :8].to(dtype).float() for part in (x, y))
    terms = x.double() * y.double()
    exact = Exact(terms.sum(1), terms.abs().sum(1), 8)
    base = torch.randn(50, generator=torch.Generator().manual_seed(3)).to(dtype)
    once = ((x * y).sum(1) + base.float()).to(dtype)
    twice = (x * y).sum(1).to(dtype) + base
    assert_rounded(once, exact + base)
    assert_rounded(twice, replace(exact + base, inner=1))
    cut = UNIT[dtype] / torch.finfo(dtype).eps  # 1 where the interpreter may cut off, which hides a rounding
    if cut < 1:
        with pytest.raises(AssertionError, match="elements, by"):
            assert_rounded(twice, exact + base)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_within_a_bound(bad: float) -> None:
    x, y, exact = products(4)
    found = (x * y).sum(1)
    found[7] = bad
    with pytest.raises(AssertionError, match="finite"):
        assert_rounded(found, exact)


def test_a_claim_about_an_average_holds_between_equals_and_fails_where_ours_rounds_more() -> None:
    def errors(cut: bool, offset: int) -> list[float]:
        """Of sums in float16, with `cut` in two roundings."""
        found = []
        for seed in range(10):
            x, y, exact = products(offset + seed)
            half = (x[:, ::2] * y[:, ::2]).sum(1)
            other = (x[:, 1::2] * y[:, 1::2]).sum(1)
            total = half.half() + other.half() if cut else (half + other).half()
            found.append(distance(total, exact))
        return found

    assert_errs_no_more(errors(False, 0), errors(False, 100))
    assert_errs_no_more(errors(False, 0), errors(True, 0))
    with pytest.raises(AssertionError, match="on average"):
        assert_errs_no_more(errors(True, 0), errors(False, 0))
    with pytest.raises(AssertionError, match="needs draws"):
        assert_errs_no_more([1.0], [2.0])
