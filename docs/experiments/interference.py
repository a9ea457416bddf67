"""By how much a point moves while the other GPU of the host measures too, beside what it moves by itself.

    python -m bench sweep -p quick --gpus 0   -o idle.json       (two GPUs of one model in one host)
    python -m bench sweep -p quick --gpus 0,1 -o busy.json
    python -m bench sweep -p quick --gpus 0   -o again.json
    python -m bench sweep -p quick --gpus 1   -o other.json
    python docs/experiments/interference.py OUT.json idle.json busy.json again.json other.json

idle and again are of one GPU while the other does nothing: what their points differ by is noise. busy is of both at
once; its points on the first GPU are held against idle, those on the second against other. other against idle is what
two GPUs of one model differ by. Figures are log ratios of a point's geometric means, in percent, by clock.

Points move more than the noise if the sizes of their ratios are larger (Mann-Whitney, one-sided), or if their median is
not that of the noise (Mann-Whitney, two-sided), p < 0.01 for either: then `--one-at-a-time` is worth its time.
"""

from __future__ import annotations

import json
import sys
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.judge.estimate import point_estimate
from bench.model import store
from bench.model.records import Results

Values = dict[Any, float]  # point -> log time
ALPHA, LEAST_POINTS = 0.01, 8


def times(results: Results, uuid: str | None) -> Values:
    """Of the points that are ok, on one GPU of the run or on all."""
    found = {}
    for point in results.points:
        on = results.gpus[point.gpu].uuid if point.gpu is not None else None
        estimate = point_estimate(point) if point.status == "ok" else None
        if estimate is not None and uuid in (None, on):
            found[point.key] = log(estimate.value)
    return found


def ratios(after: Values, before: Values, clock: str) -> list[float]:
    """Log ratios of the points of a clock that both have."""
    return [value - before[key] for key, value in after.items() if key in before and key[2] == clock]


def shown(values: list[float]) -> dict[str, Any]:
    """In percent: the middle, and what half and 95 % of the points stay within."""
    sizes = 100 * np.abs(values)
    half, most = (float(np.quantile(sizes, share)) for share in (0.5, 0.95)) if values else (0.0, 0.0)
    return {
        "points": len(values),
        "median_pct": round(100 * median(values), 3) if values else None,
        "half_within_pct": round(half, 3),
        "most_within_pct": round(most, 3),
    }


def beside(after: Values, before: Values, noisy: Values, still: Values, clock: str) -> dict[str, Any]:
    """The same of the points that all four have, and whether it is more than the noise: noisy over still."""
    common = after.keys() & before.keys() & noisy.keys() & still.keys()
    values, noise = (
        ratios({key: of[key] for key in of if key in common}, over, clock)
        for of, over in ((after, before), (noisy, still))
    )
    found = shown(values)
    if min(len(values), len(noise)) < LEAST_POINTS:
        return {**found, "verdict": f"fewer than {LEAST_POINTS} points"}
    larger = float(mannwhitneyu(np.abs(values), np.abs(noise), alternative="greater").pvalue)
    moved = float(mannwhitneyu(values, noise).pvalue)
    verdict = "more than the noise" if min(larger, moved) < ALPHA else "within the noise"
    found["noise_half_within_pct"] = shown(noise)["half_within_pct"]
    return {**found, "p_larger": round(larger, 5), "p_moved": round(moved, 5), "verdict": verdict}


def report(idle: Results, busy: Results, again: Results, other: Results | None) -> dict[str, Any]:
    """By clock: the noise, the first GPU while the second is busy, the second while the first is, and the two."""
    first = idle.gpus[0].uuid
    if again.gpus[0].uuid != first or len(busy.gpus) < 2:
        raise SystemExit("expected idle and again of one GPU, and busy of two with it among them")
    still, noisy = times(idle, first), times(again, first)
    found: dict[str, Any] = {}
    for clock in dict.fromkeys(key[2] for key in still):
        noise = ratios(noisy, still, clock)
        of_clock = {"noise": shown(noise), "busy": beside(times(busy, first), still, noisy, still, clock)}
        if other is not None:
            second = other.gpus[0].uuid
            alone = times(other, second)
            of_clock["busy_second"] = beside(times(busy, second), alone, noisy, still, clock)
            of_clock["second_over_first"] = beside(alone, still, noisy, still, clock)
        found[clock] = of_clock
    return found


def dealing(idle: Results, busy: Results) -> dict[str, Any]:
    """How much sooner two GPUs were done, with the starts of their workers and without."""
    work = [0.0] * len(busy.gpus)
    points = [0] * len(busy.gpus)
    for point in busy.points:
        work[point.gpu or 0] += point.wall_s
        points[point.gpu or 0] += 1
    alone = sum(point.wall_s for point in idle.points)
    return {
        "one_gpu_s": round(idle.run.duration_s, 1),
        "two_gpus_s": round(busy.run.duration_s, 1),
        "ratio": round(idle.run.duration_s / busy.run.duration_s, 2),
        "ratio_without_starts": round(alone / max(work), 2),
        "points": points,
        "measuring_s": [round(seconds, 1) for seconds in work],
    }


def main() -> None:
    """Read the files, say what they say, and write it."""
    out, *paths = map(Path, sys.argv[1:])
    idle, busy, again, *rest = map(store.read, paths)
    found = {
        "commit": idle.code.short,
        "gpu": idle.env.identity.get("gpu") if idle.env else None,
        "argv": busy.run.argv,
        "dealing": dealing(idle, busy),
        "clocks": report(idle, busy, again, rest[0] if rest else None),
    }
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["dealing"]))
    for clock, rows in found["clocks"].items():
        for name, row in rows.items():
            print(f"{clock:8} {name:18} {json.dumps(row)}")
    more = any(
        row.get("verdict") == "more than the noise" for rows in found["clocks"].values() for row in rows.values()
    )
    print("points move more than the noise: see which; --one-at-a-time measures without it" if more else "quiet")


if __name__ == "__main__":
    main()
