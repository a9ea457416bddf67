"""Where a trace's time goes: sites by name and by place in a pass; what lacks something is counted, never summed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.engine.trace import NOT_THE_MODELS, TraceError, attributed, newest, placed_anew, rule_of
from bench.model import served
from bench.model.paths import ROOT
from bench.model.served import ServedTrace
from bench.model.serving import Load, Targets

LOAD = Load("decode", 32, 16)
LAYERS = 2
CSGMV = ("_chunked_embedding_lora_a_kernel", "_chunked_lora_shrink_kernel", "_chunked_lora_expand_kernel")
TRITON = ("_embedding_lora_a_kernel", "_sgemm_lora_a_kernel", "_sgemm_lora_b_kernel")
ATTENTION = "_fwd_grouped_kernel_stage1"
NORM = "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(...)"  # of the library of an attention


def csgmv_pass(names: tuple[str, str, str] = CSGMV) -> list[tuple[str, float]]:
    """(name, us) of a forward pass of two layers; each site's shrink takes another time."""
    embedding, shrink, expand = names
    found = [("Memcpy HtoD (Pinned -> Device)", 1.0), (embedding, 2.0), (expand, 3.0)]
    for _ in range(LAYERS):
        found += [(NORM, 0.5), ("nvjet_tst", 9.0), (shrink, 10.0), (expand, 11.0), (ATTENTION, 7.0)]
        found += [("nvjet_tst", 9.0), (shrink, 20.0), (expand, 21.0)]
        found += [("nvjet_tst", 9.0), (shrink, 30.0), (expand, 31.0), ("act_and_mul", 0.5)]
        found += [("nvjet_tst", 9.0), (shrink, 40.0), (expand, 41.0)]
    return [*found, ("nvjet_tst", 9.0), (shrink, 50.0), (expand, 51.0)]


