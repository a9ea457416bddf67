"""Two ranks of SGLang's layers with the plugin on: `python -m tests.support.tp_ranks FOLDER`, in Triton's interpreter.

FOLDER is on its path. The process imports once and forks the ranks, which are a gloo group and leave FOLDER/rank-0.pt
and rank-1.pt: for each site the rows of the layer's output, and which of the plugin's ops were called. Weights and
adapters are those of one rank, split as SGLang splits them; the exact result is computed from `Whole`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.contenders.sglang import stand_ins
from bench.contenders.sglang.harness import publish_settings
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.hooks import embedding, linear, lm_head
from csgmv_embed.sglang.settings import Settings
from tests.support import real_sglang as support

# Interpreted, a thread a rank, nothing compiled by torch, and no broadcasts through shared memory.
ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",
    "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE": "0",
    "CUDA_VISIBLE_DEVICES": "",
}
WORLD, SLOTS, MAX_RANK, VOCAB, HIDDEN, FEATURES = 2, 4, 16, support.VOCAB, 32, 64
RANKS, SCALINGS = [0, 8, 16, 5], [0.0, 2.0, 0.75, 1.5]
LENS, OF_REQUEST = [3, 1, 7, 2, 5], [1, 0, 2, 3, 1]
OPS = {
    embedding: ("embedding_lora", "embedding_lora_add"),
    lm_head: ("lora_linear",),
    linear: ("lora_linear", "lora_shrink", "lora_expand"),
}
# A site's columns by slice, its input's features, and SGLang's layer: the parallel one, and the one with LoRA.
LINEAR: dict[str, tuple[tuple[int, ...], str, str]] = {
    "qkv": ((64, 32, 32), "QKVParallelLinear", "QKVParallelLinearWithLoRA"),
    "gate_up": ((80, 80), "MergedColumnParallelLinear", "MergedColumnParallelLinearWithLoRA"),
    "column": ((96,), "ColumnParallelLinear", "ColumnParallelLinearWithLoRA"),
    "row": ((96,), "RowParallelLinear", "RowParallelLinearWithLoRA"),
}


class Whole:
    """Weights, tables and inputs before they are split: the same in every process. NaN lies beyond a slot's rank."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.slices = LINEAR[site][0] if site in LINEAR else (HIDDEN if site == "embedding" else VOCAB,)
        self._generator = torch.Generator().manual_seed(sum(map(ord, site)))
        self.features = {"embedding": VOCAB, "lm_head": HIDDEN}.get(site, FEATURES)
        stacked, columns = len(self.slices), sum(self.slices)
        self.a = torch.zeros(SLOTS, stacked * MAX_RANK, self.features)
        self.b = torch.zeros(SLOTS, columns, MAX_RANK)
        for slot, rank in enumerate(RANKS):
            self.a[slot, : stacked * rank] = self.draw(stacked * rank, self.features) / 8
            self.b[slot, :, :rank] = self.draw(columns, rank) / 4
        self.weight = self.draw(VOCAB, HIDDEN) if site in ("embedding", "lm_head") else self.draw(columns, FEATURES)
        self.token_slots = torch.tensor(
            [slot for length, slot in zip(LENS, OF_REQUEST, strict=True) for _ in range(length)]
        )
        self.ids = torch.randint(0, VOCAB, (len(self.token_slots),), generator=self._generator)
        self.x = self.draw(len(OF_REQUEST) if site == "lm_head" else len(self.token_slots), self.features)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator)


def _layers() -> Any:
    return importlib.import_module("sglang.srt.lora.layers")


def _vocab_layer(whole: Whole, rank: int) -> Any:
    """The embedding layer or lm_head of this rank: its rows of the padded vocabulary."""
    module = importlib.import_module("sglang.srt.layers.vocab_parallel_embedding")
    kind = module.VocabParallelEmbedding if whole.site == "embedding" else module.ParallelLMHead
    base = kind(VOCAB, HIDDEN, params_dtype=torch.float32)
    first, end = base.shard_indices.org_vocab_start_index, base.shard_indices.org_vocab_end_index
    with torch.no_grad():
        base.weight.zero_()
        base.weight[: end - first] = whole.weight[first:end]
    return base


def _linear_layer(whole: Whole, rank: int) -> Any:
    module = importlib.import_module("sglang.srt.layers.linear")
    kind, options = getattr(module, LINEAR[whole.site][1]), {"bias": False, "params_dtype": torch.float32}
    if whole.site == "qkv":
        return kind(FEATURES, 16, 4, 2, **options)
    if whole.site == "gate_up":
        return kind(FEATURES, list(whole.slices), **options)
    return kind(FEATURES, whole.slices[0], **options)


