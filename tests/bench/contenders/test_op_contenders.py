"""Layer, head and expand: every contender equals the float64 oracle, on batches as servers and graphs have them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace

import msgspec
import pytest
import torch

from bench import contenders
from bench.clocks.work.interpreter import faithful
from bench.execute import measure
from bench.model import registry
from bench.model.case import Case, Op
from bench.workload import traffic
from bench.workload.tensors import Workload, make_workload
from tests.support.contenders import built
from tests.support.rounding import Exact, assert_errs_no_more
from tests.support.verified import assert_verified_on_a_restored_output

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("slices_on_the_cpu")]
LADDER = Case("decode", 6, 1, 8, adapters=3, rank_mix="ladder", base_fraction=0.3, vocab=97, dtype="float32")
MIXED = Case("mixed", 9, 20, 8, adapters=4, rank_mix="gaps", base_fraction=0.3, vocab=97, dtype="float32")
LAYER = [msgspec.structs.replace(case, op="layer", hidden=48) for case in (LADDER, MIXED)]
HEAD = msgspec.structs.replace(LADDER, op="head", hidden=48)
EXPAND = msgspec.structs.replace(LADDER, op="expand")

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs GPU kernels on the CPU: needs TRITON_INTERPRET=1"
)


def named(op: Op) -> list[str]:
    """Every contender with the op; of SGLang's chunk sizes the default and the largest, which shares its code."""
    found = [name for name in registry.names() if registry.provides(name, op)]
    return [name for name in found if not name.endswith(("chunk32", "chunk64"))]


def made(case: Case, sets: int = 2, seed: int = 3) -> Workload:
    return make_workload(case, seed=seed, index_sets=sets, device=torch.device("cpu"))


def check_of(name: str, case: Case, monkeypatch: pytest.MonkeyPatch, *, static: bool, seed: int = 3) -> measure.Check:
    contender, workload = built(name, case, monkeypatch), made(case, seed=seed)
    with faithful() if case.dtype == "bfloat16" else nullcontext():
        return measure.verify_eager(contender, workload, contender.setup(workload, static=static))


def exact(name: str, case: Case, index_set: int) -> Exact:
    """The oracle of a contender, and the same sums of absolute values."""
    workload, contender = made(case), contenders.build(name, case.op)
    value = contender.oracle(workload, index_set).double()
    positive = replace(workload, tables={key: table.abs() for key, table in workload.tables.items()})
    positive.inputs = {key: [given.abs() for given in sets] for key, sets in workload.inputs.items()}
    absolutes = contender.oracle(positive, index_set).double()
    if contender.in_place:  # the oracle makes the logits that it adds to itself
        logits = workload.unadded(index_set).double()
        absolutes += logits.abs() - logits
    # In bfloat16 the shrunk rows are rounded, and so is what is added to the embedding or the logits.
    inner = 0 if case.dtype == "float32" else 2
    return Exact(value, absolutes, terms=case.hidden + case.rank + 2, inner=inner)


def in_a_dtype_of(name: str, case: Case) -> Case:
    """vLLM's kernels take no float32."""
    return msgspec.structs.replace(case, dtype="bfloat16") if name.startswith("vllm") else case


POINTS = [(name, in_a_dtype_of(name, case)) for case in (*LAYER, HEAD, EXPAND) for name in named(case.op)]


