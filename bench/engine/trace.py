"""Attributes the GPU time in an engine's Chrome trace to the sites of the model.

A kernel's site follows from its name. If several sites share a kernel, its site follows from its place in the forward
pass: a pass begins with the embedding (if that has adapters), and each shrink, with the expands after it, belongs to
the next site in the model's order. A pass with fewer or more shrinks than the model has sites is not guessed at: its
shared kernels are `unplaced`. A name that no rule knows is `rest`, and is recorded by its name. The attention kernels
tell whether a pass is a decode or a prefill. An event that lacks a name, a time or an end is counted, but never enters
a sum.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.model.served import Phase, ServedTrace, ServeResults, Site, TracedKernel, TracedPass
from bench.model.serving import LAYER_SITES, Load, Targets

GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
COMPLETE, BEGIN = "X", "B"
LARGEST = 1e18  # us: more is no time
NOT_THE_MODELS = "passes that do not have the model's sites"
Part = Literal["start", "shrink", "expand"]


class TraceError(Exception):
    """A trace that tells nothing; the message says why."""


# In this order. None: of the sites in their order; with what it begins or continues.
RULES: tuple[tuple[str, Site | None, Part | None], ...] = (
    (r"embedding_lora_a", "embedding", "start"),
    (r"embedding_lora_kernel|embedding_rows_kernel", "embedding", "start"),
    (r"_chunked_lora_shrink|_sgemm_lora_a|\blora_shrink_kernel", None, "shrink"),
    (r"\blora_shrink_sum_kernel", None, "expand"),  # parts of a shrink, summed: what follows it
    (r"_chunked_lora_expand|_sgemm_lora_b|_qkv_lora_b|_gate_up_lora_b|\blora_expand_kernel", None, "expand"),
    # FlashInfer has norms beside its attention; what attention reads is prepared between two passes.
    (r"norm|kv_indices|kv_splits", "rest", None),
    (r"_fwd_kernel|_fwd_grouped_kernel|flash|attention|merge_state", "attention", None),
    (r"gemm|nvjet|cutlass|cublas|gemv|splitk|xmma", "base", None),
    (r"^(memcpy|memset)", "copies", None),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), site, part) for pattern, site, part in RULES)
# One call of these is one layer of one pass.
ATTENTION_ONCE: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    ("decode", re.compile(r"_fwd_grouped_kernel_stage1|_fwd_kernel_stage1")),
    ("prefill", re.compile(r"^_fwd_kernel$")),
)


@dataclass(frozen=True)
class Pass:
    """A forward pass: its events with their sites, and its phase if the attention tells it."""

    events: Sequence[Event]
    sites: Sequence[Site]
    phase: Phase | None

    @property
    def took_us(self) -> float:
        return sum(event.took_us for event in self.events)


@dataclass(frozen=True)
class Event:
    """A piece of GPU work: its name, and its times on the trace's clock in us."""

    name: str
    start_us: float
    took_us: float


def newest(folder: Path) -> Path:
    """The first GPU's trace that a profiler wrote below a folder. Raises TraceError."""
    found = sorted([*folder.rglob("*.trace.json.gz"), *folder.rglob("*.trace.json")])
    first = [path for path in found if "TP-0" in path.name] or found
    if not first:
        raise TraceError("the engine's profiler wrote no trace")
    return first[-1]


def attributed(
    path: Path, load: Load, *, targets: Targets, layers: int, least_bytes: Mapping[Site, int] | None = None
) -> ServedTrace:
    """Where the time of a trace went. Raises TraceError if the file is not a trace or has no GPU work."""
    lacking: Counter[str] = Counter()
    events = sorted(_usable(_events(path), lacking), key=lambda event: event.start_us)
    if not events:
        said = ", ".join(f"{count} {what}" for what, count in sorted(lacking.items())) or "nothing else either"
        raise TraceError(f"{path.name}: no kernel has a name, a time and an end; {said}")
    span = max(event.start_us + event.took_us for event in events) - events[0].start_us
    if span <= 0:
        raise TraceError(f"{path.name}: all kernels begin and end at the same time")
    passes = _placed(events, targets, layers, lacking)
    once = sum(attends(event.name) is not None for event in events)
    phases: Counter[Phase] = Counter()
    for one in passes:
        for event in one.events:
            if one.phase is not None and attends(event.name) == one.phase:
                phases[one.phase] += 1
    return ServedTrace(
        load,
        _sums(passes),
        span,
        once / layers if once else None,
        {what: count for what, count in lacking.items() if count},
        {phase: count / layers for phase, count in phases.items()},
        _example(passes, load),
        dict(least_bytes or {}),
        layers,
    )


