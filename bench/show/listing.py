"""What a sweep would measure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bench.model.config import Plan


def listing(plan: Plan, profiles: list[str]) -> RenderableType:
    """Cases by key, contenders, clocks and the number of points."""
    cases = list(dict.fromkeys(point.case for point in plan.points))
    contenders = list(dict.fromkeys(point.contender for point in plan.points))
    clocks = list(dict.fromkeys(point.clock for point in plan.points))
    lines = [
        f"profile {plan.profile} (of {', '.join(profiles)}): {len(plan.points)} points",
        f"clocks: {', '.join(clocks)}",
        "contenders:",
        *(f"  {name}" for name in contenders),
        f"cases ({len(cases)}):",
        *(f"  {case.key}" for case in cases),
    ]
    return Group(*(Text(line, no_wrap=True) for line in lines))
