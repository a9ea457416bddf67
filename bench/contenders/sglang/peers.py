"""What the SGLang contenders share: where a version keeps its kernels, its own batch preparation, its traffic.

SGLang is imported and called, never copied. Only its backends, kernels and ForwardMode are used, because these load
without sgl_kernel. Its LoRA layers, memory pool and manager are not needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch

from bench.contenders.base import KernelRef, Launch, LookupOp, Preparation
from bench.contenders.sglang import harness
from bench.contenders.sglang.harness import DEFAULT_CHUNK_SIZE as DEFAULT_CHUNK_SIZE
from bench.model.case import ELEMENT_BYTES, Case
from bench.model.registry import SUGGESTED_SGLANG
from bench.workload.tensors import SECTOR_BYTES, Workload

Version = tuple[int, ...]

# First version of each home of the dense LoRA kernels, newest first.
KERNEL_PACKAGES: tuple[tuple[Version, str], ...] = (
    ((0, 5, 22), "sglang.kernels.ops.lora.dense"),
    ((0, 5, 16), "sglang.kernels.ops.gemm"),
    ((0, 5, 10), "sglang.srt.lora.triton_ops"),
)
FIRST_VERSION: Version = (0, 5, 10)  # the first with a csgmv embedding kernel
KERNEL_CACHE = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"

# Decode batch size SGLang captures up to on a GPU of 60 to 160 GiB (A100-80G, H100, H200) with tp < 4:
# server_args.py, ServerArgs._handle_gpu_memory_settings (0.5.20 and later: arg_groups/memory_hook.py).
DECODE_GRAPH_CAPACITY = 256


@dataclass(frozen=True)
class Peer:
    """One SGLang op: the backend that prepares its batch, the function that launches it, the kernel it launches.

    `backend` and `kernel` are (module, attribute), the module relative to where the installed version keeps
    backends and kernels; `launcher` is an attribute of the kernel's module; `since` the first version with the op.
    """

    backend: tuple[str, str]
    kernel: tuple[str, str]
    launcher: str
    since: Version = FIRST_VERSION

    def unavailable(self) -> str | None:
        """Why the installed SGLang cannot run this op, with the install line; None if it can. Imports SGLang."""
        advice = f"pip install 'sglang=={_dotted(max(self.since, _parsed(SUGGESTED_SGLANG)))}'"
        try:
            installed = importlib.metadata.version("sglang")
        except importlib.metadata.PackageNotFoundError:
            return f"sglang is not installed: {advice}"
        if _parsed(installed) < self.since:
            return f"sglang {installed} has no {self.launcher}, {_dotted(self.since)} has: {advice}"
        try:
            self.load_launcher()
            self._backend_module()
        except Exception as error:  # a broken install can raise anything at import; the reason is the result
            why = f"sglang {installed} does not load {self.launcher}: {type(error).__name__}: {error}"
            if os.environ.get(KERNEL_CACHE) == "1" and os.environ.get("TRITON_INTERPRET") == "1":
                return f"{why}; its kernel cache ({KERNEL_CACHE}=1) takes compiled kernels alone: needs an NVIDIA GPU"
            return why if advice.endswith(f"=={installed}'") else f"{why}; try {advice}"
        return None

    def load_launcher(self) -> Callable[..., torch.Tensor]:
        """SGLang's own launching function."""
        launcher: Callable[..., torch.Tensor] = getattr(
            importlib.import_module(f"{_kernel_package()}.{self.kernel[0]}"), self.launcher
        )
        return launcher

    def kernels(self) -> list[KernelRef]:
        """The Triton kernel of the installed version. Raises PackageNotFoundError without SGLang."""
        return [self.kernel_ref(*self.kernel)]

    def kernel_ref(self, module: str, attribute: str) -> KernelRef:
        """A dense LoRA kernel of the installed version. `module` is relative to where that version keeps them."""
        return KernelRef((f"{_kernel_package()}.{module}", attribute))

    def prepare(
        self,
        workload: Workload,
        *,
        static: bool,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> Any:
        """SGLang's backend object after its own `prepare_lora_batch` of this workload; see `preparing`."""
        with self.preparing(workload, static=static, chunk_size=chunk_size) as (backend, prepare):
            prepare()
        return backend

    @contextmanager
    def preparing(
        self,
        workload: Workload,
        *,
        static: bool,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> Iterator[tuple[Any, Callable[[], None]]]:
        """SGLang's backend object, and its own `prepare_lora_batch` of this workload, which can be called repeatedly.

        `static` selects the buffers of a CUDA graph if the installed version would use one.
        """
        module = self._backend_module()
        server_args = harness.server_args(chunk_size)
        with harness.standalone(module, args=server_args, device=workload.device):
            backend = getattr(module, self.backend[1])(
                max_loras_per_batch=workload.num_slots, device=workload.device, server_args=server_args
            )
            graph_flags = _allocate_graph_buffers(backend, workload.case) if static else (False,)
            arguments = (
                forward_batch(workload),
                workload.seq_slots.tolist(),
                workload.ranks.tolist(),
                workload.scalings,
                *graph_flags,
            )
            yield backend, lambda: backend.prepare_lora_batch(*arguments)

    def _backend_module(self) -> ModuleType:
        return importlib.import_module(f"sglang.srt.lora.backend.{self.backend[0]}")


class SglangLookup(LookupOp, ABC):
    """What all SGLang lookups share.

    A subclass adds `name`, `peer` and `launch_on`.
    """

    name: str
    peer: ClassVar[Peer]
    zero_fills: ClassVar[bool] = True  # the launcher fills the output with zeros before the kernel
    chunk_size = DEFAULT_CHUNK_SIZE

    def unavailable(self) -> str | None:
        return self.peer.unavailable()

    @abstractmethod
    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        """The launch on the batch that `backend` has prepared last."""

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        return self.launch_on(self.peer.prepare(workload, static=static, chunk_size=self.chunk_size), workload)

    @contextmanager
    def preparation(self, workload: Workload) -> Iterator[Preparation]:
        with self.peer.preparing(workload, static=True, chunk_size=self.chunk_size) as (backend, prepare):
            yield Preparation(prepare, lambda k: self.launch_on(backend, workload)(k))

    def required_bytes(self, workload: Workload) -> int:
        return rank_major_bytes(workload, zero_fills=self.zero_fills)

    def kernels(self) -> list[KernelRef]:
        return self.peer.kernels()


def rank_major_bytes(workload: Workload, *, zero_fills: bool) -> int:
    """Bytes of a lookup in the rank-major table: ids, table, output; batch metadata is negligible beside them.

    An id costs 8 bytes; each distinct sector of a (slot, rank) line costs 32. The output is written
    once, and where the launcher zero-fills, the live elements are written a second time.
    """
    element = ELEMENT_BYTES[workload.case.dtype]
    row_slots = workload.distinct_rows(SECTOR_BYTES // element) // workload.case.vocab
    table = int(workload.ranks[row_slots].sum()) * SECTOR_BYTES
    live = int(workload.ranks[workload.token_slots()].sum()) if zero_fills else 0
    return workload.num_tokens * 8 + table + (workload.num_tokens * workload.case.rank + live) * element


def _kernel_package() -> str:
    """Where the installed version keeps its dense LoRA kernels."""
    installed = _parsed(importlib.metadata.version("sglang"))
    return next((path for first, path in KERNEL_PACKAGES if installed >= first), KERNEL_PACKAGES[-1][1])


def forward_batch(workload: Workload) -> SimpleNamespace:
    """The workload's requests as SGLang's scheduler would pass them to `prepare_lora_batch`."""
    mode = {"decode": "DECODE", "prefill": "EXTEND", "mixed": "MIXED"}[workload.case.phase]
    return harness.forward_batch(mode, workload.seq_lens.tolist(), device=workload.device)


def _allocate_graph_buffers(backend: Any, case: Case) -> tuple[bool, ...]:
    """Has the backend allocate its buffers for a captured graph; the flags for `prepare_lora_batch` that use them."""
    if case.phase == "decode":
        current_name = getattr(backend, "init_decode_cuda_graph_batch_info", None)  # 0.5.23; shorter before
        init = current_name or backend.init_cuda_graph_batch_info
        init(max(DECODE_GRAPH_CAPACITY, case.batch_size), 1)
        return (True,)
    if not getattr(backend, "supports_prefill_cuda_graph", False):
        return (False,)  # before 0.5.18 prefill with LoRA is never captured: the eager batch info, sized exactly
    init = backend.init_prefill_cuda_graph_batch_info
    # The engine's request capacity is the size of its request pool; no batch tells it, the decode capacity stands in.
    requests = min(case.num_tokens, max(DECODE_GRAPH_CAPACITY, case.batch_size))
    sizes = {"max_num_tokens": case.num_tokens, "max_num_requests": requests}
    init(**{name: sizes[name] for name in inspect.signature(init).parameters})  # 0.5.18 takes the first alone
    return (False, True)


def _parsed(version: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