def event(name: Any, start: Any, took: Any, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": took, "args": {"stream": 7}, **more}


def events(*passes: list[tuple[str, float]]) -> list[dict[str, Any]]:
    now, found = 100.0, []
    for name, took in (item for one in passes for item in one):
        kind = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
        found.append(event(name, now, took, cat=kind))
        now += took + 1.0
    return found


def read(folder: Path, found: list[Any], *, targets: Targets = "all", zipped: bool = False) -> ServedTrace:
    path = folder / f"1-TP-0.trace.json{'.gz' * zipped}"
    data = json.dumps({"traceEvents": found}).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return attributed(newest(folder), LOAD, targets=targets, layers=LAYERS)


def by_site(trace: ServedTrace) -> dict[str, float]:
    found: dict[str, float] = {}
    for kernel in trace.kernels:
        found[kernel.site] = found.get(kernel.site, 0.0) + kernel.total_us
    return found


PLACED = {
    "copies": 1.0, "embedding": 5.0, "qkv": 42.0, "o": 82.0, "gate_up": 122.0, "down": 162.0, "lm_head": 101.0,
    "attention": 14.0, "base": 81.0, "rest": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("names", [CSGMV, TRITON])
def test_each_shrink_and_its_expands_belong_to_the_next_site(names: tuple[str, str, str], tmp_path: Path) -> None:
    trace = read(tmp_path, events(csgmv_pass(names), csgmv_pass(names), csgmv_pass(names)), zipped=True)
    assert by_site(trace) == pytest.approx({site: 3 * us for site, us in PLACED.items()})
    assert trace.passes == 3 and trace.lacking == {}
    assert trace.span_us == pytest.approx(sum(us + 1 for _, us in csgmv_pass()) * 3 - 1)
    calls = {(kernel.site, kernel.name): kernel.calls for kernel in trace.kernels}
    assert calls["qkv", names[1]] == 3 * LAYERS and calls["lm_head", names[2]] == 3
    assert calls["embedding", names[2]] == 3


def test_what_is_prepared_for_attention_is_none_of_it(tmp_path: Path) -> None:
    """FlashInfer's indices come behind lm_head: a pass with attention there would not be the model's."""
    one = [*csgmv_pass(), ("create_flashinfer_kv_indices_triton", 1.0), ("get_num_kv_splits_triton", 2.0)]
    trace = read(tmp_path, events(one, one))
    assert by_site(trace) == pytest.approx({site: 2 * us for site, us in (PLACED | {"rest": 5.0}).items()})
    assert trace.lacking == {}


def test_a_record_is_placed_anew_by_its_example(tmp_path: Path) -> None:
    trace = read(tmp_path, events(csgmv_pass(), csgmv_pass(), csgmv_pass()))
    before = by_site(trace)
    shared = [msgspec.structs.replace(kernel) for kernel in trace.kernels]
    for kernel in shared:
        if "_lora_" in kernel.name and kernel.site != "embedding":
            kernel.site = "unplaced"
    lost = msgspec.structs.replace(trace, kernels=shared, lacking={NOT_THE_MODELS: 3, "without an end": 1})
    found = placed_anew(lost, "all")
    assert found.lacking == {"without an end": 1}
    assert by_site(found) == pytest.approx(before)
    assert placed_anew(lost, "attention") is lost, "the example is not placed either"
    assert placed_anew(msgspec.structs.replace(lost, example=None), "all").lacking == lost.lacking


def test_a_part_of_a_pass_is_not_guessed_at(tmp_path: Path) -> None:
    cut = csgmv_pass()[16:]  # the trace began in the middle
    trace = read(tmp_path, events(cut, csgmv_pass(), csgmv_pass()[:11]))
    found = by_site(trace)
    assert found["qkv"] == 42.0 and found["lm_head"] == 101.0, "of the whole pass alone"
    whole = sum(us for name, us in [*cut, *csgmv_pass()[3:11]] if "_lora_" in name)
    assert found["unplaced"] == pytest.approx(whole)
    assert trace.lacking == {"passes that do not have the model's sites": 2}


def test_adapters_on_attention_alone_are_placed_by_their_order(tmp_path: Path) -> None:
    one = []
    for _ in range(LAYERS):
        one += [(CSGMV[1], 10.0), (CSGMV[2], 11.0), (ATTENTION, 7.0), (CSGMV[1], 20.0), (CSGMV[2], 21.0), ("gemm", 5.0)]
    assert by_site(read(tmp_path, events(one, one), targets="attention")) == pytest.approx(
        {"qkv": 84.0, "o": 164.0, "attention": 28.0, "base": 20.0}
    )
    shifted = read(tmp_path, events(one[3:], one, one), targets="attention")
    assert "qkv" not in by_site(shifted), "attention follows what would be o: the places are not those"


def test_what_lacks_something_is_counted_and_never_summed(tmp_path: Path) -> None:
    whole = events(csgmv_pass())
    broken = [
        event("nvjet", 5.0, None),
        {"ph": "B", "cat": "kernel", "name": "nvjet", "ts": 1.0},
        event(None, 5.0, 1e9),
        event("  ", 5.0, 1e9),
        event("nvjet", None, 1e9),
        event("nvjet", "now", 1e9),
        event("nvjet", float("nan"), 1e9),
        event("nvjet", 5.0, -1e9),
        event("nvjet", 5.0, float("inf")),
        event("nvjet", True, 1e9),
        "no event",
        event("cudaLaunchKernel", 5.0, 1e9, cat="cuda_runtime"),  # no GPU work: not asked for
    ]
    trace = read(tmp_path, [*broken, *whole])
    assert by_site(trace) == pytest.approx(PLACED) and trace.span_us < 1000
    assert trace.lacking == {
        "without an end": 2,
        "without a name": 2,
        "without a start": 4,
        "with a duration that is none": 2,
        "events that are no objects": 1,
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not a Chrome trace"),
        (b"\x1f\x8bnothing", "not a Chrome trace"),
        (b'{"traceEvents": 7}', "has no list traceEvents"),
        (b'{"traceEvents": []}', "no kernel has a name, a time and an end; nothing else either"),
        (json.dumps([event("nvjet", 1.0, None)]).encode(), "1 without an end"),
        (json.dumps([event("nvjet", 1.0, 0.0)]).encode(), "begin and end at the same time"),
    ],
)
def test_a_file_from_which_nothing_can_be_told_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.trace.json").write_bytes(data)
    with pytest.raises(TraceError, match=said):
        attributed(newest(tmp_path), LOAD, targets="all", layers=LAYERS)


def test_a_profiler_that_wrote_nothing_is_told_and_the_first_gpu_is_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="wrote no trace"):
        newest(tmp_path)
    for rank in (1, 0):
        (tmp_path / f"9-TP-{rank}.trace.json.gz").touch()
    assert newest(tmp_path).name == "9-TP-0.trace.json.gz"


