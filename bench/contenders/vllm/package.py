"""What the vLLM contenders share: the installed package, its metadata of a batch, its two kernels.

vLLM keeps a table for each module or slice, padded with zeros to the largest rank, and B times the scaling. The grid of
both kernels has a plane for every slot and one more. With `--specialize-active-lora` it has as many planes as adapters
in use, where requests without adapter count as one, rounded up to a number that a graph was captured for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.workload.tensors import Workload

Grid = Literal["all", "specialized"]
PACKAGE = "vllm.lora.ops.triton_ops"
SHRUNK_BYTES = 4  # of float32, in which the shrunk rows of linear layers and lm_head are kept
ADVICE = "pip install --no-deps vllm==0.33.0"
# By the addresses of tables, which another point's tables may have again: vLLM allocates its own once.
KEPT = ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT")


def unavailable(modules: Sequence[str], kernels: Sequence[KernelRef]) -> str | None:
    """Why the installed vLLM cannot run these, with the install line; None if it can. Imports vLLM's kernels."""
    try:
        installed = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return f"vllm is not installed: {ADVICE}"
    try:
        for module in modules:
            importlib.import_module(module)
        made = [hasattr(getattr(importlib.import_module(module), name), "fn") for module, name in kernels]
    except Exception as error:  # a broken install can raise anything at import; the reason is the result
        return f"vllm {installed} does not load {PACKAGE}: {type(error).__name__}: {error}; try {ADVICE}"
    return None if all(made) else f"vllm {installed} found no Triton driver; without a GPU: CUDA_VISIBLE_DEVICES=''"


class VllmOp(ProductOp):
    """An op of vLLM's kernels. A subclass says which, and launches it on the metadata of the batch."""

    parts: tuple[Literal["shrink", "expand"], ...]

    def __init__(self, grid: Grid = "all") -> None:
        self.grid: Grid = grid
        self.name = "vllm" if grid == "all" else f"vllm_{grid}"

    def unavailable(self) -> str | None:
        return unavailable([f"{PACKAGE}.lora_kernel_metadata"], self.kernels())

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` has no effect: metadata have fixed addresses, and a call sees only the entries of its own tokens.

        Every table is used once here. vLLM then keeps what it sends to the GPU about it, which no graph may record.
        """
        if workload.case.dtype == "float32":
            raise ValueError("vLLM's LoRA kernels take float16 and bfloat16; expected a case of one of them")
        utils = importlib.import_module(f"{PACKAGE}.utils")
        for name in KEPT:
            getattr(utils, name, {}).clear()
        launch = self.launch_on(workload, Kernels(workload, self.grid))
        for index in range(len(workload.index_sets)):
            launch(index)
        return launch

    def launch_on(self, workload: Workload, kernels: Kernels) -> Launch:
        raise NotImplementedError

    def kernels(self) -> list[KernelRef]:
        return [KernelRef((f"{PACKAGE}.lora_{part}_op", f"_lora_{part}_kernel")) for part in self.parts]


class Kernels:
    """Shrink and expand on the metadata of a batch, as PunicaWrapperGPU calls them."""

    def __init__(self, workload: Workload, grid: Grid) -> None:
        self._metadata = _metadata(workload, grid)
        self._shrink, self._expand = (_function(part, workload.device) for part in ("shrink", "expand"))

    def shrink(self, x: torch.Tensor, a: Sequence[torch.Tensor]) -> torch.Tensor:
        """(slices, tokens, rank) float32, in a buffer that is allocated and cleared in every call, as vLLM does."""
        buffer = x.new_empty(len(a), x.shape[0], a[0].shape[-2], dtype=torch.float32)
        self._shrink(x, a, buffer, *self._metadata, 1.0)
        return buffer

    def expand(self, rows: torch.Tensor, b: Sequence[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
        """The base, with the products of the slices added to it."""
        self._expand(rows, b, base, *self._metadata, offset_start=0, add_inputs=True)
        return base


def padded(workload: Workload, table: torch.Tensor, rank_axis: int) -> torch.Tensor:
    """A table (slots, ...) that is zero beyond the rank of each slot. `rank_axis` is an axis of one slot's part."""
    if (workload.ranks == workload.case.rank).all():
        return table
    copy = table.clone(memory_format=torch.preserve_format)
    for slot, rank in enumerate(workload.ranks.tolist()):
        copy[slot].narrow(rank_axis, rank, copy[slot].shape[rank_axis] - rank).zero_()
    return copy


def scaled_b(workload: Workload) -> torch.Tensor:
    """B (slots, out_features, rank) of embedding or lm_head, padded and multiplied by the scaling of its slot."""
    table = padded(workload, workload.weight("b"), 1).clone()
    for slot, scaling in enumerate(workload.scalings):
        table[slot].mul_(scaling)
    return table


def token_slots(workload: Workload) -> torch.Tensor:
    """The slot of each token; -1 without adapter."""
    slots = workload.token_slots()
    slots[workload.ranks[slots] == 0] = -1
    return torch.from_numpy(slots).to(workload.device)


def used_slots(workload: Workload) -> int:
    """Number of adapters in the batch."""
    return len(set(workload.seq_slots[workload.ranks[workload.seq_slots] > 0].tolist()))


def captured_counts(slots: int) -> list[int]:
    """The numbers of adapters that vLLM captures graphs for if it specialises on them: powers of two, and all.

    Equals get_captured_lora_counts of vllm/lora/utils.py, which is not imported because that imports all of vLLM's
    layers.
    """
    return sorted({1 << bit for bit in range((slots + 1).bit_length())} | {slots + 1})


def _metadata(workload: Workload, grid: Grid) -> tuple[Any, ...]:
    """What vLLM's update_metadata leaves for its kernels. Requests without an adapter need no slot there."""
    meta_class = importlib.import_module(f"{PACKAGE}.lora_kernel_metadata").LoRAKernelMeta
    slots = workload.case.adapters
    made: dict[str, Any] = {"captured_lora_counts": captured_counts(slots)} if grid != "all" else {}
    meta = meta_class.make(slots, workload.num_tokens, device=workload.device, **made)
    meta.prepare_tensors(token_slots(workload))
    options = {"specialize_active_lora": grid != "all"}
    known = inspect.signature(meta.meta_args).parameters
    found: tuple[Any, ...] = meta.meta_args(
        workload.num_tokens, **{name: value for name, value in options.items() if name in known}
    )
    return found


def _function(part: str, device: torch.device) -> Any:
    """vLLM's registered op; on a CPU, for which it registers none, the function in it."""
    module = importlib.import_module(f"{PACKAGE}.lora_{part}_op")
    return getattr(module, f"_lora_{part}" if device.type == "cpu" else f"lora_{part}")