def _slicing(method: Callable[..., torch.Tensor], rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """SGLang's own way to a rank's part; newer versions know the rank."""
    return (lambda whole: method(whole, rank)) if len(inspect.signature(method).parameters) > 1 else method


def result(site: str, rank: int) -> torch.Tensor:
    """This rank's output of a site: a shard of the columns, or all of them where the ranks sum."""
    whole, backend = Whole(site), support.backend(SLOTS)
    if site in LINEAR:
        base = _linear_layer(whole, rank)
        layer = getattr(_layers(), LINEAR[site][2])(base, backend)
    else:
        base = _vocab_layer(whole, rank)
        layer = getattr(
            _layers(), "VocabParallelEmbeddingWithLoRA" if site == "embedding" else "ParallelLMHeadWithLoRA"
        )(base, backend)
    of_a, of_b = (_slicing(method, rank) for method in (layer.slice_lora_a_weights, layer.slice_lora_b_weights))
    a = torch.stack([of_a(slot) for slot in whole.a]).contiguous()
    b = torch.stack([of_b(slot) for slot in whole.b]).contiguous()
    if site in LINEAR:
        with torch.no_grad():  # as SGLang's loader: rows of a weight are split as those of B, columns as those of A
            base.weight.copy_(of_a(whole.weight) if site == "row" else of_b(whole.weight))
    layer.set_lora_info(*([None, a, b] if site == "embedding" else [a, b]))
    state = runtime.state_of(backend)
    assert state is not None
    for slot in range(SLOTS):
        state.set_slot(slot, has_embedding=RANKS[slot] > 0, has_head=RANKS[slot] > 0)
    backend.prepare_lora_batch(support.forward_batch("EXTEND", LENS), OF_REQUEST, RANKS, SCALINGS, False)
    if site == "embedding":
        return layer(whole.ids)
    if site == "row":
        return layer(of_a(whole.x).contiguous())[0]
    return layer(whole.x) if site == "lm_head" else layer(whole.x)[0]


def _no_nccl(**_: object) -> None:
    return None


def start_group(rank: int, port: int) -> None:
    """The process groups that SGLang's layers ask for, over two ranks of this host."""
    _publish(rank)
    distributed: Any = importlib.import_module("sglang.srt.distributed")
    # NCCL is for GPUs; without it SGLang's groups sum over gloo.
    vars(importlib.import_module(f"{distributed.__name__}.device_communicators.pynccl"))["PyNcclCommunicator"] = (
        _no_nccl
    )
    distributed.set_custom_all_reduce(False)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_distributed_environment(
        world_size=WORLD, rank=rank, local_rank=rank, backend="gloo", distributed_init_method=address
    )
    start = distributed.initialize_model_parallel
    told = "tensor_model_parallel_size" in inspect.signature(start).parameters  # else of the settings
    start(**({"tensor_model_parallel_size": WORLD} if told else {}))


def _publish(rank: int) -> None:
    """The settings of a process, where SGLang asks for any: from 0.5.18 on they say how many ranks there are."""
    if importlib.util.find_spec("sglang.srt.runtime_context") is None:
        return
    context: Any = importlib.import_module("sglang.srt.runtime_context")
    if not hasattr(context, "SpawnRanks"):
        publish_settings()
        return
    arguments = importlib.import_module("sglang.srt.server_args").ServerArgs
    found = arguments(model_path="none", device="cpu", lora_eviction_policy="lru", tp_size=WORLD)
    context.publish(found, role="test", ranks=context.SpawnRanks(world_rank=rank))


def _noting(calls: list[str], name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return op(*args, **kwargs)

    return noted


def counted(calls: list[str], stack: ExitStack) -> None:
    """Note each call of an op, as the hooks make it."""
    for module, names in OPS.items():
        for name in names:
            stack.enter_context(patch.object(module, name, _noting(calls, name, getattr(module, name))))


def run_rank(rank: int, port: int, folder: Path) -> None:
    """Every site, in the same order on both ranks, for they wait for each other."""
    start_group(rank, port)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(support.on_the_cpu(support.server_args(), "sglang.srt.lora.layers"))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        calls: list[str] = []
        counted(calls, stack)
        for site in ("embedding", "lm_head", *LINEAR):
            calls.clear()
            output = result(site, rank)
            found[site] = {"output": output.detach().clone(), "ops": [*calls]}
    torch.save(found, folder / f"rank-{rank}.pt")


def main(folder: Path) -> int:
    """Import, switch the plugin on, and fork; the exit status of the first rank that failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if support.server_classes() is not None:
            stand_ins.provide()
        if (reason := support.server_classes()) is not None:
            sys.stderr.write(f"{support.NOT_HERE}: {reason}")
            return 77
        support.entry_point_files(folder)
        support.load_plugin()
    assert runtime.active is not None
    runtime.activate(runtime.Active(runtime.active.release, Settings()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_forked(rank, port, folder) for rank in range(WORLD)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((status for status in statuses if status), 0)


def _forked(rank: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        run_rank(rank, port, folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
