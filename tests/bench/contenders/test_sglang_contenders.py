"""SGLang's kernels on SGLang's own batch infos equal the oracle, under Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from bench.contenders.ours.plugin import CsgmvEmbedPlugin
from bench.contenders.sglang import peers
from bench.contenders.sglang.csgmv import SglangCsgmv
from bench.contenders.sglang.peers import DECODE_GRAPH_CAPACITY, SglangLookup, rank_major_bytes
from bench.contenders.sglang.tokens import SglangTokens
from bench.contenders.sglang.triton import SglangTriton
from bench.model.case import Case
from bench.model.registry import SUGGESTED_SGLANG
from bench.workload.tensors import Workload, make_workload

CASES = [
    Case("decode", 6, 1, 8, adapters=3, vocab=997),
    Case("decode", 5, 1, 8, adapters=4, rank_mix="gaps", base_fraction=0.4, vocab=997),
    Case("prefill", 4, 9, 8, skew=1.0, adapters=2, rank_mix="ladder", vocab=997),
    Case("mixed", 9, 20, 8, adapters=3, rank_mix="ladder", base_fraction=0.3, vocab=997),
    Case("prefill", 2, 24, 130, adapters=1, vocab=61, dtype="float32"),  # more than one block of ranks
]
LOOKUPS: list[SglangLookup] = [SglangCsgmv(16), SglangCsgmv(128), SglangTriton(), SglangTokens()]
LOOKUPS += [CsgmvEmbedPlugin(16), CsgmvEmbedPlugin(128)]

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs GPU kernels on the CPU: needs TRITON_INTERPRET=1"
)


def workload_of(case: Case) -> Workload:
    return make_workload(case, seed=3, index_sets=2, device=torch.device("cpu"))


def skip_unless_available(contender: SglangLookup) -> None:
    if (reason := contender.unavailable()) is not None:
        pytest.skip(reason)


@needs_interpreter
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@pytest.mark.parametrize("contender", LOOKUPS, ids=lambda contender: contender.name)
def test_lookup_equals_the_oracle(contender: SglangLookup, case: Case, static: bool) -> None:
    skip_unless_available(contender)
    workload = workload_of(case)
    launch = contender.setup(workload, static=static)
    for k in range(2):
        assert torch.equal(launch(k), contender.oracle(workload, k))


@pytest.mark.parametrize(("chunk", "segments"), [(16, 2 * 10), (128, 2 * 2)])
def test_csgmv_segments_follow_the_chunk_size(chunk: int, segments: int) -> None:
    contender = SglangCsgmv(chunk)
    skip_unless_available(contender)
    workload = workload_of(Case("prefill", 4, 80, 8, adapters=2, vocab=97))  # 160 tokens a slot
    info = contender.peer.prepare(workload, static=False, chunk_size=chunk).batch_info
    assert info.num_segments == segments
    assert int(info.seg_indptr.diff().max()) == chunk


def test_static_decode_has_the_capacity_of_a_captured_graph() -> None:
    skip_unless_available(SglangCsgmv())
    info = SglangCsgmv.peer.prepare(workload_of(CASES[0]), static=True).batch_info
    assert info.use_cuda_graph
    assert info.weight_indices.numel() == DECODE_GRAPH_CAPACITY


def test_a_batch_larger_than_the_default_capacity_fits() -> None:
    skip_unless_available(SglangCsgmv())
    large = Case("decode", DECODE_GRAPH_CAPACITY + 44, 1, 8, adapters=2, vocab=97)
    info = SglangCsgmv.peer.prepare(workload_of(large), static=True).batch_info
    assert info.weight_indices.numel() == large.batch_size


def test_preparing_leaves_the_backend_module_as_it_was() -> None:
    skip_unless_available(SglangCsgmv())
    module = importlib.import_module("sglang.srt.lora.backend.chunked_backend")
    before = dict(vars(module))
    SglangCsgmv.peer.prepare(workload_of(CASES[0]), static=True)
    assert vars(module) == before


@pytest.mark.parametrize("contender", LOOKUPS, ids=lambda contender: contender.name)
def test_kernel_references_resolve(contender: SglangLookup) -> None:
    skip_unless_available(contender)
    assert contender.kernels()
    for module, attribute in contender.kernels():
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(
    ("version", "package"),
    [
        ("0.5.10", "sglang.srt.lora.triton_ops"),
        ("0.5.15.post1", "sglang.srt.lora.triton_ops"),
        ("0.5.16", "sglang.kernels.ops.gemm"),
        ("0.5.21", "sglang.kernels.ops.gemm"),
        ("0.5.22", "sglang.kernels.ops.lora.dense"),
        ("0.6.0rc1", "sglang.kernels.ops.lora.dense"),
    ],
)
def test_kernels_are_found_by_version(version: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    expected = (f"{package}.chunked_embedding_lora_a", "_chunked_embedding_lora_a_kernel")
    assert [tuple(reference) for reference in SglangCsgmv().kernels()] == [expected]


def test_without_sglang_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (named,) = project["optional-dependencies"]["sglang"]
    assert SglangCsgmv().unavailable() == f"sglang is not installed: pip install '{named}'"


def test_a_version_without_the_op_is_named_with_one_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.16")
    reason = SglangTokens().unavailable()
    assert reason is not None
    assert "0.5.16 has no embedding_lora_a_tokens_fwd" in reason
    assert "pip install 'sglang==0.5.23'" in reason


def test_a_version_that_does_not_load_is_a_reason_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: SUGGESTED_SGLANG)
    for name in [name for name in sys.modules if name.startswith("sglang.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sglang", None)
    reason = SglangCsgmv().unavailable()
    assert reason is not None
    assert "does not load chunked_embedding_lora_a_forward" in reason
    assert "pip install" not in reason, "this very version is installed"
    for name, value in ((peers.KERNEL_CACHE, "1"), ("TRITON_INTERPRET", "1")):
        monkeypatch.setenv(name, value)
    assert "takes compiled kernels alone: needs an NVIDIA GPU" in (SglangCsgmv().unavailable() or "")


def test_required_bytes_of_a_case_counted_by_hand() -> None:
    workload = workload_of(Case("decode", 4, 1, 16, adapters=2, vocab=997))
    workload.index_sets[0] = torch.tensor([5, 5, 5, 5])  # two slots, so two rows of 16 elements, a sector each
    ids, table, output = 4 * 8, 2 * 16 * 32, 4 * 16 * 2
    assert rank_major_bytes(workload, zero_fills=False) == ids + table + output
    assert rank_major_bytes(workload, zero_fills=True) == ids + table + 2 * output
