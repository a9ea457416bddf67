"""Whether modes answer alike: greedy tokens and log-probabilities of equal prompts, held against one mode's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.model.served import ServedAnswer, ServeResults
from bench.model.serving import EXACT

NONE = "none"  # the mode without LoRA: what LoRA costs is told by it


@dataclass(frozen=True)
class AnswerCheck:
    """A mode's answers beside the reference mode's.

    status     ok, wrong, or unknown where one of the two has none; of the mode without LoRA `other`, for they differ
    mean_nats  mean difference of the log-probabilities of equal tokens, of the prompt where it is largest
    max_nats   the largest difference
    changed    prompts whose greedy answers take another token somewhere
    """

    mode: str
    reference: str
    status: Literal["ok", "wrong", "unknown", "other"]
    reason: str | None = None
    equal: bool = False
    mean_nats: float | None = None
    max_nats: float | None = None
    changed: int = 0
    prompts: int = 0


def answer_checks(results: ServeResults) -> list[AnswerCheck]:
    """Each mode's answers, the worst of its processes, beside the reference's first."""
    reference = results.serving.reference
    told: dict[str, list[list[ServedAnswer]]] = {mode: [] for mode in results.run.modes}
    for process in results.processes:
        told[process.mode] += [item.answers for item in process.loads if item.answers and item.status == "ok"]
    expected = next(iter(told.get(reference, [])), None)
    found = []
    for mode, answers in told.items():
        if expected is None or not answers:
            missing = reference if expected is None else mode
            found.append(AnswerCheck(mode, reference, "unknown", f"{missing} has no answers to compare"))
            continue
        checks = [_check(results, mode, theirs, expected) for theirs in answers]
        found.append(max(checks, key=lambda check: (check.status == "wrong", check.max_nats or 0.0, not check.equal)))
    return found


def _check(
    results: ServeResults, mode: str, answers: Sequence[ServedAnswer], expected: Sequence[ServedAnswer]
) -> AnswerCheck:
    reference, limits = results.serving.reference, results.serving
    if len(answers) != len(expected):
        return AnswerCheck(mode, reference, "wrong", f"{len(answers)} answers beside {len(expected)} of {reference}")
    by_prompt = [[*_differences(one, other)] for one, other in zip(answers, expected, strict=True)]
    equal = all(
        one.exact is not None and one.exact == other.exact for one, other in zip(answers, expected, strict=True)
    )
    changed = sum(one.tokens != other.tokens for one, other in zip(answers, expected, strict=True))
    mean = max(fmean(values) for values in by_prompt)
    most = max(max(values) for values in by_prompt)
    reason = None
    if mode in EXACT and not equal:
        reason = f"its answers are not {reference}'s to the bit: log-probabilities differ by up to {most:.3g}"
    elif mean > limits.mean_limit_nats:
        reason = f"a prompt's log-probabilities differ from {reference}'s by {mean:.3g} in the mean; "
        reason += f"at most {limits.mean_limit_nats:g} allowed"
    elif most > limits.max_limit_nats:
        reason = (
            f"a log-probability differs from {reference}'s by {most:.3g}; at most {limits.max_limit_nats:g} allowed"
        )
    status: Literal["ok", "wrong", "other"] = "other" if mode == NONE else "wrong" if reason else "ok"
    told = reason if status == "wrong" else None
    return AnswerCheck(mode, reference, status, told, equal, mean, most, changed, len(answers))


def _differences(one: ServedAnswer, other: ServedAnswer) -> Iterator[float]:
    """Of the prompt's log-probabilities, then of the answer's up to and with the first token that differs.

    There each is the largest of its distribution, and two largest values differ by no more than their distributions do;
    what comes after follows other tokens and is not comparable. Prompts of other lengths differ without bound.
    """
    if len(one.prompt_logprobs) != len(other.prompt_logprobs):
        yield float("inf")
        return
    yield from (abs(a - b) for a, b in zip(one.prompt_logprobs, other.prompt_logprobs, strict=True))
    for mine, theirs, a, b in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False):
        yield abs(a - b)
        if mine != theirs:
            return
