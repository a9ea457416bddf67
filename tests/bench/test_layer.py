"""The layer comparison: on and off on one set of weights, equal to the bit."""

from __future__ import annotations

import importlib.util
import os
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench import layer
from bench.case import Case
from bench.results import ResultsError
from bench.workload import make_workload

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("sglang") is None,
    reason="runs SGLang's kernels on the CPU: needs sglang and TRITON_INTERPRET=1",
)
VOCAB, HIDDEN = 61, 32
CASE = Case("mixed", 5, 9, 8, adapters=3, rank_mix="ladder", base_fraction=0.3, vocab=VOCAB, dtype="float32")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> layer.Layers:
    """Layers where SGLang's modules do not load; trying would leave a stand-in for sgl_kernel in this process."""
    monkeypatch.setenv("SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "0")

    def refuse() -> bool:
        raise ImportError("no sgl_kernel")

    monkeypatch.setattr(layer, "_load_layers", refuse)
    return layer.Layers(torch.device("cpu"), VOCAB, HIDDEN, torch.float32)


def test_on_equals_off_and_the_dense_formula(calls: layer.Layers) -> None:
    assert calls.kind.startswith("the calls of its forward (ImportError")
    workload = make_workload(CASE, seed=1, index_sets=2, device=torch.device("cpu"))
    with _a_device_name(), layer.both(calls, workload, 16) as forwards:
        for ids in workload.index_sets:
            found = forwards["on"](ids)
            assert torch.equal(found, forwards["off"](ids))
            assert not torch.equal(found, calls.weight[ids])  # LoRA was added


def test_a_difference_is_an_error(calls: layer.Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make_workload(CASE, seed=1, index_sets=1, device=torch.device("cpu"))
    monkeypatch.setattr(
        "csgmv_embed.sglang.hooks.run_lookup", lambda state, ids, weights, *_: weights[0, :, ids].T.contiguous() * 2
    )
    with _a_device_name(), pytest.raises(ResultsError, match="differs"), layer.both(calls, workload, 16):
        pass


def _a_device_name() -> Any:
    tuning = importlib.import_module("sglang.kernels.ops.gemm.lora_tuning_config")
    return patch.object(tuning, "get_device_name", lambda: "none")
