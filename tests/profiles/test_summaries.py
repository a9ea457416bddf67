"""Counters of a launch, and how far they are from the work clock's counts."""

from __future__ import annotations

import pytest

from bench.model.case import Case
from bench.model.records import WorkCounts
from profiles import ncu
from profiles.records import CountedWork, KernelCounters, NcuBody, UsefulBytes
from profiles.summaries import agreements, counters

CASE = Case("decode", 256, 1, 64)
PEER = "sglang_csgmv-chunk16"
READ, WRITTEN = "lts__t_sectors_srcunit_tex_op_read.sum", "lts__t_sectors_srcunit_tex_op_write.sum"
STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"


def kernel(name: str, cache: str = "cold", contender: str = PEER, clock: str = "graph", **metrics: float):
    return KernelCounters(CASE, contender, clock, cache, name, metrics)  # type: ignore[arg-type]


FILL = kernel("fill", **{READ: 0, WRITTEN: 1024, "launch__grid_size": 16, "launch__registers_per_thread": 8})
LOOKUP = kernel(
    "lookup",
    **{
        READ: 2000,
        WRITTEN: 1024,
        "launch__grid_size": 256,
        "launch__registers_per_thread": 32,
        "lts__t_sectors_srcunit_tex.sum": 4000,
        "lts__t_sectors_srcunit_tex_lookup_hit.sum": 1000,
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": 3200,
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ld_lookup_hit.sum": 800,
        "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum": 100,
        STALLED.format("wait"): 0.5,
        STALLED.format("long_scoreboard"): 9.0,
    },
)
COUNTS = WorkCounts(1, 256, 16, 52, 16, 1, 1, 1600, 1024)


def body(*kernels: KernelCounters, counted: list[CountedWork] | None = None) -> NcuBody:
    return NcuBody(list(kernels), [UsefulBytes(CASE, 32_000, 100)], counted or [])


def test_a_launch_is_the_sum_of_its_kernels_and_the_rest_is_of_the_busiest():
    (row,) = counters(body(FILL, LOOKUP))
    assert (row.kernels, row.programs, row.load_sectors, row.store_sectors) == (2, 272, 2000, 2048)
    assert row.registers == 32
    assert row.overfetch == 32 * 2000 / 32_000
    assert row.sectors_per_request == 32
    assert (row.l1_hit_pct, row.l2_hit_pct) == (25, 25)
    assert row.stalls == (("long_scoreboard", 9.0), ("wait", 0.5)), "the worst first"


def test_caches_clocks_and_contenders_are_rows_of_their_own():
    kernels = [LOOKUP, kernel("lookup", cache="warm"), kernel("lookup", contender="other"), kernel("x", clock="eager")]
    rows = counters(body(*kernels))
    assert [(row.contender, row.clock, row.cache) for row in rows] == [
        (PEER, "graph", "cold"),
        (PEER, "graph", "warm"),
        ("other", "graph", "cold"),
        (PEER, "eager", "cold"),
    ]


def test_a_counter_that_is_missing_is_none_and_never_zero():
    (row,) = counters(body(kernel("lookup")))
    assert (row.load_sectors, row.overfetch, row.sectors_per_request, row.l2_hit_pct, row.registers) == (None,) * 5
    assert row.stalls == ()
    (unknown,) = counters(NcuBody([LOOKUP], []))
    assert unknown.overfetch is None


def test_the_kernel_that_the_work_clock_counts_is_compared_not_torch_s_fill():
    counted = [CountedWork(CASE, PEER, COUNTS), CountedWork(CASE, "nobody", COUNTS)]
    found = {item.what: item for item in agreements(body(FILL, LOOKUP, counted=counted))}
    assert set(found) == {"programs", "sectors read", "sectors written"}
    assert (found["programs"].ratio, found["sectors written"].ratio) == (1, 1)
    assert found["sectors read"].ratio == pytest.approx(2000 / 1600)


def test_warm_and_eager_kernels_are_not_compared():
    kernels = [kernel("lookup", cache="warm", **LOOKUP.metrics), kernel("lookup", clock="eager", **LOOKUP.metrics)]
    assert agreements(body(*kernels, counted=[CountedWork(CASE, PEER, COUNTS)])) == []


def test_every_stall_reason_asked_for_is_read():
    asked = [name for name in ncu.METRICS if "issue_stalled" in name]
    assert len(ncu.stalls(dict.fromkeys(asked, 1.0))) == len(asked) > 5
