"""Runs SGLang's objects without a server: provides the arguments, batches, groups and host memory that they expect.

The suite, the accuracy runs and the tests share these stand-ins: a namespace for the server's arguments, the fields of
a ForwardBatch that LoRA reads, SGLang's settings, process groups of one, and on a CPU memory that is not pinned.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

DEFAULT_CHUNK_SIZE = 16  # ServerArgs.max_lora_chunk_size
TUNING = "lora_tuning_config"  # the end of the names of modules that ask the GPU for its name


def server_args(chunk_size: int = DEFAULT_CHUNK_SIZE) -> SimpleNamespace:
    """The fields of SGLang's ServerArgs that LoRA reads, at the server's defaults."""
    return SimpleNamespace(
        max_lora_chunk_size=chunk_size,
        enable_lora_overlap_loading=False,
        lora_eviction_policy="lru",
        experts_shared_outer_loras=None,
        lora_use_virtual_experts=False,
        lora_strict_loading=False,
        enable_dp_attention=False,
        enable_lora=True,
    )


def forward_batch(
    mode: str,
    lens: Sequence[int],
    *,
    logprob_starts: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> SimpleNamespace:
    """The fields of SGLang's ForwardBatch that LoRA reads, as its scheduler would fill them.

    mode: a name of ForwardMode. lens: tokens of each request. logprob_starts: where each request's log-probabilities
    begin; None if none are wanted.
    """
    modes = importlib.import_module("sglang.srt.model_executor.forward_batch_info").ForwardMode
    extends = mode not in ("DECODE", "TARGET_VERIFY")
    return SimpleNamespace(
        batch_size=len(lens),
        forward_mode=modes[mode],
        extend_seq_lens=torch.tensor(lens, dtype=torch.int32, device=device) if extends else None,
        extend_seq_lens_cpu=list(lens) if extends else None,
        extend_num_tokens=sum(lens),  # a verified draft is counted by it, too
        spec_info=SimpleNamespace(draft_token_num=lens[0]) if mode == "TARGET_VERIFY" else None,
        return_logprob=logprob_starts is not None,
        extend_logprob_start_lens_cpu=None if logprob_starts is None else list(logprob_starts),
        lora_ids=None,
    )


@contextmanager
def standalone(*modules: ModuleType, args: SimpleNamespace, device: torch.device) -> Iterator[None]:
    """Within this context these modules of SGLang work without a server and on a CPU.

    Everything is restored on exit.
    """
    with ExitStack() as stack:
        for module in modules:
            if hasattr(module, "get_lora"):  # 0.5.20 and later read the settings from a server's runtime context
                stack.enter_context(patch.object(module, "get_lora", lambda: args))
            if device.type == "cpu":
                stack.enter_context(patch.object(module, "torch", HostTorch()))
        if device.type == "cpu":
            for tuning in [found for name, found in sys.modules.items() if name.endswith(TUNING)]:
                stack.enter_context(patch.object(tuning, "get_device_name", lambda: "none"))
        yield


class HostTorch:
    """torch as on a machine without an accelerator: nothing is pinned, and every device is the CPU."""

    _PINNING = frozenset({"arange", "empty", "tensor", "zeros"})

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in self._PINNING:
            return found

        def unpinned(*args: Any, **options: Any) -> torch.Tensor:
            options.pop("pin_memory", None)
            result: torch.Tensor = found(*args, **options)
            return result

        return unpinned

    def device(self, *_: Any) -> torch.device:
        return torch.device("cpu")


def publish_settings() -> None:
    """Set what SGLang's classes ask the process for, from 0.5.18 on: its default settings for one rank."""
    context: Any = importlib.import_module("sglang.srt.runtime_context")
    found: Any = importlib.import_module("sglang.srt.server_args").ServerArgs
    if hasattr(context, "publish") and not dataclasses.is_dataclass(found):
        ranks = {"ranks": context.SpawnRanks(world_rank=0)} if hasattr(context, "SpawnRanks") else {}
        context.publish(found(model_path="none", device="cpu", lora_eviction_policy="lru"), role="test", **ranks)
        return
    arguments = found.__new__(found)  # its construction would look for the model
    for field in dataclasses.fields(found):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        setattr(arguments, field.name, made if field.default is dataclasses.MISSING else field.default)
    context.get_context().set_server_args(arguments)


def start_process_group() -> None:
    """Start, once, the process groups that SGLang's layers ask for: of one process, without a network."""
    if torch.distributed.is_initialized():
        return
    if importlib.util.find_spec("sglang.srt.runtime_context") is not None:
        publish_settings()
    distributed: Any = importlib.import_module("sglang.srt.distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    distributed.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=address
    )
    distributed.initialize_model_parallel()
