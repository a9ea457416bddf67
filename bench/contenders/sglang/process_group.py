"""The process groups that SGLang's layers ask for, of one process and without a network."""

from __future__ import annotations

import importlib
import socket
from typing import Any

import torch


def start_process_group() -> None:
    """Start them once in this process; later calls do nothing."""
    if torch.distributed.is_initialized():
        return
    distributed: Any = importlib.import_module("sglang.srt.distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    distributed.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=address
    )
    distributed.initialize_model_parallel()