def anew(results: ServeResults) -> ServeResults:
    """The record, with every trace attributed by today's rules."""
    targets = results.setup.targets
    processes = [
        msgspec.structs.replace(process, traces=[placed_anew(trace, targets) for trace in process.traces])
        for process in results.processes
    ]
    return msgspec.structs.replace(results, processes=processes)


def placed_anew(trace: ServedTrace, targets: Targets) -> ServedTrace:
    """A recorded trace, with its unplaced kernels attributed as today's rules attribute those of its example.

    A kernel of that name in a pass of the example's phase is divided among the sites as the example's calls and times
    are. The trace is returned unchanged if the example cannot be attributed either.
    """
    example = trace.example
    if example is None or trace.layers is None or all(kernel.site != "unplaced" for kernel in trace.kernels):
        return trace
    starts = accumulate(example.took_us, initial=0.0)
    taken = zip(example.sequence, starts, example.took_us, strict=False)
    events = [Event(example.names[place], start, took) for place, start, took in taken]
    lacking: Counter[str] = Counter()
    placed = _sums(_placed(events, targets, trace.layers, lacking))
    if lacking:
        return trace
    kernels = []
    for kernel in trace.kernels:
        # The embedding's own were placed without the order of the sites.
        same = [one for one in placed if one.name == kernel.name and one.site != "embedding"]
        if kernel.site != "unplaced" or kernel.phase != example.phase or not same:
            kernels.append(kernel)
            continue
        calls, total = sum(one.calls for one in same), sum(one.total_us for one in same)
        for one in same:
            count = max(1, round(kernel.calls * one.calls / calls))
            took = kernel.total_us * one.total_us / total
            kernels.append(TracedKernel(one.site, kernel.name, count, took, kernel.phase))
    unplaced = any(kernel.site == "unplaced" for kernel in kernels)
    left = trace.lacking if unplaced else {what: n for what, n in trace.lacking.items() if what != NOT_THE_MODELS}
    return msgspec.structs.replace(trace, kernels=kernels, lacking=left)


def _sums(passes: Sequence[Pass]) -> list[TracedKernel]:
    """Of each kernel at each site in each phase, the one that took longest first."""
    sums: dict[tuple[Site, Phase | None, str], list[float]] = defaultdict(list)
    for one in passes:
        for event, site in zip(one.events, one.sites, strict=True):
            sums[site, one.phase, event.name].append(event.took_us)
    kernels = [TracedKernel(site, name, len(times), sum(times), phase) for (site, phase, name), times in sums.items()]
    return sorted(kernels, key=lambda kernel: -kernel.total_us)


