"""A contender as the tests build it, on a machine without a GPU too."""

from __future__ import annotations

import importlib

import pytest
import torch

from bench import contenders
from bench.contenders.base import Contender
from bench.model.case import Case


def built(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> Contender:
    """The contender of a case; the test is skipped where its package is not installed."""
    contender = contenders.build(name, case.op, case.site)
    if name.startswith("vllm") and not torch.cuda.is_available():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else vLLM has no Triton without a GPU
    if (reason := contender.unavailable()) is not None:
        pytest.skip(reason)
    if name.startswith("vllm"):
        utils = importlib.import_module("vllm.lora.ops.triton_ops.utils")
        monkeypatch.setattr(utils, "async_tensor_h2d", torch.tensor)  # the real one pins memory
    return contender
