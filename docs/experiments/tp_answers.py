"""Whether a model spread over GPUs answers as one GPU does: two files of `bench serve`, mode by mode.

    python -m bench serve -p quick -m csgmv -m plugin --tp 1 -o tp1.json
    python -m bench serve -p quick -m csgmv -m plugin --tp 2 -o tp2.json     (two GPUs of one host)
    python docs/experiments/tp_answers.py tp1.json tp2.json

Sums over ranks are taken in another order, so answers differ by roundings: SGLang's own mode says by how many. Printed,
a row a mode: the largest difference of a prompt's log-probabilities of equal tokens in the mean, the largest of any,
prompts whose greedy answer takes another token, and the time of a step with one GPU and with several.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.model import served
from bench.model.served import ServedAnswer, ServeResults


def answers(results: ServeResults, mode: str) -> list[ServedAnswer]:
    """The first answers of a mode to the prompts that every mode is asked."""
    loads = [load for process in results.processes if process.mode == mode for load in process.loads]
    return next((load.answers for load in loads if load.answers and load.status == "ok"), [])


def differences(one: ServedAnswer, other: ServedAnswer) -> list[float]:
    """Of log-probabilities: the prompt's, and the answer's up to the first token that differs."""
    found = [abs(a - b) for a, b in zip(one.prompt_logprobs, other.prompt_logprobs, strict=True)]
    for mine, theirs, a, b in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False):
        found.append(abs(a - b))
        if mine != theirs:
            break
    return found


def steps_us(results: ServeResults, mode: str) -> dict[str, float]:
    """Medians of the time of a step or a prefill, by load."""
    found: dict[str, float] = {}
    for process in results.processes:
        for load in process.loads if process.mode == mode else []:
            samples = load.samples.get("step_us") or load.samples.get("prefill_us")
            if samples:
                found[load.load.label] = median(samples)
    return found


def main() -> None:
    """Read both files and print a row a mode."""
    one, several = (served.read(Path(name)) for name in sys.argv[1:3])
    for mode in one.run.modes:
        pairs = list(zip(answers(one, mode), answers(several, mode), strict=False))
        if not pairs:
            print(f"{mode}: no answers in both files")
            continue
        by_prompt = [differences(*pair) for pair in pairs]
        changed = sum(a.tokens != b.tokens for a, b in pairs)
        worst, most = max(map(fmean, by_prompt)), max(map(max, by_prompt))
        print(
            f"{mode}: {worst:.4f} nats in the mean of a prompt, {most:.4f} at most, {changed} of {len(pairs)} changed"
        )
        alone, spread = steps_us(one, mode), steps_us(several, mode)
        for label in alone.keys() & spread.keys():
            print(
                f"  {label}: {alone[label]:.0f} us with tp {one.setup.tp}, {spread[label]:.0f} with {several.setup.tp}"
            )


if __name__ == "__main__":
    main()
