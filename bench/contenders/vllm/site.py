"""vLLM's LoRA on linear layers: its lora_shrink and lora_expand on its LoRAKernelMeta, as PunicaWrapperGPU calls them.

vLLM keeps a table a slice, filled up with zeros to the largest rank, and B times the scaling. Its shrunk rows are of
float32, (slices, tokens, rank), and cleared before each shrink; its grid has a plane for every slot, and one more.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.model.case import ELEMENT_BYTES
from bench.workload import shrunk_rows, sites, traffic
from bench.workload.tensors import Workload

Part = Literal["shrink", "expand", "linear"]
# Values of the result's size that are rounded: B times the scaling, the shrunk rows, the product with B, the sum.
ROUNDINGS: dict[Part, int] = {"shrink": 1, "expand": 4, "linear": 4}
PACKAGE = "vllm.lora.ops.triton_ops"
SHRUNK_BYTES = 4
ADVICE = "pip install --no-deps vllm==0.33.0"
# By the addresses of tables, which another point's tables may have again: vLLM allocates its own once.
KEPT = ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT")


class Tables(NamedTuple):
    """Of one index set, a tensor a slice: a (slots, rank, features), b (slots, width, rank)."""

    a: list[torch.Tensor]
    b: list[torch.Tensor]


class VllmSite(ProductOp):
    """In place; the buffer between shrink and expand is allocated in every call, as vLLM does."""

    name = "vllm"

    def __init__(self, part: Part) -> None:
        self.part, self.roundings, self.in_place = part, ROUNDINGS[part], part != "shrink"

    def unavailable(self) -> str | None:
        try:
            installed = importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            return f"vllm is not installed: {ADVICE}"
        try:
            importlib.import_module(f"{PACKAGE}.lora_kernel_metadata")
            made = [hasattr(getattr(importlib.import_module(module), name), "fn") for module, name in self.kernels()]
        except Exception as error:  # a broken install can raise anything at import; the reason is the result
            return f"vllm {installed} does not load {PACKAGE}: {type(error).__name__}: {error}; try {ADVICE}"
        return None if all(made) else f"vllm {installed} found no Triton driver; without a GPU: CUDA_VISIBLE_DEVICES=''"

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` changes nothing: metadata have fixed addresses, and a call sees them to its own tokens.

        Every table is used once here: vLLM then keeps what it sends to the GPU about it, which no graph may record.
        """
        if workload.case.dtype == "float32":
            raise ValueError("vLLM's LoRA kernels take float16 and bfloat16; expected a case of one of them")
        utils = importlib.import_module(f"{PACKAGE}.utils")
        for name in KEPT:
            getattr(utils, name, {}).clear()
        launch = self._launch_on(workload, _metadata(workload))
        for index in range(len(workload.index_sets)):
            launch(index)
        return launch

    def _launch_on(self, workload: Workload, metadata: tuple[Any, ...]) -> Launch:
        case, shape, tables = workload.case, sites.shape_of(workload.case), _tables(workload)
        run_shrink, run_expand = (_function(part, workload.device) for part in ("shrink", "expand"))

        def shrink(k: int) -> torch.Tensor:
            buffer = x[k].new_empty(shape.slices, workload.num_tokens, case.rank, dtype=torch.float32)
            run_shrink(x[k], tables[k].a, buffer, *metadata, 1.0)
            return buffer

        def expand(k: int) -> torch.Tensor:
            return _added(k, shrunk[k])

        def linear(k: int) -> torch.Tensor:
            return _added(k, shrink(k))

        def _added(k: int, rows: torch.Tensor) -> torch.Tensor:
            run_expand(rows, tables[k].b, base[k], *metadata, offset_start=0, add_inputs=True)
            return base[k]

        x = workload.given("x") if self.part != "expand" else []
        base = workload.given("base") if self.part != "shrink" else []
        if self.part == "expand":
            shrunk = [
                _planes(shrunk_rows.without_rest(workload, rows), shape.slices) for rows in workload.given("shrunk")
            ]
        return {"shrink": shrink, "expand": expand, "linear": linear}[self.part]

    def required_bytes(self, workload: Workload) -> int:
        """Input, tables to the largest rank, shrunk rows cleared, written and read, output read and written."""
        case, shape = workload.case, sites.shape_of(workload.case)
        ranks = case.rank * len(set(workload.seq_slots[workload.ranks[workload.seq_slots] > 0].tolist()))
        element, live = ELEMENT_BYTES[case.dtype], traffic.live_tokens(workload)
        plane = shape.slices * case.rank * SHRUNK_BYTES
        shrink = traffic.inputs_of_site(workload) + ranks * shape.slices * shape.features * element
        shrink += (workload.num_tokens + live) * plane
        expand = live * plane + ranks * shape.out_features * element + 2 * live * shape.out_features * element
        return {"shrink": shrink, "expand": expand, "linear": shrink + expand}[self.part]

    def kernels(self) -> list[KernelRef]:
        parts = ("shrink", "expand") if self.part == "linear" else (self.part,)
        return [KernelRef((f"{PACKAGE}.lora_{part}_op", f"_lora_{part}_kernel")) for part in parts]

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        if self.part != "shrink":
            return output
        return output.permute(1, 0, 2).reshape(workload.num_tokens, -1).to(workload.dtype)


