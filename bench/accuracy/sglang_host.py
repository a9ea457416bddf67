"""Runs SGLang's LoRA manager without a server, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from bench.accuracy.models import AccuracyError
from bench.clocks.work.quick import quicken
from bench.contenders.sglang import stand_ins
from bench.contenders.sglang.harness import TUNING, server_args, standalone, start_process_group

KERNEL_CACHE = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"  # off: its keys forget the rank
# Columns of a program of csgmv's expand, where SGLang's default is 64: interpreted, a program costs the same whatever
# its tile, and a vocabulary has hundreds.
INTERPRETED_BLOCK = 1024
MODULES = (
    "sglang.srt.lora.backend.chunked_backend",
    "sglang.srt.lora.backend.triton_backend",
    "sglang.srt.lora.layers",
)


@contextmanager
def hosted(device: torch.device) -> Iterator[None]:
    """Within this context SGLang's manager, pool, layers and backends work. Raises AccuracyError if they do not load.

    A process group of one is started once. On a CPU, memory is not pinned and the GPU has no name.
    """
    os.environ.setdefault(KERNEL_CACHE, "0")
    if device.type == "cpu":
        _require_interpreter()
        quicken()
    try:
        stand_ins.provide()
        modules = [importlib.import_module(name) for name in MODULES]
        importlib.import_module("sglang.srt.lora.lora_manager")
    except Exception as error:  # a missing or broken package raises what it likes
        raise AccuracyError(f"SGLang's LoRA manager does not load: {type(error).__name__}: {error}"[:300]) from error
    logging.getLogger("sglang").setLevel(logging.WARNING)
    start_process_group()
    with ExitStack() as stack:
        stack.enter_context(standalone(*modules, args=server_args(), device=device))
        if device.type == "cpu":
            for tuning in [found for name, found in sys.modules.items() if name.endswith(TUNING)]:
                stack.enter_context(patch.dict(tuning.DEFAULT_EXPAND_CONFIG, BLOCK_N=INTERPRETED_BLOCK))
        yield


def _require_interpreter() -> None:
    """Triton decides when it is imported."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        raise AccuracyError("Triton was imported without TRITON_INTERPRET=1; expected it set, as there is no GPU")
