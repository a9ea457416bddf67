"""Sites as cases: their axes, what a plan makes of them, shapes, tables that rotate, and files of older formats."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import torch

from bench.execute import measure
from bench.model import config, faults
from bench.model.case import MODELS, PLAIN_VOCAB, Case, point_name
from bench.model.config import Axes, ConfigError
from bench.workload import shrunk_rows, sites
from bench.workload.tensors import adapter_ranks, case_seed, make_workload, set_bytes
from profiles.target import parse_point
from tests.support.small_sites import shrink_models

SITE = Case("decode", 4, 1, 16, adapters=3, rank_mix="pairs", op="linear", site="qkv", model="135m")
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_models(monkeypatch)


def planned(**axes: object) -> list[config.PlannedPoint]:
    plan = config.make_plan(config.load(), "smoke", overrides=Axes(**axes), clocks=["graph"])  # type: ignore[arg-type]
    return list(plan.points)


def test_cases_without_a_site_keep_their_keys_and_seeds() -> None:
    expand = Case("decode", 4, 1, 8, op="expand")
    assert "site" not in expand.key and "model" not in expand.key
    assert case_seed(expand, 1) == 456298217869025658
    assert "site=qkv" in SITE.key and "model=135m" in SITE.key
    assert SITE.label == "linear 135m qkv decode 4 r16"
    for case in (expand, SITE):
        assert parse_point(point_name(case, "csgmv_embed-vocab_major", "graph")).case == case


def test_an_expand_of_an_older_file_is_lm_heads() -> None:
    old = {"phase": "decode", "batch_size": 4, "seq_len": 1, "rank": 8, "op": "expand"}
    read = msgspec.convert(old, Case)
    assert read.of_head and read.site == "none" and list(faults.case_faults("points[0]", read)) == []
    assert not msgspec.structs.replace(read, site="o", model="8b").of_head


def test_a_plan_gives_a_site_to_the_ops_that_have_one() -> None:
    found = {point.case for point in planned(op=("head", "expand"), site=("none", "qkv", "o"), model=("1b", "8b"))}
    assert {(case.op, case.site, case.model) for case in found} == {
        ("head", "none", "none"),
        ("expand", "none", "none"),
        *(("expand", site, model) for site in ("qkv", "o") for model in ("1b", "8b")),
    }
    linear = {point.case for point in planned(op=("linear",), site=("qkv",), vocab=(1000, 2000), hidden=(64, 128))}
    assert {(case.vocab, case.hidden) for case in linear} == {(PLAIN_VOCAB, 0)}
    prefill = {point.case for point in planned(op=("expand",), site=("o",), phase=("prefill",), seq_len=(7,))}
    assert {(case.phase, case.seq_len) for case in prefill} == {("prefill", 7)}


@pytest.mark.parametrize("axis", ["site", "model"])
def test_an_op_of_sites_wants_one(axis: str) -> None:
    axes = {"op": ("linear",), "site": ("qkv",), "model": ("8b",), axis: ("none",)}
    with pytest.raises(ConfigError, match=f"op linear needs {axis}, which is none; expected one of"):
        planned(**axes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "none"}, "case.site is none; expected one for op linear"),
        ({"model": "none"}, "case.model is none; expected one for op linear"),
        ({"op": "head"}, "case.site is qkv; expected none for op head"),
        ({"op": "expand", "model": "none"}, "case.site is qkv; expected none for op expand"),
    ],
)
def test_a_record_of_half_a_site_is_refused(changes: dict[str, str], message: str) -> None:
    found = list(faults.case_faults("points[0]", msgspec.structs.replace(SITE, **changes)))
    assert any(message in fault for fault in found)


def test_shapes_of_an_8b_model_and_of_a_rank_of_a_70b_model() -> None:
    def shapes(model: str) -> dict[str, tuple[int, tuple[int, ...]]]:
        cases = [msgspec.structs.replace(SITE, site=site, model=model) for site in ("qkv", "o", "gate_up", "down")]
        return {case.site: (sites.shape_of(case).features, sites.shape_of(case).widths) for case in cases}

    assert shapes("8b") == {
        "qkv": (4096, (4096, 1024, 1024)),
        "o": (4096, (4096,)),
        "gate_up": (4096, (14336, 14336)),
        "down": (14336, (4096,)),
    }
    assert shapes("70b-tp8") == {
        "qkv": (8192, (1024, 128, 128)),
        "o": (1024, (8192,)),
        "gate_up": (8192, (3584, 3584)),
        "down": (3584, (8192,)),
    }
    assert sites.DIMENSIONS.keys() == set(MODELS) - {"none"}


def test_ranks_in_pairs() -> None:
    case = msgspec.structs.replace(SITE, rank=64, adapters=5, base_fraction=0.5)
    assert adapter_ranks(case).tolist() == [64, 16, 64, 16, 64, 0]


def test_packed_rows_have_each_slice_at_the_rank_of_the_slot(small: None) -> None:
    workload = make_workload(SITE, seed=1, index_sets=1, device=CPU)
    rows, ranks = workload.given("shrunk")[0], workload.ranks[workload.token_slots()]
    packed = shrunk_rows.packed(workload, rows)
    for row, there, rank in zip(rows, packed, ranks.tolist(), strict=True):
        assert torch.equal(there[: 3 * rank], torch.cat([row[16 * piece : 16 * piece + rank] for piece in range(3)]))
        assert not there[3 * rank :].any()
    assert len(set(ranks.tolist())) == 2
    assert torch.equal(shrunk_rows.packed(workload, packed, back=True), shrunk_rows.without_rest(workload, rows))


def test_cold_sets_have_tables_of_their_own_until_enough_is_read_in_between(small: None) -> None:
    case = msgspec.structs.replace(SITE, batch_size=3, mix="distinct")

    def different(reuse_bytes: int) -> int:
        workload = make_workload(case, seed=1, index_sets=12, device=CPU, reuse_bytes=reuse_bytes)
        assert workload.used_ranks == 36
        tables = [workload.site_tables(index) for index in range(12)]
        assert all(not torch.equal(*pair) for pair in pairwise(dict.fromkeys(a for a, _ in tables)))
        return len({a.data_ptr() for a, _ in tables})

    used = 36 * (3 * 64 + 96) * 2
    assert [different(reuse) for reuse in (0, 1, used, used + 1, 5 * used, 100 * used)] == [1, 1, 1, 2, 6, 12]


def test_only_a_cold_case_rotates_tables(small: None) -> None:
    bench = measure.Bench(CPU, config.load().measure, 0, l2_bytes=1000)
    cold = msgspec.structs.replace(SITE, cache="cold")
    assert bench.workload(cold, 4).reuse_bytes == measure.COLD_FACTOR * 1000
    assert bench.workload(SITE, 4).reuse_bytes == 0


def test_tables_are_shared_by_the_ops_of_a_site_alone() -> None:
    assert SITE.tables == msgspec.structs.replace(SITE, op="shrink", batch_size=9, cache="cold").tables
    others = ({"site": "o"}, {"model": "8b"}, {"rank": 8}, {"op": "expand", "site": "none", "model": "none"})
    assert all(msgspec.structs.replace(SITE, **other).tables != SITE.tables for other in others)


def test_memory_of_an_index_set(small: None) -> None:
    columns = {"linear": 64 + 48 + 96, "shrink": 64 + 48, "expand": 48 + 96}
    for op, wanted in columns.items():
        assert set_bytes(msgspec.structs.replace(SITE, op=op)) == 4 * (8 + wanted * 2)
