"""A real report of ncu 2025.3.1, from an H100, read end to end without a GPU.

Nine points, cold: a decode step, a prefill of rank 256 and a skewed prefill, by ours and by both of SGLang's kernels.
"""

from __future__ import annotations

import gzip

import pytest

from bench.cli import main as cli
from profiles import ncu, workflow
from profiles.records import KernelCounters, NcuBody
from profiles.summaries import Counters, counters
from profiles.target import parse_point
from tests.support.profiles import DATA

pytest.importorskip("ncu_report")
CONTENDERS = ("csgmv_embed-vocab_major", "sglang_csgmv-chunk16", "sglang_triton")
OURS, CSGMV, TRITON = CONTENDERS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = tmp_path_factory.mktemp("ncu") / "h100-cold.ncu-rep"
    file.write_bytes(gzip.decompress((DATA / "h100-cold.ncu-rep.gz").read_bytes()))
    return file


@pytest.fixture(scope="module")
def kernels(report) -> list[KernelCounters]:
    return ncu.read(report, workflow.cache_of(report))


@pytest.fixture(scope="module")
def rows(kernels) -> dict[tuple[str, str], Counters]:
    points = [parse_point(f"{item.contender}|graph|" + item.case.key.replace(",", "|")) for item in kernels]
    found = counters(NcuBody(kernels, workflow.useful_bytes(points, seed=1)))
    return {(row.case.label, row.contender): row for row in found}


def test_every_kernel_is_told_by_the_range_it_was_launched_in(kernels):
    seen = [(item.case.label, item.contender, item.kernel) for item in kernels]
    assert len(seen) == 3 * (1 + 2 + 2), "SGLang's launchers fill the output first"
    assert {contender for _, contender, _ in seen} == set(CONTENDERS)
    assert [name for _, contender, name in seen if contender == OURS] == ["embedding_lora_a_tokens_kernel"] * 3
    peers = [name for _, contender, name in seen if contender == CSGMV]
    assert peers[1::2] == ["_chunked_embedding_lora_a_kernel"] * 3
    assert {item.clock for item in kernels} == {"graph"} and {item.cache for item in kernels} == {"cold"}


def test_every_metric_that_was_asked_for_came_back(kernels):
    assert all(set(item.metrics) == set(ncu.METRICS) for item in kernels)


def test_sectors_and_over_fetch_tell_the_layouts_apart(rows):
    decode = "decode 256 r64"
    assert rows[decode, OURS].load_sectors == 1120  # 256 rows of 4 sectors, 64 of ids and 32 of words
    assert rows[decode, OURS].overfetch == pytest.approx(1.03, abs=0.01)
    for peer in (CSGMV, TRITON):
        assert rows[decode, peer].overfetch == pytest.approx(15.7, abs=0.3), "a sector for each two-byte element"
        assert rows[decode, peer].store_sectors == 2 * rows[decode, OURS].store_sectors, "zeros, then values"
    assert rows[decode, OURS].sectors_per_request == pytest.approx(3.3, abs=0.05)
    assert rows["prefill 64x72 skew 3.5 r64", TRITON].programs == 4034 * 64 + 288


def test_rates_and_stalls_are_plausible(rows):
    assert rows
    for row in rows.values():
        for share in (row.l1_hit_pct, row.l2_hit_pct, row.dram_pct, row.l2_pct, row.occupancy_pct, row.issue_pct):
            assert share is not None and 0 <= share <= 100
        assert row.registers is not None and 8 <= row.registers <= 64
        assert row.stalls[0][0] == "long_scoreboard", "all of them wait for memory"


def test_the_report_is_shown_without_a_gpu(report, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["profile", "show", str(report)])
    out = capsys.readouterr().out
    assert not end.value.code
    assert out.count("csgmv-chunk16") == 2 * 3 and "long_scoreboard" in out and "15.5" in out


def test_a_report_of_another_program_is_refused(report, monkeypatch):
    monkeypatch.setattr(ncu, "DOMAIN", "another")
    with pytest.raises(Exception, match="has no range of the domain another"):
        ncu.read(report, "cold")
