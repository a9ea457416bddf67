"""Lists what a sweep would measure."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.text import Text

from bench.model.config import Plan

TELLING = ("phase", "batch_size", "rank")  # a case is known by these: each says its own


def listing(plan: Plan, profiles: list[str]) -> RenderableType:
    """Contenders, clocks, the number of points, and the cases: first what they share, then what tells each apart."""
    cases = list(dict.fromkeys(point.case for point in plan.points))
    contenders = list(dict.fromkeys(point.contender for point in plan.points))
    clocks = list(dict.fromkeys(point.clock for point in plan.points))
    keys = [dict(part.split("=", 1) for part in case.key.split(",")) for case in cases]
    usual = {name: value for name, value in _most_common(keys).items() if name not in TELLING}
    lines = [
        f"profile {plan.profile}: {len(plan.points)} points (other profiles: "
        f"{', '.join(name for name in profiles if name != plan.profile)})",
        f"clocks: {', '.join(clocks)}",
        "contenders:",
        *(f"  {name}" for name in contenders),
        f"cases ({len(cases)}); where a case does not say so, {', '.join(_pairs(usual))}:",
        *(f"  {','.join(_pairs({n: v for n, v in key.items() if usual.get(n) != v}))}" for key in keys),
    ]
    return Group(*(Text(line, overflow="fold") for line in lines))


def _most_common(keys: list[dict[str, str]]) -> dict[str, str]:
    """Of each axis of all cases the value that most have."""
    shared = [name for name in (keys[0] if keys else {}) if all(name in key for key in keys)]
    return {name: Counter(key[name] for key in keys).most_common(1)[0][0] for name in shared}


def _pairs(key: dict[str, str]) -> list[str]:
    """As `--case` takes them."""
    return [f"{name}={value}" for name, value in key.items()]
