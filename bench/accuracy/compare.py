"""Compares outputs with the reference: differences, whether the text is the same, and pass or fail. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import torch

from bench.accuracy.generation import Output
from bench.accuracy.models import AccuracyError

FLOAT32_LIMIT = 1e-4
Text = Literal["equal", "tie", "differs"]


class Limit(NamedTuple):
    """`limit`: the largest difference of a logprob that passes, in nats.

    `rounding`: the reference's own difference from itself in the next wider dtype, on the same weights and prompts.
    """

    limit: float
    rounding: float


class Row(msgspec.Struct):
    """One request on one path, compared with the reference.

    Differences of logprobs are in nats, over the whole vocabulary. `compared`: the decode steps that have the same text
    before them. `text` is `tie` if, at the first different token, the reference has that token's logprob within twice
    the limit of its own choice, so that rounding decides.
    """

    path: str
    prompt: str
    adapter: str | None
    prefill_max: float
    prefill_mean: float
    decode_max: float
    decode_mean: float
    compared: int
    text: Text
    passed: bool
    written: str


def limit_for(dtype: torch.dtype, reference: Sequence[Output], wider: Sequence[Output]) -> Limit:
    """The limit of a dtype. Float32: 1e-4. Shorter ones: twice the reference's own rounding.

    A path and the reference are two roundings of the same exact result. Neither is nearer to it by right. The served
    one rounds no more often, so their distance is at most the sum of two such errors (docs/explanation/accuracy.md). No
    path's output enters the limit.
    """
    rounding = max(max(_differences(a, b)) for a, b in zip(reference, wider, strict=True))
    return Limit(FLOAT32_LIMIT if dtype == torch.float32 else 2 * rounding, rounding)


def judge(path: str, found: Output, reference: Output, limit: float, written: str) -> Row:
    """Compare one output. A NaN fails."""
    steps = common_steps(found, reference)
    prefill = (found.prefill - reference.prefill).abs()
    decode = (found.decode[:steps] - reference.decode[:steps]).abs()
    text = _text(found, reference, limit)
    largest = max(float(prefill.max()), float(decode.max()))
    finite = bool(prefill.isfinite().all() and decode.isfinite().all())
    return Row(
        path=path,
        prompt=reference.request.prompt,
        adapter=reference.request.adapter,
        prefill_max=_number(prefill.max()),
        prefill_mean=_number(prefill.mean()),
        decode_max=_number(decode.max()),
        decode_mean=_number(decode.mean()),
        compared=steps,
        text=text,
        passed=finite and largest <= limit and text != "differs",
        written=written,
    )


def require_effect(reference: Sequence[Output], limit: float) -> None:
    """Raises AccuracyError for an adapter that proves nothing: right paths may differ as much as its effect."""
    base = {output.request.prompt: output for output in reference if output.request.adapter is None}
    effects: dict[str, float] = {}
    for output in reference:
        if (name := output.request.adapter) is not None:
            changed = float((output.prefill - base[output.request.prompt].prefill).abs().max())
            effects[name] = max(changed, effects.get(name, 0.0))
    for name, effect in effects.items():
        if not effect > 2 * limit:
            raise AccuracyError(
                f"adapter {name}: changes no logprob by more than {effect:.1e}; expected more than {2 * limit:.1e}, "
                "or the comparison shows nothing"
            )


def largest_difference(found: Sequence[Output], expected: Sequence[Output]) -> float:
    """Over requests, prefill and the compared decode steps, in nats. Infinite if a text differs, or with a NaN."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.tokens != other.tokens:
            return float("inf")
        worst = max(worst, *map(_number, _differences(one, other)))
    return worst


def common_steps(one: Output, other: Output) -> int:
    """Number of decode steps with the same text before them, including the step with the first different token."""
    equal = [a == b for a, b in zip(one.tokens, other.tokens, strict=True)]
    return equal.index(False) + 1 if False in equal else len(equal)


def _differences(one: Output, other: Output) -> tuple[float, float]:
    steps = common_steps(one, other)
    prefill = (one.prefill - other.prefill).abs().max()
    return float(prefill), float((one.decode[:steps] - other.decode[:steps]).abs().max())


def _text(found: Output, reference: Output, limit: float) -> Text:
    if found.tokens == reference.tokens:
        return "equal"
    at = common_steps(found, reference) - 1
    row = reference.decode[at]
    return "tie" if float(row[reference.tokens[at]] - row[found.tokens[at]]) <= 2 * limit else "differs"


def _number(value: torch.Tensor | float) -> float:
    """A figure that JSON can hold: a NaN is an infinite difference, shown as the largest float."""
    number = float(value)
    return number if number < float("inf") else float(torch.finfo(torch.float32).max)
