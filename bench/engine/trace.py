"""A Chrome trace of an engine -> where its GPU time went, by site of the model.

A kernel's site follows from its name, and for those that several sites share from its place in the forward pass: a pass
begins with the embedding (where that has adapters), and each shrink and the expands after it belong to the next site of
the model in its order. A pass that does not have as many shrinks as the model has sites is not guessed at: its shared
kernels are `unplaced`. An event that lacks a name, a time or an end is counted, and never computed with.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from bench.model.served import ServedTrace, Site, TracedKernel
from bench.model.serving import LAYER_SITES, Load, Targets

GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
COMPLETE, BEGIN = "X", "B"
Part = Literal["start", "shrink", "expand"]


class TraceError(Exception):
    """A trace from which nothing can be told; the message says why."""


# In this order. None: of the sites in their order; with what it begins or continues.
RULES: tuple[tuple[str, Site | None, Part | None], ...] = (
    (r"embedding_lora_a", "embedding", "start"),
    (r"embedding_lora_kernel|embedding_rows_kernel", "embedding", "start"),
    (r"lm_head_(shrink|expand)_kernel", "lm_head", None),
    (r"_chunked_lora_shrink|_sgemm_lora_a|\blora_shrink_kernel", None, "shrink"),
    (r"_chunked_lora_expand|_sgemm_lora_b|_qkv_lora_b|_gate_up_lora_b|\blora_expand_kernel", None, "expand"),
    (r"norm", "rest", None),  # FlashInfer has norms beside its attention
    (r"_fwd_kernel|_fwd_grouped_kernel|flash|attention|merge_state", "attention", None),
    (r"gemm|nvjet|cutlass|cublas|gemv|splitk|xmma", "base", None),
    (r"^(memcpy|memset)", "copies", None),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), site, part) for pattern, site, part in RULES)
# One call of these is one layer of one pass.
ATTENTION_ONCE = re.compile(r"_fwd_grouped_kernel_stage1|_fwd_kernel_stage1|^_fwd_kernel$")


@dataclass(frozen=True)
class Event:
    """GPU work: its name, and its times on the trace's clock, us."""

    name: str
    start_us: float
    took_us: float


def newest(folder: Path) -> Path:
    """The trace of the first GPU that a profiler wrote below a folder. Raises TraceError."""
    found = sorted([*folder.rglob("*.trace.json.gz"), *folder.rglob("*.trace.json")])
    first = [path for path in found if "TP-0" in path.name] or found
    if not first:
        raise TraceError("the engine's profiler wrote no trace")
    return first[-1]


def attributed(path: Path, load: Load, *, targets: Targets, layers: int) -> ServedTrace:
    """Where the time of a trace went. Raises TraceError for a file that is none, and for one without GPU work."""
    lacking: Counter[str] = Counter()
    events = sorted(_usable(_events(path), lacking), key=lambda event: event.start_us)
    if not events:
        said = ", ".join(f"{count} {what}" for what, count in sorted(lacking.items())) or "nothing else either"
        raise TraceError(f"{path.name}: no kernel has a name, a time and an end; {said}")
    sites = _placed(events, targets, layers, lacking)
    sums: dict[tuple[Site, str], list[float]] = defaultdict(list)
    for event, site in zip(events, sites, strict=True):
        sums[site, event.name].append(event.took_us)
    kernels = [TracedKernel(site, name, len(times), sum(times)) for (site, name), times in sums.items()]
    kernels.sort(key=lambda kernel: -kernel.total_us)
    span = max(event.start_us + event.took_us for event in events) - events[0].start_us
    if span <= 0:
        raise TraceError(f"{path.name}: all kernels begin and end at one time")
    once = sum(kernel.calls for kernel in kernels if ATTENTION_ONCE.search(kernel.name))
    return ServedTrace(load, kernels, span, once / layers if once else None, dict(lacking))


def _events(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise TraceError(f"{path.name}: no Chrome trace: {error}") from error
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise TraceError(f"{path.name}: no Chrome trace: it has no list traceEvents")
    return events


def _usable(events: Sequence[Any], lacking: Counter[str]) -> Iterator[Event]:
    """GPU work with all that a sum needs; what lacks something is counted."""
    for event in events:
        if not isinstance(event, dict):
            lacking["events that are no objects"] += 1
            continue
        if event.get("cat") not in GPU_WORK:
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
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if number else None  # type: ignore[arg-type]  # it is a number


def rule_of(name: str) -> tuple[Site | None, Part | None]:
    """A kernel's site by its name alone; None if its place has to tell."""
    for pattern, site, part in _COMPILED:
        if pattern.search(name):
            return site, part
    return "rest", None


def _placed(events: Sequence[Event], targets: Targets, layers: int, lacking: Counter[str]) -> list[Site]:
    """The site of each event, in the events' order."""
    rules = {name: rule_of(name) for name in {event.name for event in events}}
    own_head = any(site == "lm_head" for site, _ in rules.values())
    names = [*LAYER_SITES[targets] * layers, *(["lm_head"] if targets != "attention" and not own_head else [])]
    order: list[Site] = [*names]  # type: ignore[list-item]  # LAYER_SITES holds sites
    by_embedding = any(part == "start" for _, part in rules.values())
    found: list[Site] = []
    for begin, end in _passes([rules[event.name] for event in events], by_embedding, len(order)):
        placed, whole = _in_pass([rules[event.name] for event in events[begin:end]], order)
        found += placed
        if not whole and "unplaced" in placed:
            lacking["passes that do not have the model's sites"] += 1
    return found


def _passes(rules: Sequence[tuple[Site | None, Part | None]], by_embedding: bool, sites: int) -> list[tuple[int, int]]:
    """Positions of each pass: from an embedding to the next, else as many shrinks as the model has sites."""
    starts, shrinks, before = [0], 0, False
    for place, (_, part) in enumerate(rules):
        begins = part == "start" and not before if by_embedding else part == "shrink" and shrinks == sites
        if begins and place:
            starts.append(place)
            shrinks = 0
        shrinks += part == "shrink"
        before = part == "start"
    return list(zip(starts, [*starts[1:], len(rules)], strict=True))


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
