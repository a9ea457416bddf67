"""SGLang's triton_v2 without a GPU. Its expand takes the boundaries of its slices on a CUDA device alone.

Here the same table is made on the CPU, by SGLang's own function; what the kernels read is what they read on a GPU.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import pytest
import torch

RUNNER = "sglang.srt.lora.dense.runner"


@pytest.fixture
def slices_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boundaries may lie on the CPU; nothing where there is a GPU, or no triton_v2."""
    if torch.cuda.is_available():
        return
    try:
        runner = importlib.import_module(RUNNER)
    except ModuleNotFoundError:  # no SGLang, or one before 0.5.23
        return
    tables: Any = importlib.import_module("sglang.kernels.ops.lora.common.lora_b")

    def geometry(offsets: Any, block: int, device: torch.device, columns: Any = None) -> Any:
        rows, columns = tables._geometry_inputs(offsets, block, columns)
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "device", lambda _: nullcontext())
            patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            return tables._build_geometry(rows, block, device, columns)

    monkeypatch.setattr(runner, "slice_geometry", geometry)
