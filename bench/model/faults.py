"""What makes a record sound beyond the type of each field: how fields must fit together. Pure.

Each `..._faults` yields sentences that name a place and what was expected there. A sound record has none. The types
hold the bounds of single fields (bench/model/fields.py). The reader (bench/model/store.py) checks both.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from bench.model.case import Case
from bench.model.records import Point, Results, Round, Work, WorkCounts
from bench.model.text import control_character, one_line

_MIX = re.compile(r"one|uniform|distinct|zipf:[0-9]{1,6}(\.[0-9]{1,6})?")
_LARGEST_AXIS = 2**40


# --- any document --------------------------------------------------------------------------------------------------


def text_faults(document: Any) -> Iterator[str]:
    """Control characters in any text of a decoded document, including names of fields.

    They could move a terminal's cursor, begin a line of a log, or leave a folder.
    """
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            if found := control_character(value):
                yield f"{named(document, place)} has the control character U+{ord(found):04X}; expected plain text"
        elif isinstance(value, Mapping):
            waiting += [(f"{place}.{one_line(key)}", item) for key, item in value.items()]
            waiting += [(f"{place}.{one_line(key)} (its name)", key) for key in value if control_character(key)]
        elif isinstance(value, Sequence):
            waiting += [(f"{place}[{index}]", item) for index, item in enumerate(value)]


def named_place(data: bytes, message: str) -> str:
    """An addition to a decoder's `... - at `$.points[3].wall_s``: the point's name and the value found, if any."""
    where = re.search(r"- at `\$(.*)`", message)
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if where is None:
        return ""
    found = _at(document, where[1])
    shown = f"; found {found!r}" if isinstance(found, int | float | str) else ""
    point = _point_name(document, where[1])
    return one_line(shown[:80] + (f", of {point}" if point else ""))


def named(document: Any, place: str) -> str:
    """A place, with the name of its point for people to read."""
    point = _point_name(document, place)
    return place.removeprefix(".") + (f" ({point})" if point else "")


def _point_name(document: Any, place: str) -> str | None:
    inside = re.match(r".*?\.points\[\d+\]", place)
    point = _at(document, inside[0]) if inside else None
    if not isinstance(point, Mapping):
        return None
    case = point.get("case")
    terms = [f"{name}={value}" for name, value in case.items()] if isinstance(case, Mapping) else []
    parts = [str(point.get("contender")), str(point.get("clock")), " ".join(sorted(terms))]
    return one_line(", ".join(part for part in parts if part))[:300]


def _at(document: Any, place: str) -> Any:
    """The value at `.points[3].wall_s`; None where there is none, or where the place has a `[...]`."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", place):
        try:
            document = document[name] if name else document[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return document


def twice(what: str, places: Iterable[tuple[str, Hashable]]) -> Iterator[str]:
    """A fault for each place whose value occurred before."""
    seen: dict[Hashable, str] = {}
    for place, value in places:
        if value in seen:
            yield f"{place} is {what} of {seen[value]} again; expected each once"
        seen.setdefault(value, place)


def name_of(case: Case, contender: str, clock: str) -> str:
    """A point's name in a fault."""
    return f"{contender}, {clock}, {' '.join(case.terms)}"


def case_faults(place: str, case: Case) -> Iterator[str]:
    """Faults of a case: values that no grid can plan."""
    for name in ("batch_size", "seq_len", "rank", "adapters", "vocab"):
        if not 1 <= getattr(case, name) <= _LARGEST_AXIS:
            yield f"{place}.case.{name} is {getattr(case, name)}; expected 1 or more"
    if not 0 <= case.hidden <= _LARGEST_AXIS:
        yield f"{place}.case.hidden is {case.hidden}; expected 0 or more"
    sited = case.op in ("shrink", "linear") or (case.op == "expand" and "none" not in (case.site, case.model))
    for name in ("site", "model"):
        if (getattr(case, name) != "none") != sited:
            wanted = "one" if sited else "none"
            yield f"{place}.case.{name} is {getattr(case, name)}; expected {wanted} for op {case.op}"
    if not 0 <= case.skew <= 1e9:
        yield f"{place}.case.skew is {case.skew}; expected 0 or more"
    if not 0 <= case.base_fraction <= 1:
        yield f"{place}.case.base_fraction is {case.base_fraction}; expected 0 to 1"
    if not _MIX.fullmatch(case.mix):
        yield f"{place}.case.mix is {case.mix!r}; expected one, uniform, distinct or zipf:EXPONENT"


# --- results -------------------------------------------------------------------------------------------------------


def results_faults(results: Results, place: str = "") -> Iterator[str]:
    """Faults of a whole results file. `place` is where it lies in its document."""
    code = results.code
    if code.short is not None and code.sha is not None and not code.sha.startswith(code.short):
        yield f"{place}code.short is {code.short}, which does not begin code.sha {code.sha}; expected its first digits"
    names = [(f"{place}anchors[{index}]", (anchor.name, anchor.gpu)) for index, anchor in enumerate(results.anchors)]
    yield from twice("the name and GPU", names)
    yield from _gpu_faults(results, place)
    keys = []
    for index, point in enumerate(results.points):
        where = f"{place}points[{index}] ({name_of(*point.key)})"
        keys.append((where, point.key))
        yield from point_faults(where, point)
    yield from twice("the case, contender and clock", keys)


def _gpu_faults(results: Results, place: str) -> Iterator[str]:
    """A point is of a GPU that is listed, and all points of a case and clock are of one: their ratios are."""
    last = f"expected one of the {len(results.gpus)} that are listed"
    for index, anchor in enumerate(results.anchors):
        if anchor.gpu is not None and anchor.gpu >= len(results.gpus):
            yield f"{place}anchors[{index}].gpu is {anchor.gpu}; {last}"
    of_case: dict[Case, int] = {}
    for index, point in enumerate(results.points):
        if point.gpu is None:
            continue
        if point.gpu >= len(results.gpus):
            yield f"{place}points[{index}].gpu is {point.gpu}; {last}"
        if point.status == "ok" and of_case.setdefault(point.case, point.gpu) != point.gpu:
            where = f"{place}points[{index}] ({name_of(*point.key)})"
            yield f"{where}.gpu is {point.gpu}; expected {of_case[point.case]}, which other points of the case ran on"


def point_faults(place: str, point: Point) -> Iterator[str]:
    """Faults of one point: everything that its status promises must be there."""
    yield from case_faults(place, point.case)
    if point.status != "ok" and not point.reason:
        yield f"{place}.reason is missing; expected why it is {point.status}"
    if point.status == "ok":
        if point.reason:
            yield f"{place}.reason is {point.reason!r}; expected none, for its status is ok"
        if point.check is None or not point.check.passed:
            yield f"{place}.check is {'missing' if point.check is None else 'not passed'}; expected one that passed"
        if point.clock == "work" and point.work is None:
            yield f"{place}.work is missing; expected counts, for its status is ok"
        if point.clock != "work" and not point.rounds:
            yield f"{place}.rounds is empty; expected at least one, for its status is ok"
    if point.check is not None and point.check.passed and not _within(point.check.max_error, point.check.tolerance):
        yield f"{place}.check.max_error is {point.check.max_error}; expected at most its tolerance, for it passed"
    if point.clock == "work" and point.rounds:
        yield f"{place}.rounds is not empty; expected none, for the work clock takes no times"
    if point.clock != "work" and point.work is not None:
        yield f"{place}.work is there; expected none, for only the work clock counts"
    yield from _round_faults(place, point.rounds)
    if point.work is not None:
        yield from work_faults(f"{place}.work", point.work)


def _within(error: float | None, tolerance: float) -> bool:
    return error is not None and error <= tolerance


def _round_faults(place: str, rounds: Sequence[Round]) -> Iterator[str]:
    keys = [(f"{place}.rounds[{index}]", (item.process, item.layout_seed)) for index, item in enumerate(rounds)]
    yield from twice("the process and layout", keys)


def work_faults(place: str, work: Work) -> Iterator[str]:
    """Faults of the work clock's record."""
    yield from counts_faults(f"{place}.counts", work.counts)
    if len(work.compiled) > work.counts.launches:
        yield f"{place}.compiled has {len(work.compiled)} kernels of {work.counts.launches} launches; expected no more"
    yield from twice(
        "the figures", [(f"{place}.compiled[{index}]", kernel) for index, kernel in enumerate(work.compiled)]
    )
    if work.launches:  # since 1.2.0
        yield from _launch_faults(place, work)


def _launch_faults(place: str, work: Work) -> Iterator[str]:
    """The list of launches and their sums are one thing said twice."""
    if len(work.launches) != work.counts.launches:
        yield f"{place}.launches has {len(work.launches)} items; expected counts.launches, {work.counts.launches}"
    for name in ("programs", "active_programs"):
        total = sum(getattr(launch, name) for launch in work.launches)
        if total != getattr(work.counts, name):
            yield f"{place}.counts.{name} is {getattr(work.counts, name)}; expected {total}, the sum over its launches"
    for index, launch in enumerate(work.launches):
        if launch.active_programs > launch.programs:
            yield f"{place}.launches[{index}].active_programs is over its programs, {launch.programs}; expected no more"
        if launch.compiled is not None and launch.compiled >= len(work.compiled):
            known = f"{place}.compiled, which has {len(work.compiled)}"
            yield f"{place}.launches[{index}].compiled is {launch.compiled}; expected a position in {known}"


def counts_faults(place: str, counts: WorkCounts) -> Iterator[str]:
    """Counts that no launch can have. Each follows from what the figures mean."""
    if counts.programs < counts.launches:
        yield f"{place}.programs is {counts.programs}, of {counts.launches} launches; expected at least one each"
    if counts.active_programs > counts.programs:
        yield f"{place}.active_programs is {counts.active_programs} of {counts.programs}; expected no more"
    for what in ("load", "store"):
        touched, sectors = getattr(counts, f"{what}_bytes"), getattr(counts, f"{what}_sectors")
        if sectors > touched or (touched > 0) != (sectors > 0):
            yield f"{place}.{what}_sectors is {sectors} for {touched} bytes; expected 1 to one a byte, 0 for none"
    if (counts.active_programs > 0) != (counts.store_bytes > 0):
        yield (
            f"{place}.active_programs is {counts.active_programs} for {counts.store_bytes} stored bytes; "
            "expected those that store, 0 for none"
        )
    if counts.load_bytes + counts.store_bytes > 0 and counts.busiest_loads + counts.busiest_stores == 0:
        yield f"{place}.busiest_loads and busiest_stores are 0; expected the operations that moved the bytes"
