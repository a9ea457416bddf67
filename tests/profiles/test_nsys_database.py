"""nsys' SQLite put back together: which range launched a kernel, and which captured it."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from profiles import nsys_database, workflow
from profiles.capture import CaptureFailed
from tests.support import nsys_schema

DATA = Path(__file__).parent / "data"


@pytest.fixture
def database(tmp_path):
    return nsys_schema.build(tmp_path / "capture.sqlite")


def rows(database):
    found = nsys_database.attribute(database)
    return {tuple(row.path): row for row in found.ranges}, found.unattributed


def test_kernels_belong_to_the_innermost_range_of_their_launch(database):
    by_path, unattributed = rows(database)
    assert set(by_path) == {("A", "sample"), ("B", "sample")}, "no range of another domain, none that launched nothing"
    sample = by_path["A", "sample"]
    assert (sample.graph, sample.eager, sample.instances) == (4, 1, 1)
    assert (by_path["B", "sample"].graph, by_path["B", "sample"].eager) == (0, 1), "threads are kept apart"
    assert unattributed == 2, "one launched outside every range, one of another process"


def test_busy_time_counts_an_overlap_once_and_gaps_are_the_holes(database):
    sample = rows(database)[0]["A", "sample"]
    assert sample.busy_us == pytest.approx(0.4 + 0.5 + 1.0 + 0.1)
    assert sample.gap_us == pytest.approx((7100 - 3000) / 1000 - sample.busy_us)


def test_a_gap_is_within_an_entry_of_a_range(database):
    """Of a range that is entered again and again, what runs between two entries is none of its gaps."""
    before = rows(database)[0]["A", "sample"]
    change(
        database,
        "INSERT INTO NVTX_EVENTS SELECT start + 100000, end + 100000, eventType, rangeId, text, globalTid, "
        "endGlobalTid, textId, domainId FROM NVTX_EVENTS WHERE eventType != 75",
        "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME SELECT start + 100000, end + 100000, globalTid, correlationId + 1000, "
        "nameId FROM CUPTI_ACTIVITY_KIND_RUNTIME",
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL SELECT start + 100000, end + 100000, deviceId, streamId, "
        "correlationId + 1000, globalPid, shortName, graphNodeId FROM CUPTI_ACTIVITY_KIND_KERNEL",
    )
    twice = rows(database)[0]["A", "sample"]
    assert (twice.instances, twice.eager, twice.graph) == (2, 2 * before.eager, 2 * before.graph)
    assert twice.gap_us == pytest.approx(2 * before.gap_us) and twice.busy_us == pytest.approx(2 * before.busy_us)


def test_a_servers_capture_from_a_gpu(tmp_path):
    """Of `bench profile server -m plugin-eager` on an H200, nsys 2023.4.4: eight passes of decode and one of prefill.

    The model has 16 layers, and each pass one embedding layer and one lm_head.
    """
    database = tmp_path / "server.sqlite"
    database.write_bytes(gzip.decompress((DATA / "h200-server.sqlite.gz").read_bytes()))
    assert nsys_database.is_of_a_server(database)
    found = nsys_database.attribute(database, domain=None)
    by_name = {row.path[-1].removeprefix("csgmv_embed."): row for row in found.ranges}
    entered = {"qkv": 144, "gate_up": 144, "row": 288, "row_forward": 288, "layer": 9, "lm_head": 9, "prepare": 2}
    assert {name: row.instances for name, row in by_name.items()} == entered
    assert by_name["qkv"].eager == 2 * 144, "a shrink and an expand"
    assert all(row.gap_us < row.instances * 50 for row in found.ranges), "within an entry: no gap of a whole pass"
    calls = {kernel.kernel: kernel.calls for kernel in found.kernels}
    assert calls["lora_shrink_kernel"] == calls["lora_expand_kernel"] == 9 * (4 * 16 + 1)


def test_graph_kernels_name_the_range_that_captured_them_through_copies_of_copies(database):
    sample = rows(database)[0]["A", "sample"]
    assert sample.origins == {"A / warmup": 4}


def test_nodes_made_before_the_capture_have_no_known_origin(database):
    change(database, "DELETE FROM CUDA_GRAPH_NODE_EVENTS WHERE originalGraphNodeId IS NULL")
    assert rows(database)[0]["A", "sample"].origins == {"unknown": 4}
    change(database, "DROP TABLE CUDA_GRAPH_NODE_EVENTS")
    assert rows(database)[0]["A", "sample"].origins == {"unknown": 4}


def test_nodes_that_copy_each_other_do_not_hang(database):
    change(database, "UPDATE CUDA_GRAPH_NODE_EVENTS SET originalGraphNodeId = 21 WHERE graphNodeId = 11")
    assert rows(database)[0]["A", "sample"].origins == {"A / warmup": 2, "unknown": 2}


def test_whole_graphs_are_told_from_kernels(database):
    change(
        database,
        "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start, end, correlationId, globalPid)",
        f"INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (3000, 4000, 100, {nsys_schema.PROCESS})",
        "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL",
    )
    by_path, _ = rows(database)
    assert (by_path["A", "sample"].whole_graphs, by_path["A", "sample"].graph, by_path["A", "sample"].eager) == (
        1,
        0,
        0,
    )


def test_copies_and_fills_count_as_gpu_work(database):
    change(
        database,
        "CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start, end, correlationId, globalPid, graphNodeId)",
        f"INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES (2900, 2950, 102, {nsys_schema.PROCESS}, NULL)",
    )
    assert rows(database)[0]["A", "sample"].eager == 2


def test_an_older_schema_without_node_ids_still_gives_eager_kernels(database):
    change(
        database,
        "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN graphNodeId",
        "DROP TABLE ENUM_NSYS_EVENT_TYPE",
    )
    sample = rows(database)[0]["A", "sample"]
    assert (sample.eager, sample.graph) == (5, 0)


def test_ranges_of_the_domain_are_counted(database, tmp_path):
    assert nsys_database.count_ranges(database) == 5
    assert nsys_database.count_ranges(nsys_schema.build(tmp_path / "other.sqlite", domain="another")) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL"], "no GPU work"),
        (["DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL"], "no GPU work"),
        (["DELETE FROM NVTX_EVENTS"], "no NVTX range of the domain csgmv_bench"),
        (["DROP TABLE NVTX_EVENTS"], "no NVTX range of the domain csgmv_bench"),
        (["DROP TABLE StringIds"], "no table StringIds"),
    ],
)
def test_an_empty_capture_says_what_it_lacks(database, changes, said):
    change(database, *changes)
    with pytest.raises(CaptureFailed, match=said):
        nsys_database.attribute(database)


def test_what_is_no_database_is_named(tmp_path):
    file = tmp_path / "report.sqlite"
    with pytest.raises(CaptureFailed, match="does not exist"):
        nsys_database.attribute(file)
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(CaptureFailed, match="not an SQLite file"):
        nsys_database.attribute(file)


def change(database, *statements):
    connection = sqlite3.connect(database)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def of_a_server(database):
    """Ranges of the default domain, one of which a hook of the plugin has."""
    change(
        database,
        "UPDATE NVTX_EVENTS SET domainId = 0 WHERE domainId = 1 AND eventType != 75",
        "UPDATE NVTX_EVENTS SET text = 'csgmv_embed.qkv' WHERE text = 'B'",
    )
    return database


def test_a_servers_ranges_are_of_no_domain(database):
    assert not nsys_database.is_of_a_server(database) and nsys_database.is_of_a_server(of_a_server(database))
    found = nsys_database.attribute(database, None)
    assert {tuple(row.path) for row in found.ranges} == {("A", "sample"), ("csgmv_embed.qkv", "sample")}
    assert workflow.read_database(database).ranges == found.ranges, "it is told from a capture of our own"
    change(database, "DELETE FROM NVTX_EVENTS")
    bare = nsys_database.attribute(database, None)
    assert bare.ranges == [] and bare.unattributed == 8, "a server without the plugin has none"


def test_kernels_are_summed_by_name_and_what_has_none_is_counted(database):
    change(
        database,
        "INSERT INTO StringIds VALUES (50, 'lora_shrink_kernel')",
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET shortName = 50 WHERE graphNodeId = 21",
    )
    found = nsys_database.attribute(database)
    assert [(item.kernel, item.calls, item.total_us) for item in found.kernels] == [
        ("lora_shrink_kernel", 2, pytest.approx(0.8))
    ]
    assert found.lacking["kernels without a name, which are in no row by name"] == 6
