"""Where the GPU time of each traced load in a file of `bench serve` went, with a floor for each site. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.judge.serving import KINDS
from bench.model.served import SITES, ServedTrace, ServeResults, Site
from bench.model.serving import Load


@dataclass(frozen=True)
class Where:
    """A traced load of a mode: kernel time of a forward pass by site, in us. Without passes, of the whole trace.

    by_site    of passes of the load's own phase, where the trace tells phases apart
    floors     bytes over the bandwidth of a copy, and an empty node a launch, where the record has these
    unknown    kernels that no rule knows, the longest first: name and time
    left_out   kernel time of the other passes of the trace
    prepare    host time of batch preparation a step, which no trace has
    """

    load: Load
    mode: str
    trace: ServedTrace
    by_site: dict[Site, float]
    floors: dict[Site, float] = field(default_factory=dict)
    unknown: list[tuple[str, float]] = field(default_factory=list)
    left_out: float = 0.0
    prepare: float | None = None

    @property
    def passes(self) -> float | None:
        """Passes of the load's own phase, if the trace tells phases apart."""
        return _own_passes(self.trace) or self.trace.passes

    @property
    def per(self) -> str:
        return "pass" if self.passes else "trace"

    @property
    def total_us(self) -> float:
        return sum(self.by_site.values())

    @property
    def between_us(self) -> float | None:
        """Time of a pass in which no kernel ran. None if the passes are of two phases.

        It is below 0 if kernels ran in parallel.
        """
        if len(self.trace.phases) > 1:
            return None
        return self.trace.span_us / (self.trace.passes or 1) - self.total_us - self.left_out


def where(results: ServeResults) -> list[Where]:
    """Every trace, by load and then in the order of the modes."""
    anchors = {anchor.name: anchor.values[0] for anchor in results.anchors}
    found = []
    for process in results.processes:
        for trace in process.traces:
            own = _own_passes(trace)
            per = own or trace.passes or 1
            sums: dict[Site, float] = dict.fromkeys(SITES, 0.0)
            unknown: dict[str, float] = {}
            left_out = 0.0
            for kernel in trace.kernels:
                took = kernel.total_us / per
                if own and kernel.phase != trace.load.kind:
                    left_out += took
                    continue
                sums[kernel.site] += took
                if kernel.site in ("rest", "unplaced"):
                    unknown[kernel.name] = unknown.get(kernel.name, 0.0) + took
            longest = sorted(unknown.items(), key=lambda item: -item[1])
            load = next((item for item in process.loads if item.load == trace.load and item.status == "ok"), None)
            prepare = KINDS["prepare"].of(load) if load is not None else None
            floors = _floors(trace, anchors)
            found.append(Where(trace.load, process.mode, trace, sums, floors, longest, left_out, prepare))
    return sorted(found, key=lambda item: (item.load, results.run.modes.index(item.mode)))


def _own_passes(trace: ServedTrace) -> float | None:
    return next((count for phase, count in trace.phases.items() if phase == trace.load.kind), None)


def _floors(trace: ServedTrace, anchors: dict[str, float]) -> dict[Site, float]:
    """A launch a call of a site at least; four of base products in a block, and lm_head's."""
    bandwidth, node = anchors.get("copy_bandwidth"), anchors.get("empty_kernel_graph")
    if bandwidth is None or node is None or trace.layers is None:
        return {}
    calls: dict[Site, int] = {"embedding": 1, "lm_head": 1, "base": 4 * trace.layers + 1}
    return {site: count / bandwidth + node * calls.get(site, trace.layers) for site, count in trace.least_bytes.items()}
