"""Shrink, expand and both on linear sites: every contender equals the float64 oracle."""

from __future__ import annotations

import importlib.metadata
import os

import msgspec
import pytest
import torch

from bench import contenders
from bench.clocks.work.interpreter import faithful
from bench.contenders.ours import lookup
from bench.contenders.sglang import peers
from bench.execute import measure
from bench.model import registry
from bench.model.case import Case, Op
from bench.workload import traffic
from bench.workload.tensors import Workload, make_workload
from tests.support.contenders import built
from tests.support.small_sites import shrink_models
from tests.support.verified import assert_verified_on_a_restored_output

DECODE = Case("decode", 8, 1, 16, adapters=2, rank_mix="pairs", base_fraction=0.25, op="linear", site="qkv")
DECODE = msgspec.structs.replace(DECODE, model="135m", cache="cold")
PREFILL = msgspec.structs.replace(DECODE, phase="prefill", batch_size=4, seq_len=9, skew=1.5, rank_mix="ladder")
NAMES = [name for name in registry.names() if registry.provides(name, "linear", "qkv") and "chunk64" not in name]
NAMES = [name for name in NAMES if "chunk32" not in name]
OPS: tuple[Op, ...] = ("linear", "shrink", "expand")
CASES = [
    *(msgspec.structs.replace(DECODE, op=op) for op in OPS),
    *(msgspec.structs.replace(PREFILL, op=op) for op in OPS),
    *(msgspec.structs.replace(PREFILL, op=op, site="gate_up") for op in ("linear", "expand")),
    *(msgspec.structs.replace(DECODE, op=op, site="down") for op in ("linear", "expand")),
]
POINTS = [(name, case) for case in CASES for name in NAMES if registry.provides(name, case.op, case.site)]
SETS = 2

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs GPU kernels on the CPU: needs TRITON_INTERPRET=1"
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, slices_on_the_cpu: None) -> None:
    """Small models, and graphs of few requests: the interpreter runs every program of a captured grid."""
    shrink_models(monkeypatch)
    for module in (peers, lookup):
        monkeypatch.setattr(module, "DECODE_GRAPH_CAPACITY", 12)


def made(case: Case, reuse_bytes: int = 1 << 40) -> Workload:
    """Index sets of it have tables of their own, as if the cache were infinite."""
    return make_workload(case, seed=3, index_sets=SETS, device=torch.device("cpu"), reuse_bytes=reuse_bytes)


@needs_interpreter
@pytest.mark.parametrize(("name", "case"), POINTS, ids=[f"{name}-{case.label}" for name, case in POINTS])
def test_every_contender_equals_the_oracle(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in the buffers of a graph. Some requests have no adapter, and slots different ranks."""
    contender, workload = built(name, case, monkeypatch), made(case)
    with faithful():
        launch = contender.setup(workload, static=case.phase == "decode")
        check = measure.verify_eager(contender, workload, launch)
    assert check.passed and check.max_error is not None
    ranks = workload.ranks[workload.token_slots()]
    assert 0 in ranks and len(set(ranks.tolist())) > 2


@needs_interpreter
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("vllm") and name != "base"])
def test_a_contender_without_reduced_precision_is_exact_to_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances of bfloat16 would hide a column that is swapped with a small one."""
    case = msgspec.structs.replace(PREFILL, dtype="float32")
    contender, workload = built(name, case, monkeypatch), made(case)
    check = measure.verify_eager(contender, workload, contender.setup(workload, static=False))
    assert check.max_error is not None and check.max_error < 20 * 2.0**-24


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("spoiled", ["scaling", "rank", "site_b_1", "site_a_1"])
def test_what_is_computed_with_something_else_is_wrong(op: Op, spoiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"shrink": ("site_a_1",), "expand": ("scaling", "rank", "site_b_1")}.get(op)  # row n of a shrink is A's
    if used is not None and spoiled not in used:
        pytest.skip(f"a {op} does not use it")
    case = msgspec.structs.replace(PREFILL, op=op, dtype="float32")
    workload, contender = made(case), contenders.build("torch_gather", case.op, case.site)
    launch = contender.setup(workload, static=False)
    assert measure.verify_eager(contender, workload, launch).passed
    if spoiled == "scaling":
        monkeypatch.setattr(Workload, "scalings", property(lambda self: [0.75] * self.num_slots))
    elif spoiled == "rank":
        workload.ranks[int(workload.seq_slots[workload.seq_slots < case.adapters][0])] -= 1
    else:
        workload.tables[spoiled].add_(0.1)
        workload.tables[spoiled] = workload.tables[spoiled] - 0.1  # the launch holds the old one
    with pytest.raises(measure.NotMeasured, match="of the oracle's largest value"):
        measure.verify_eager(contender, workload, launch)


@pytest.mark.parametrize("op", ["linear", "expand"])
def test_what_adds_in_place_is_verified_on_a_restored_output(op: Op) -> None:
    case = msgspec.structs.replace(DECODE, op=op)
    assert_verified_on_a_restored_output(contenders.build("torch_gather", op, case.site), made(case))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_output_that_is_added_to_again_and_again_stays_finite(dtype: str) -> None:
    """Its steps are rounded away once it is some hundred of them large."""
    case = msgspec.structs.replace(DECODE, dtype=dtype, batch_size=2, adapters=1)
    contender, workload = contenders.build("torch_gather", "linear", case.site), made(case)
    launch = contender.setup(workload, static=False)
    for _ in range(1500):
        out = launch(0)
    last = out.clone()
    assert out.isfinite().all() and float(out.abs().max()) < 3e4
    if dtype == "bfloat16":
        assert torch.equal(launch(0), last)


def test_bytes_of_a_site_counted_by_hand() -> None:
    """Rows of slots 0 and 1, of ranks 16 and 4; q is 64 wide, k and v 16."""
    case = msgspec.structs.replace(DECODE, batch_size=2, adapters=2, base_fraction=0.0)
    ranks, x, a, b, out = 20, 2 * 64, 20 * 3 * 64, 20 * 96, 2 * 96
    shrunk = 3 * ranks
    least = {"linear": x + a + b + 2 * out, "shrink": x + a + shrunk, "expand": shrunk + b + 2 * out}
    for op in OPS:
        workload = made(msgspec.structs.replace(case, op=op))
        assert sorted(workload.seq_slots.tolist()) == [0, 1]
        assert traffic.minimum(workload) == 2 * least[op]
        required = contenders.build("csgmv_embed-vocab_major", op, case.site).required_bytes(workload)
        assert required == 2 * (least[op] + (2 * shrunk if op == "linear" else 0))


def test_a_batch_without_an_adapter_moves_no_bytes() -> None:
    for op in OPS:
        assert traffic.minimum(made(msgspec.structs.replace(DECODE, op=op, base_fraction=1.0))) == 0


def test_vllm_says_why_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    reason = contenders.build("vllm", "linear", "qkv").unavailable()
    assert reason == "vllm is not installed: pip install --no-deps vllm==0.33.0"
    with pytest.raises(registry.UnknownContenderError, match="it has lookup"):
        contenders.build("sglang_tokens", "expand")
