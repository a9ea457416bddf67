"""How far a computed float may be from the exact value: bounds from its dtype and the number of terms, not measured.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM 2002. Lemma 3.1: a product of n
factors 1 + d, |d| <= u, is 1 + t with |t| <= gamma_n = n u / (1 - n u). Inequality (3.5): so an inner product of n
terms errs by at most gamma_n times the sum of the terms' absolute values, in whatever order they are added, with fused
multiply-adds or without. No bound here depends on the host's BLAS, and no test may use a closer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from statistics import mean, stdev
from typing import Any

import torch
from scipy import stats

HAS_GPU = torch.cuda.is_available()
# Largest relative error of one rounding. Triton's interpreter cuts float32 off where a GPU rounds it to bfloat16; the
# tensor cores of a GPU cut the sums of float32 off.
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8 if HAS_GPU else 2.0**-7,
}
SUM_UNIT = 2.0**-23 if HAS_GPU else 2.0**-24
FALSE_ALARMS = 1e-6  # of one call of assert_errs_no_more, were both sides equally exact


def gamma(roundings: int, unit: float) -> float:
    """Higham's gamma_n: the largest relative error of a value after n roundings."""
    assert roundings * unit < 1
    return roundings * unit / (1 - roundings * unit)


@dataclass(frozen=True)
class Exact:
    """A result and what bounds the error of computing it.

    value      float64, rounded nowhere
    absolutes  the same sums of the terms' absolute values: float64, of the same shape
    terms      roundings in float32 on the longest way from an input to the result: one for each product and each sum
    inner      roundings to the dtype of the result on that way, without the last
    """

    value: torch.Tensor
    absolutes: torch.Tensor
    terms: int
    inner: int = 0

    def __post_init__(self) -> None:
        assert self.value.dtype == self.absolutes.dtype == torch.float64
        assert self.value.shape == self.absolutes.shape and bool((self.value.abs() <= 1.000001 * self.absolutes).all())

    def __getitem__(self, rows: Any) -> Exact:
        return replace(self, value=self.value[rows], absolutes=self.absolutes[rows])

    def __add__(self, given: torch.Tensor) -> Exact:
        """With one term more, that is given as it is."""
        given = given.double()
        return replace(self, value=self.value + given, absolutes=self.absolutes + given.abs(), terms=self.terms + 1)

    def allowed(self, dtype: torch.dtype, inner_dtype: torch.dtype | None = None) -> torch.Tensor:
        """The largest error of each element, with one rounding to the dtype at the end.

        inner_dtype: that of the inner roundings, if they are to another one.
        """
        relative = (1 + gamma(self.terms, SUM_UNIT)) * (1 + gamma(self.inner, UNIT[inner_dtype or dtype])) - 1
        before = relative * self.absolutes
        tiniest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # what is below has no relative precision
        return before + UNIT[dtype] * (self.value.abs() + before) + tiniest


def assert_rounded(found: torch.Tensor, exact: Exact, inner_dtype: torch.dtype | None = None) -> None:
    """Every element of `found` is the exact one but for the roundings that `exact` counts, and one to its dtype."""
    assert found.shape == exact.value.shape
    error = (found.double() - exact.value).abs()
    excess = error - exact.allowed(found.dtype, inner_dtype)
    assert bool((error - error == 0).all()), "not every element is finite"
    assert bool((excess <= 0).all()), f"{int((excess > 0).sum())} elements, by {float(excess.amax()):.3g} at worst"


def distance(found: torch.Tensor, exact: Exact) -> float:
    """The root of the mean square of the errors: what a claim about averages compares."""
    assert found.shape == exact.value.shape
    return float((found.double() - exact.value).square().mean().sqrt())


def assert_errs_no_more(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """On average over draws ours errs no more than theirs: one pair of errors for each of several draws.

    A one-sided t-test of the mean logarithm of ours / theirs. It fails only where ours is worse by more than chance
    explains: of two sides that are equally exact with a probability of FALSE_ALARMS. A draw that both computed without
    any error, in which nobody had an adapter say, tells nothing.
    """
    draws = [pair for pair in zip(ours, theirs, strict=True) if pair != (0.0, 0.0)]
    assert all(other > 0 for _, other in draws), "ours errs where theirs does not"
    ratios = [log(max(one, SUM_UNIT * other) / other) for one, other in draws]
    assert len(ratios) >= 8, "a claim about an average needs draws"
    limit = float(stats.t.isf(FALSE_ALARMS, len(ratios) - 1)) * stdev(ratios) / sqrt(len(ratios))
    assert mean(ratios) <= limit, f"ours errs {mean(ratios):+.1%} on average, {limit:+.1%} is chance"
