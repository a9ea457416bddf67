"""Labels of cases: what distinguishes a case from those beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.model.case import Case

# Axes that a label leaves out.
UNSAID = ("adapters", "mix", "base_fraction", "rank_mix", "vocab", "dtype")


def case_label(case: Case, cases: Iterable[Case]) -> str:
    """The label, with every axis that differs among these cases of its op and is missing in the label."""
    varied = _usual([other for other in cases if other.op == case.op])
    return " ".join([case.label, *(f"{name}={getattr(case, name)}" for name in varied)])


def row_labels(cases: Sequence[Case], among: Sequence[Case] | None = None) -> list[str]:
    """Labels of rows below a title that names what is `usual` among the cases. They name what differs from that.

    They also name the state of the caches if it is not the same for all.
    """
    among = cases if among is None else among
    values, mixed = _usual(among), len({case.cache for case in among}) > 1
    labels = []
    for case in cases:
        odd = [f"{name}={getattr(case, name)}" for name, value in values.items() if getattr(case, name) != value]
        labels.append(" ".join([case.label, *odd, *([case.cache] if mixed else [])]))
    return labels


def usual(cases: Sequence[Case]) -> str:
    """What a title says for all labels: the values of axes that differ only in some of the cases."""
    said = ", ".join(f"{name}={value}" for name, value in _usual(cases).items())
    return f"; {said} where no other is named" if said else ""


def _usual(cases: Sequence[Case]) -> dict[str, object]:
    """The commonest value of each axis that differs among cases and is not in their labels."""
    counts = {name: Counter(getattr(case, name) for case in cases) for name in UNSAID}
    return {name: count.most_common(1)[0][0] for name, count in counts.items() if len(count) > 1}
