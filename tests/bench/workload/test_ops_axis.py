"""The op axis: cases, plans and files of other ops beside the lookup's, which stay what they were."""

from __future__ import annotations

import msgspec
import pytest
import torch

from bench.clocks import graph
from bench.execute import measure
from bench.model import config, store
from bench.model.case import Case, point_name
from bench.model.config import Axes, ConfigError
from bench.model.paths import ROOT
from bench.model.records import Check, Point, worse
from bench.show.tables import errors, kinds
from bench.workload.tensors import case_seed, make_workload, set_bytes
from profiles.target import parse_point

LOOKUP = Case("decode", 8, 1, 16)
HEAD = Case("decode", 4, 1, 8, adapters=2, vocab=97, op="head", hidden=48)
CPU = torch.device("cpu")


def planned(**axes: object) -> config.Plan:
    return config.make_plan(config.load(), "smoke", overrides=Axes(**axes), clocks=["graph"])  # type: ignore[arg-type]


def test_a_lookup_keeps_its_key_its_seed_and_its_name() -> None:
    assert "op=" not in LOOKUP.key and "hidden=" not in LOOKUP.key
    assert case_seed(LOOKUP, 1) == 11300003139214490515
    assert LOOKUP.label == "decode 8 r16"
    layer = msgspec.structs.replace(LOOKUP, op="layer", hidden=4096)
    assert "hidden=4096" in layer.key and "op=layer" in layer.key and case_seed(layer, 1) != case_seed(LOOKUP, 1)
    assert layer.label == "layer decode 8 r16 h4096"


def test_a_case_of_an_older_file_is_a_lookup() -> None:
    old = {"phase": "decode", "batch_size": 8, "seq_len": 1, "rank": 16}
    assert msgspec.convert(old, Case) == LOOKUP


@pytest.mark.parametrize("op", ["lookup", "layer", "head", "expand"])
def test_a_points_name_is_read_back(op: str) -> None:
    case = msgspec.structs.replace(HEAD, op=op, hidden=48 if op in ("layer", "head") else 0)
    assert parse_point(point_name(case, "base", "graph")).case == case


def test_what_a_case_ignores_makes_no_cases() -> None:
    for op, sizes in (("lookup", {0}), ("expand", {0}), ("layer", {64, 128}), ("head", {64, 128})):
        cases = {point.case for point in planned(op=(op,), hidden=(64, 128)).points}
        assert {case.hidden for case in cases} == sizes
    heads = {point.case for point in planned(op=("head",), phase=("prefill", "decode"), seq_len=(7, 9)).points}
    assert {(case.phase, case.seq_len) for case in heads} == {("decode", 1)}


def test_a_contender_is_planned_where_it_has_the_op() -> None:
    found = {(point.case.op, point.contender) for point in planned(op=("lookup", "head")).points}
    assert ("lookup", "csgmv_embed-rank_major") in found and ("head", "csgmv_embed-vocab_major") in found
    assert ("head", "csgmv_embed-rank_major") not in found
    with pytest.raises(ConfigError, match="none of these contenders has the op head"):
        config.make_plan(config.load(), "smoke", overrides=Axes(op=("head",)), contenders=["csgmv_embed-rank_major"])


def test_logits_are_restored_and_moved() -> None:
    workload = make_workload(HEAD, seed=1, index_sets=2, device=CPU)
    before = [logits.clone() for logits in workload.given("logits")]
    assert not torch.equal(*before)
    workload.given("logits")[1].add_(1)
    address = workload.given("logits")[1].data_ptr()
    workload.relayout(5)
    assert workload.given("logits")[1].data_ptr() != address
    assert torch.equal(workload.given("logits")[1], before[1] + 1)
    workload.restore()
    assert all(torch.equal(*pair) for pair in zip(workload.given("logits"), before, strict=True))
    assert torch.equal(workload.unadded(1), before[1])


def test_weights_are_shared_and_of_the_scale_that_keeps_sums_at_one() -> None:
    workload = make_workload(msgspec.structs.replace(HEAD, rank=64, hidden=256), seed=1, index_sets=1, device=CPU)
    other = make_workload(msgspec.structs.replace(workload.case, op="expand"), seed=1, index_sets=1, device=CPU)
    assert workload.case.tables == msgspec.structs.replace(workload.case, op="expand").tables
    other.tables = workload.tables
    assert other.weight("b") is workload.weight("b")
    assert float(workload.weight("b").float().std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(workload.weight("head_a").float().std()) == pytest.approx(1 / 16, rel=0.05)


def test_index_sets_fit_the_memory_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = measure.Bench(CPU, config.load().measure, 0, l2_bytes=1 << 40)
    for cache, most in (("warm", 20), ("cold", 60)):
        case = msgspec.structs.replace(HEAD, cache=cache)
        assert measure.index_sets(bench, case) == most
        monkeypatch.setattr(measure, "SETS_LIMIT_BYTES", 7 * set_bytes(case))
        assert measure.index_sets(bench, case) == 6  # the largest divisor of 60 nodes
        monkeypatch.undo()


def test_a_graph_that_adds_in_place_is_verified_in_a_graph_of_one_launch_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph of 6 nodes adds three times; the one that is compared adds once, on restored logits."""
    from bench import contenders

    contender = contenders.build("torch_gather", "head")
    workload = make_workload(HEAD, seed=1, index_sets=2, device=CPU)
    launch = contender.setup(workload, static=True)

    class Replayed:
        def __init__(self, nodes: int) -> None:
            self.nodes = nodes

        def replay(self) -> None:
            for node in range(self.nodes):
                launch(node % 2)

    def captured(_: object, *, index_sets: int, nodes: int, exact: bool = False) -> graph.CapturedGraph:
        Replayed(nodes).replay()  # a warm-up
        return graph.CapturedGraph(Replayed(nodes), nodes, workload.given("logits")[:index_sets], launch)  # type: ignore[arg-type]

    monkeypatch.setattr(graph, "capture", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timed = captured(launch, index_sets=2, nodes=6)
    assert measure.verify_graph(contender, workload, timed).passed
    contender.in_place = False
    with pytest.raises(measure.NotMeasured):
        measure.verify_graph(contender, workload, timed)


def test_the_check_of_several_rounds_is_the_worst() -> None:
    small, large = (Check("r", error, 1.0, True) for error in (0.1, 0.2))
    assert worse(small, large) is large and worse(large, small) is large
    assert worse(None, small) is small and worse(small, None) is small


def test_the_tables_say_how_often_ours_errs_by_more_than_a_peer() -> None:
    def point(batch_size: int, contender: str, error: float) -> Point:
        case = msgspec.structs.replace(HEAD, batch_size=batch_size)
        return Point(case, contender, "graph", 0, "ok", check=Check("r", error, 0.5, True))

    ours, peer = "csgmv_embed-vocab_major", "sglang_triton"
    points = [point(1, ours, 0.1), point(2, ours, 0.3), point(1, peer, 0.2), point(2, peer, 0.25)]
    shown = str(errors(points))
    assert "head: ours-vocab errs by 0.3 of the largest value\n" in shown
    assert "head: triton errs by 0.25 of the largest value; ours errs by more at 1 of 2 points\n" in shown
    assert kinds([*points, Point(LOOKUP, ours, "graph", 0, "ok")]) == ["decode", "head, decode"]


def test_a_file_of_the_first_format_is_read() -> None:

    results = store.read(ROOT / "docs" / "results" / "h100-prepare.json")
    assert {(point.case.op, point.case.hidden) for point in results.points} == {("lookup", 0)}
