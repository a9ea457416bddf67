"""Whether modes answer alike: compares greedy tokens and log-probabilities of equal prompts. Pure.

Modes are compared with the reference mode, within the bounds of bench.toml. If the mode `peft` ran, they are also
compared with its right answers, within twice that mode's own rounding. An engine and the reference in the engines'
dtype are two roundings of the same exact result, and the engine rounds no more often (docs/explanation/accuracy.md). So
no engine's answers enter that bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from bench.model.served import SITES, ServedAnswer, ServeResults, Site
from bench.model.serving import EXACT, PEFT, Load

NONE = "none"  # the mode without LoRA: what LoRA costs is told by it
Status = Literal["ok", "wrong", "unknown", "other"]


@dataclass(frozen=True)
class AnswerCheck:
    """A mode's answers beside those of the mode `reference`.

    status     ok, wrong, or unknown where one of the two has none; `other` where the mode without LoRA was asked for an
               adapter, for it has to differ
    mean_nats  mean difference of the log-probabilities of equal tokens, of the prompt where it is largest
    max_nats   the largest difference
    changed    prompts whose greedy answers take another token somewhere
    """

    mode: str
    reference: str
    status: Status
    reason: str | None = None
    equal: bool = False
    mean_nats: float | None = None
    max_nats: float | None = None
    changed: int = 0
    prompts: int = 0


class Bound(NamedTuple):
    """How much log-probabilities may differ: of any prompt in the mean, and anywhere."""

    mean_nats: float
    max_nats: float


Told = dict[Load, list[list[ServedAnswer]]]  # by process


def answer_checks(results: ServeResults) -> list[AnswerCheck]:
    """Each mode's answers against each reference's; the worst of its processes and loads."""
    told = {mode: _told(results, mode) for mode in results.run.modes}
    reference = results.serving.reference
    found: list[AnswerCheck] = []
    for name in [reference, PEFT] if PEFT in told else [reference]:
        expected = {load: all_processes[0] for load, all_processes in told.get(name, {}).items()}
        bound = bound_of(results, name)
        for mode, answers in told.items():
            if mode != PEFT:
                found += _worst(mode, name, answers, expected, bound)
    return found


def planted(results: ServeResults) -> dict[Site, AnswerCheck]:
    """How the bound judges answers without a site's adapters. If it says `ok`, it would not notice that site's loss."""
    bound, found = bound_of(results, PEFT), {}
    for load, of_load in _told(results, PEFT).items():
        for site in SITES:
            spoiled = [answer.without[site] for answer in of_load[0] if site in answer.without]
            if spoiled and bound is not None:
                found[site] = _check(f"{PEFT} without {site}", PEFT, load, spoiled, of_load[0], bound)
    return found


def wrong(checks: Iterable[AnswerCheck]) -> dict[str, AnswerCheck]:
    """Modes with wrong answers, each with the check that shows it."""
    return {check.mode: check for check in checks if check.status == "wrong"}


def bound_of(results: ServeResults, reference: str) -> Bound | None:
    """How far a mode may be from a reference; None if the record does not say."""
    if reference != PEFT:
        return Bound(results.serving.mean_limit_nats, results.serving.max_limit_nats)
    pairs = [
        [*_differences(item.rounded, item)]
        for of_load in _told(results, PEFT).values()
        for answers in of_load
        for item in answers
        if item.rounded is not None
    ]
    if not pairs:
        return None
    return Bound(2 * max(map(fmean, pairs)), 2 * max(map(max, pairs)))


def _told(results: ServeResults, mode: str) -> Told:
    found: Told = {}
    for process in results.processes:
        for item in process.loads:
            if process.mode == mode and item.answers and item.status == "ok":
                found.setdefault(item.load, []).append(item.answers)
    return found


def _worst(
    mode: str, reference: str, told: Told, expected: dict[Load, list[ServedAnswer]], bound: Bound | None
) -> Iterator[AnswerCheck]:
    """The worst where a mode has to answer as the reference; and beside it, where it cannot."""
    checks = [
        _check(mode, reference, load, answers, expected[load], bound)
        for load, of_load in told.items()
        if load in expected and bound is not None
        for answers in of_load
    ]
    if not checks:
        missing = mode if expected and bound is not None else reference
        yield AnswerCheck(mode, reference, "unknown", f"{missing} has no answers to compare")
    for comparable in (True, False):
        some = [check for check in checks if (check.status != "other") == comparable]
        if some:
            yield max(some, key=lambda check: (check.status == "wrong", check.max_nats or 0.0, not check.equal))


def _check(
    mode: str,
    reference: str,
    load: Load,
    answers: Sequence[ServedAnswer],
    expected: Sequence[ServedAnswer],
    bound: Bound,
) -> AnswerCheck:
    if len(answers) != len(expected):
        return AnswerCheck(mode, reference, "wrong", f"{len(answers)} answers beside {len(expected)} of {reference}")
    by_prompt = [[*_differences(one, other)] for one, other in zip(answers, expected, strict=True)]
    equal = all(
        one.exact is not None and one.exact == other.exact for one, other in zip(answers, expected, strict=True)
    )
    changed = sum(one.tokens != other.tokens for one, other in zip(answers, expected, strict=True))
    mean = max(map(fmean, by_prompt))
    most = max(map(max, by_prompt))
    reason = None
    if mode in EXACT and reference != PEFT and not equal:
        reason = f"its answers are not {reference}'s to the bit: log-probabilities differ by up to {most:.3g}"
    elif mean > bound.mean_nats:
        reason = f"a prompt's log-probabilities differ from {reference}'s by {mean:.3g} in the mean; "
        reason += f"at most {bound.mean_nats:.3g} allowed"
    elif most > bound.max_nats:
        reason = f"a log-probability differs from {reference}'s by {most:.3g}; at most {bound.max_nats:.3g} allowed"
    status: Status = "wrong" if reason else "ok"
    if mode == NONE and load.base_fraction < 1:
        status, reason = "other", None
    return AnswerCheck(mode, reference, status, reason, equal, mean, most, changed, len(answers))


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