def _example(passes: Sequence[Pass], load: Load) -> TracedPass | None:
    """The pass of the load's phase whose kernels take the median time, kernel by kernel."""
    own = sorted((one for one in passes if one.phase == load.kind), key=lambda one: one.took_us)
    if not own:
        return None
    chosen = own[len(own) // 2]
    names = list(dict.fromkeys(event.name for event in chosen.events))
    places = {name: place for place, name in enumerate(names)}
    sequence = [places[event.name] for event in chosen.events]
    return TracedPass(chosen.phase, names, sequence, [event.took_us for event in chosen.events])


@cache
def attends(name: str) -> Phase | None:
    """The phase of a pass that has this kernel; None for a kernel that is not called once for each layer."""
    return next((phase for phase, pattern in ATTENTION_ONCE if pattern.search(name)), None)


def _events(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise TraceError(f"{path.name}: not a Chrome trace: {error}") from error
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise TraceError(f"{path.name}: not a Chrome trace: it has no list traceEvents")
    return events


def _usable(events: Sequence[Any], lacking: Counter[str]) -> Iterator[Event]:
    """GPU work with all that a sum needs; what lacks something is counted."""
    for event in events:
        if not isinstance(event, dict):
            lacking["events that are no objects"] += 1
            continue
        if not isinstance(event.get("cat"), str):
            lacking["without a category"] += event.get("ph") in (COMPLETE, BEGIN, None)  # metadata have none by right
            continue
        if event["cat"] not in GPU_WORK:
            continue
        name, start, took = event.get("name"), event.get("ts"), event.get("dur")
        if event.get("ph") == BEGIN or (event.get("ph") == COMPLETE and took is None):
            lacking["without an end"] += 1
        elif event.get("ph") != COMPLETE:
            lacking["of an unknown phase"] += 1
        elif not isinstance(name, str) or not name.strip():
            lacking["without a name"] += 1
        elif (start_us := _time(start)) is None:
            lacking["without a start"] += 1
        elif (took_us := _time(took)) is None or took_us < 0:
            lacking["with a duration that is none"] += 1
        else:
            yield Event(" ".join(name.split())[:200], start_us, took_us)


def _time(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if number else None  # type: ignore[arg-type]  # it is a number


def rule_of(name: str) -> tuple[Site | None, Part | None]:
    """A kernel's site by its name only; None if its place has to tell."""
    for pattern, site, part in _COMPILED:
        if pattern.search(name):
            return site, part
    return "rest", None


def _placed(events: Sequence[Event], targets: Targets, layers: int, lacking: Counter[str]) -> list[Pass]:
    """The passes of a trace, each event in its place."""
    rules = {name: rule_of(name) for name in {event.name for event in events}}
    names = [*LAYER_SITES[targets] * layers, *(["lm_head"] if targets != "attention" else [])]
    order: list[Site] = [*names]  # type: ignore[list-item]  # LAYER_SITES holds sites
    parts = [rules[event.name] for event in events]
    found = []
    for begin, end in _passes(events, parts, len(order), layers):
        sites, whole = _in_pass(parts[begin:end], order)
        if not whole and "unplaced" in sites:
            lacking[NOT_THE_MODELS] += 1
        inside = events[begin:end]
        met = Counter(phase for event in inside if (phase := attends(event.name)) is not None)
        phase = next(iter(met)) if len(met) == 1 else None
        found.append(Pass(inside, sites, phase))
    return found


def _passes(
    events: Sequence[Event], rules: Sequence[tuple[Site | None, Part | None]], sites: int, layers: int
) -> list[tuple[int, int]]:
    """Positions of each pass: from an embedding to the next; else as many shrinks as the model has sites; else, where
    nothing is adapted, as many attentions as it has layers."""
    parts = {part for _, part in rules}
    if "start" in parts:
        starts = _embedding_starts(rules)
    elif "shrink" in parts and sites:
        starts = _every([part == "shrink" for _, part in rules], sites)
    else:
        starts = _widest_gaps(events, layers)
    return list(zip([0, *starts], [*starts, len(rules)], strict=True))


def _embedding_starts(rules: Sequence[tuple[Site | None, Part | None]]) -> list[int]:
    """Where an embedding begins, the first event's place aside."""
    began = [part == "start" for _, part in rules]
    return [place for place in range(1, len(began)) if began[place] and not began[place - 1]]


def _every(wanted: Sequence[bool], count: int) -> list[int]:
    """Where each `count` of what is wanted is full, and another comes."""
    places = [place for place, is_one in enumerate(wanted) if is_one]
    return places[count::count]


def _widest_gaps(events: Sequence[Event], layers: int) -> list[int]:
    """Between the last attention of a pass and the first of the next, where the GPU waits longest: for the host."""
    attended = [place for place, event in enumerate(events) if attends(event.name) is not None]
    found = []
    for last, first in zip(attended[layers - 1 :: layers], attended[layers::layers], strict=False):
        ends = [event.start_us + event.took_us for event in events[last:first]]
        gaps = [events[last + 1 + place].start_us - end for place, end in enumerate(ends)]
        found.append(last + 1 + gaps.index(max(gaps)))
    return found


def _in_pass(rules: Sequence[tuple[Site | None, Part | None]], order: Sequence[Site]) -> tuple[list[Site], bool]:
    """The sites of a pass's events, and whether they are the model's: a shrink each, attention after qkv alone."""
    shrinks = sum(part == "shrink" for _, part in rules)
    attended = [False] * shrinks
    at = -1
    for site, part in rules:
        at += part == "shrink"
        if site == "attention" and at >= 0:
            attended[at] = True
    whole = shrinks == len(order) and (not any(attended) or attended == [site == "qkv" for site in order])
    found: list[Site] = []
    at = -1
    for site, part in rules:
        at += part == "shrink"
        if site is not None:
            found.append(site)
        elif at < 0:  # the B of the embedding, before any other site
            found.append("embedding" if rules[0][1] == "start" else "unplaced")
        else:
            found.append(order[at] if whole else "unplaced")
    return found, whole
