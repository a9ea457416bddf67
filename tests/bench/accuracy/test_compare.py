"""Differences, texts and limits, on made-up outputs."""

from __future__ import annotations

import pytest
import torch

from bench.accuracy import compare
from bench.accuracy.generation import Output, Request
from bench.accuracy.models import AccuracyError

VOCAB, STEPS = 7, 4
pytestmark = pytest.mark.numeric
LIMIT = 0.01


def output(adapter: str | None = None, **shifts: float) -> Output:
    """An output whose logprobs are as `shifts` says: prefill by so much, or step_K of the decode."""
    generator = torch.Generator().manual_seed(1)
    prefill = torch.log_softmax(torch.randn(3, VOCAB, generator=generator), -1)
    decode = torch.log_softmax(torch.randn(STEPS, VOCAB, generator=generator), -1)
    tokens = tuple(decode.argmax(-1).tolist())
    prefill[1, 2] += shifts.get("prefill", 0.0)
    for k in range(STEPS):
        decode[k, 0] += shifts.get(f"step_{k}", 0.0)
    return Output(Request("p", adapter, (1, 2, 3)), prefill, decode, tokens)


def written(found: Output, *tokens: int) -> Output:
    return Output(found.request, found.prefill, found.decode, tokens)


def judged(found: Output, reference: Output | None = None, limit: float = LIMIT) -> compare.Row:
    return compare.judge("path", found, reference or output(), limit, "text")


def test_equal_outputs_pass_with_no_difference() -> None:
    row = judged(output())
    assert row.passed and row.text == "equal" and row.compared == STEPS
    assert row.prefill_max == row.decode_max == row.prefill_mean == row.decode_mean == 0.0


@pytest.mark.parametrize("where", ["prefill", "step_0", f"step_{STEPS - 1}"])
def test_one_logprob_past_the_limit_fails(where: str) -> None:
    assert judged(output(**{where: 0.9 * LIMIT})).passed
    row = judged(output(**{where: 1.1 * LIMIT}))
    assert not row.passed
    assert max(row.prefill_max, row.decode_max) == pytest.approx(1.1 * LIMIT, rel=1e-3)
    assert min(row.prefill_max, row.decode_max) == 0.0


def test_a_nan_fails_and_can_be_written() -> None:
    row = judged(output(prefill=float("nan")))
    assert not row.passed and row.prefill_max > 1e38


def test_other_text_is_a_tie_only_where_rounding_decides() -> None:
    reference = output()
    step = reference.decode[2]
    first, second = step.topk(2).indices.tolist()
    other = written(reference, *reference.tokens[:2], second, 0)
    gap = float(step[first] - step[second])
    assert judged(other, reference, limit=0.6 * gap).text == "tie"
    row = judged(other, reference, limit=0.4 * gap)
    assert row.text == "differs" and not row.passed and row.compared == 3


def test_what_follows_another_text_is_not_compared() -> None:
    reference = output()
    other = written(output(step_3=5.0), *reference.tokens[:2], (reference.tokens[2] + 1) % VOCAB, 0)
    row = judged(other, reference, limit=100.0)
    assert row.passed and row.decode_max == 0.0


def test_the_limit_of_float32_is_stated_and_of_others_twice_the_references_rounding() -> None:
    reference, wider = [output(), output("a")], [output(), output("a", step_1=0.25)]
    assert compare.limit_for(torch.float32, reference, wider) == (1e-4, pytest.approx(0.25))
    assert compare.limit_for(torch.bfloat16, reference, wider) == (pytest.approx(0.5), pytest.approx(0.25))


def test_largest_difference_is_infinite_where_a_text_differs() -> None:
    assert compare.largest_difference([output()], [output(prefill=0.5)]) == pytest.approx(0.5)
    assert compare.largest_difference([written(output(), 0, 0, 0, 0)], [output()]) == float("inf")


def test_an_adapter_without_effect_is_an_error() -> None:
    compare.require_effect([output(), output("a", prefill=1.0)], LIMIT)
    with pytest.raises(AccuracyError, match="adapter a: changes no logprob by more than 1.9e-02"):
        compare.require_effect([output(), output("a", prefill=1.9 * LIMIT)], LIMIT)
