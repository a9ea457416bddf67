"""The layer comparison: on and off on one set of weights, against float64."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench.contenders.ours.plugin import plugged
from bench.execute import layer
from bench.model.case import Case
from bench.model.records import ResultsError
from bench.workload.tensors import make_workload
from tests.support import real_sglang as support
from tests.support import rounding

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("sglang") is None,
        reason="runs SGLang's kernels on the CPU: needs sglang and TRITON_INTERPRET=1",
    ),
]
VOCAB, HIDDEN = 64, 32
HOOKS_OF = {
    "embedding_lora": "csgmv_embed.sglang.hooks.embedding",
    "lora_linear": "csgmv_embed.sglang.hooks.lm_head",
}
OPTIONS: dict[str, Any] = {"adapters": 3, "rank_mix": "ladder", "base_fraction": 0.3, "vocab": VOCAB}
# Of float16: in float32 both sides round alike, and which of them errs less is chance.
CASES = [Case("decode", 40, 1, 8, dtype="float16", **OPTIONS), Case("prefill", 20, 9, 8, dtype="float16", **OPTIONS)]


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes Layers of a dtype. Memory is not pinned, and the GPU has no name."""
    monkeypatch.setenv("SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's imports are not ours to mend
        layer._load_layers()
    support.start_process_group()
    with support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"):
        yield lambda dtype: layer.Layers(torch.device("cpu"), VOCAB, HIDDEN, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.phase)
def test_on_is_no_worse_than_off_and_both_are_right(case: Case, layers: Any) -> None:
    workload = make_workload(case, seed=1, index_sets=2, device=torch.device("cpu"))
    rounded = rounding.UNIT[workload.dtype]  # and so a root mean square is half of that
    with layer.both(layers(workload.dtype), workload, 16) as pairs:
        assert set(pairs) == set(layer.PARTS)
        for part, pair in pairs.items():
            assert set(pair.forwards) == {"on", "off"} and len(pair.inputs) == 2
            on, off = pair.checked(part)
            # Of the root mean square: ours rounds twice at most, SGLang's three times, values of its order.
            assert 0 < on <= 2 * rounded and 0 < off <= 3 * rounded, part


def test_the_side_that_is_on_runs_our_ops_and_the_other_does_not(layers: Any) -> None:
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=torch.device("cpu"))
    for op in HOOKS_OF:
        called = AssertionError(f"{op} was called")
        with patch(f"{HOOKS_OF[op]}.{op}", side_effect=called):
            _all_of(layers(workload.dtype), workload, "off")
            with pytest.raises(AssertionError, match=f"{op} was called"):
                _all_of(layers(workload.dtype), workload, "on")


def _all_of(made: layer.Layers, workload: Any, side: layer.Side) -> None:
    with layer.both(made, workload, 16) as pairs:
        for pair in pairs.values():
            pair.forwards[side](pair.inputs[0])


@pytest.mark.parametrize("op", ["embedding_lora", "lora_linear"])
def test_a_worse_result_is_an_error(op: str, layers: Any) -> None:
    """Wrong in one element, or no number."""
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=torch.device("cpu"))
    real = getattr(importlib.import_module(HOOKS_OF[op]), op)
    with layer.both(layers(workload.dtype), workload, 16) as pairs:
        pair = pairs["layer" if op == "embedding_lora" else "lm_head"]
        for wrong in (1.0, float("nan")):

            def spoiled(*args: Any, wrong: float = wrong, **options: Any) -> torch.Tensor:
                out = real(*args, **options)
                out[-1, -1] += wrong
                return out

            with (
                patch(f"{HOOKS_OF[op]}.{op}", spoiled),
                pytest.raises(ResultsError, match="differs from the exact result by .* with the plugin on"),
            ):
                pair.checked(op)


def test_layers_that_do_not_load_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise ImportError("no sgl_kernel")

    monkeypatch.setattr(layer, "_load_layers", refuse)
    with pytest.raises(ResultsError, match="do not load: ImportError: no sgl_kernel"):
        layer.Layers(torch.device("cpu"), VOCAB, HIDDEN, torch.float32)


def test_plugged_leaves_the_class_alone(layers: Any) -> None:
    workload = make_workload(CASES[0], seed=1, index_sets=1, device=torch.device("cpu"))
    with layer.SglangCsgmv.peer.preparing(workload, static=True) as (backend, prepare), plugged(backend):
        prepare()
        made = layers(workload.dtype)
        found = made.made(backend, workload.table("rank_major"), layer.Tables(made, workload))
        for name in ("layer", "lm_head"):
            layer.plug_layer(found[name])
            assert "apply_lora" in vars(found[name]) and not hasattr(type(found[name]).apply_lora, "__wrapped__")