def _metadata(workload: Workload) -> tuple[Any, ...]:
    """What vLLM's update_metadata leaves for its kernels; tokens without an adapter have slot -1."""
    meta_class = importlib.import_module(f"{PACKAGE}.lora_kernel_metadata").LoRAKernelMeta
    slots = workload.token_slots()
    slots[workload.ranks[slots] == 0] = -1
    meta = meta_class.make(workload.num_slots, workload.num_tokens, device=workload.device)
    meta.prepare_tensors(torch.from_numpy(slots).to(workload.device))
    options = {"specialize_active_lora": False}  # vLLM's default
    known = inspect.signature(meta.meta_args).parameters
    found: tuple[Any, ...] = meta.meta_args(
        workload.num_tokens, **{name: value for name, value in options.items() if name in known}
    )
    return found


def _tables(workload: Workload) -> list[Tables]:
    """For each index set; those that share tables share these."""
    made: dict[int, Tables] = {}
    found = []
    for index in range(len(workload.index_sets)):
        a_table, b_table = workload.site_tables(index)
        if a_table.data_ptr() not in made:
            made[a_table.data_ptr()] = _apart(workload, a_table, b_table)
        found.append(made[a_table.data_ptr()])
    return found


def _apart(workload: Workload, a_table: torch.Tensor, b_table: torch.Tensor) -> Tables:
    case, shape = workload.case, sites.shape_of(workload.case)
    a = [a_table.new_zeros(workload.num_slots, case.rank, shape.features) for _ in shape.widths]
    b = [b_table.new_zeros(workload.num_slots, width, case.rank) for width in shape.widths]
    for slot, rank in enumerate(workload.ranks.tolist()):
        for piece, (first, end) in enumerate(pairwise(shape.starts)):
            a[piece][slot, :rank] = a_table[slot, piece * rank : (piece + 1) * rank]
            b[piece][slot, :, :rank] = b_table[slot, first:end, :rank] * workload.scalings[slot]
    return Tables(a, b)


def _planes(rows: torch.Tensor, slices: int) -> torch.Tensor:
    """Shrunk rows as vLLM keeps them: (slices, tokens, rank) float32."""
    return rows.view(rows.shape[0], slices, -1).permute(1, 0, 2).float().contiguous()


def _function(part: str, device: torch.device) -> Any:
    """vLLM's registered op; on a CPU, for which it registers none, the function in it."""
    module = importlib.import_module(f"{PACKAGE}.lora_{part}_op")
    return getattr(module, f"_lora_{part}" if device.type == "cpu" else f"lora_{part}")