@needs_interpreter
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
@pytest.mark.parametrize(("name", "case"), POINTS, ids=[f"{name}-{case.label}" for name, case in POINTS])
def test_every_contender_equals_the_oracle(
    name: str, case: Case, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 is a GPU's: here products are of float32. A check's error is of the oracle's largest value."""
    check = check_of(name, case, monkeypatch, static=static)
    bounds = [exact(name, case, index_set) for index_set in range(2)]
    allowed = [float(bound.allowed(getattr(torch, case.dtype)).amax() / bound.value.abs().amax()) for bound in bounds]
    assert check.max_error is not None and check.max_error <= max(allowed)


@needs_interpreter
@pytest.mark.parametrize("case", [LAYER[1], HEAD, EXPAND], ids=lambda case: case.label)
def test_ours_errs_no_more_than_sglang_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over seeds. bfloat16: one rounding where SGLang has two or three."""
    case = msgspec.structs.replace(case, dtype="bfloat16")

    def errors(name: str) -> list[float]:
        checks = [check_of(name, case, monkeypatch, static=True, seed=seed) for seed in range(10)]
        return [check.max_error for check in checks if check.max_error is not None]

    ours = errors("csgmv_embed-vocab_major")
    for peer in ("sglang_csgmv-chunk16", "sglang_triton"):
        assert_errs_no_more(ours, errors(peer))


@needs_interpreter
@pytest.mark.parametrize("case", [HEAD, EXPAND], ids=lambda case: case.op)
def test_a_head_is_verified_once_on_restored_logits_however_often_it_ran_before(case: Case) -> None:
    assert_verified_on_a_restored_output(contenders.build("torch_gather", case.op), made(case))


def test_a_scaling_that_is_left_out_is_wrong() -> None:
    contender, workload = contenders.build("torch_gather", "layer"), made(LAYER[0])
    assert len(set(workload.scalings)) > 1
    type(workload).scalings, kept = property(lambda self: [1.0] * self.num_slots), type(workload).scalings
    try:
        launch = contender.setup(workload, static=False)
    finally:
        type(workload).scalings = kept
    with pytest.raises(measure.NotMeasured):
        measure.verify_eager(contender, workload, launch)


@pytest.mark.parametrize(("name", "case"), [("base", LAYER[0]), ("base", HEAD)], ids=["layer", "head"])
def test_the_base_has_an_oracle_of_its_own(name: str, case: Case) -> None:
    contender, workload = contenders.build(name, case.op), made(case)
    launch = contender.setup(workload, static=False)
    assert measure.verify_eager(contender, workload, launch).passed
    lora = contenders.build("torch_gather", case.op)
    with pytest.raises(measure.NotMeasured):
        measure._compare(lora, workload, [launch(0)])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_tolerance_is_of_the_order_of_its_roundings(dtype: str) -> None:
    case = msgspec.structs.replace(HEAD, dtype=dtype)
    unit = torch.finfo(getattr(torch, dtype)).eps / 2
    ours = contenders.build("csgmv_embed-vocab_major", "head").tolerance(case)
    layer = contenders.build("csgmv_embed-vocab_major", "layer").tolerance(case)
    sums = (case.rank + case.hidden) * 2.0**-24
    assert (ours, layer) == pytest.approx((2 * unit + sums, unit + sums))


def test_bytes_of_a_layer_and_a_head_counted_by_hand() -> None:
    layer = made(Case("decode", 4, 1, 16, adapters=2, vocab=997, op="layer", hidden=64), sets=1)
    layer.index_sets[0] = torch.tensor([5, 5, 5, 5])  # two slots: two rows of A, one of the embedding
    least = 4 * 8 + 64 * 2 + 2 * 16 * 2 + 2 * 64 * 16 * 2 + 4 * 64 * 2
    assert traffic.minimum(layer) == least
    assert contenders.build("csgmv_embed-vocab_major", "layer").required_bytes(layer) == least
    added = contenders.build("csgmv_embed_add-vocab_major", "layer").required_bytes(layer)
    assert added == least + 4 * 8 + 2 * 4 * 64 * 2  # ids and output again
    head = made(Case("decode", 4, 1, 16, adapters=2, vocab=997, op="head", hidden=64), sets=1)
    expand = 2 * 997 * 16 * 2 + 2 * 4 * 997 * 2
    assert traffic.minimum(head) == 4 * 64 * 2 + 2 * 16 * 64 * 2 + expand
    alone = made(Case("decode", 4, 1, 16, adapters=2, vocab=997, op="expand"), sets=1)
    assert traffic.minimum(alone) == 4 * 16 * 2 + expand


def test_a_batch_without_an_adapter_moves_no_bytes_of_lora() -> None:
    layer = made(msgspec.structs.replace(LAYER[0], base_fraction=1.0), sets=1)
    base = contenders.build("base", "layer")
    assert traffic.minimum(layer) == base.required_bytes(layer)
    assert traffic.minimum(made(msgspec.structs.replace(HEAD, base_fraction=1.0), sets=1)) == 0