PREFILL = "_fwd_kernel"  # the attention of a prefill


def of_prefill(one: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(PREFILL if name == ATTENTION else name, took) for name, took in one]


def test_a_step_in_the_trace_of_a_prefill_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "1-TP-0.trace.json"
    path.write_text(json.dumps({"traceEvents": events(of_prefill(csgmv_pass()), csgmv_pass())}), encoding="utf-8")
    load = Load("prefill", 8, 512)
    trace = attributed(path, load, targets="all", layers=LAYERS, least_bytes={"qkv": 7})
    assert trace.phases == {"prefill": 1.0, "decode": 1.0} and trace.passes == 2.0
    sums = dict.fromkeys(("prefill", "decode"), 0.0)
    for kernel in trace.kernels:
        if kernel.site == "qkv" and kernel.phase is not None:
            sums[kernel.phase] += kernel.total_us
    assert sums == {"prefill": 42.0, "decode": 42.0} and trace.least_bytes == {"qkv": 7} and trace.layers == LAYERS


def test_one_pass_is_kept_kernel_by_kernel(tmp_path: Path) -> None:
    slow = [(name, 2 * took) for name, took in csgmv_pass()]
    slower = [(name, 3 * took) for name, took in csgmv_pass()]
    example = read(tmp_path, events(csgmv_pass(), slower, slow)).example
    assert example is not None and example.phase == "decode"
    kept = [(example.names[place], took) for place, took in zip(example.sequence, example.took_us, strict=True)]
    # A copy before the embedding belongs to the pass before; the last pass has none behind it.
    assert kept == slow[1:], "the median one"


def test_passes_without_adapters_are_cut_where_the_gpu_waits(tmp_path: Path) -> None:
    one = [("nvjet", 9.0), (ATTENTION, 7.0), ("nvjet", 9.0)] * LAYERS + [("argmax", 2.0)]
    found = events(of_prefill(one), one, one)
    for place, item in enumerate(found):  # 50 us of host work between passes
        item["ts"] += 50.0 * (place // len(one))
    path = tmp_path / "1-TP-0.trace.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    trace = attributed(path, Load("decode", 32, 16), targets="all", layers=LAYERS)
    assert trace.phases == {"prefill": 1.0, "decode": 2.0}
    calls = {(kernel.phase, kernel.name): kernel.calls for kernel in trace.kernels}
    assert calls["decode", "argmax"] == 2 and calls["prefill", "argmax"] == 1
    assert calls["decode", "nvjet"] == 2 * 2 * LAYERS


def test_the_parts_of_our_split_shrink_stay_with_their_site_and_an_unknown_name_is_rest(tmp_path: Path) -> None:
    one = []
    for name, took in csgmv_pass(("embedding_lora_kernel", "lora_shrink_kernel", "lora_expand_kernel")):
        one.append((name, took))
        if name == "lora_shrink_kernel":
            one.append(("lora_shrink_sum_kernel", 1.0))
    trace = read(tmp_path, events([*one, ("a_kernel_of_tomorrow", 5.0)]))
    found = by_site(trace)
    assert (found["qkv"], found["down"]) == (42.0 + LAYERS, 162.0 + LAYERS)
    assert found["rest"] == PLACED["rest"] + 5.0
    assert ("rest", "a_kernel_of_tomorrow") in {(kernel.site, kernel.name) for kernel in trace.kernels}


def test_names_of_an_h200_are_known_but_for_the_small_ones() -> None:
    """Of the committed records of real engines: what no rule knows is a small share."""
    for file in (ROOT / "docs" / "experiments").glob("h200-serve-*.json"):
        for process in served.read(file).processes:
            for trace in process.traces:
                rest = sum(kernel.total_us for kernel in trace.kernels if rule_of(kernel.name)[0] == "rest")
                assert rest < 0.12 * sum(kernel.total_us for kernel in trace.kernels)
                norms = [kernel.name for kernel in trace.kernels if "norm" in kernel.name.lower()]
                assert norms and all(rule_of(name) == ("rest", None) for name in norms)
