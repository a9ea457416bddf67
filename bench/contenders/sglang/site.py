"""SGLang's LoRA on linear layers: the calls that its layer classes make to their backend, and the halves of them.

Its shrunk rows are packed: slice i of a row begins at i times the rank of the row's slot.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch

from bench.contenders.base import KernelRef, Launch
from bench.contenders.sglang.ops import Backend, SglangOp, boundaries
from bench.contenders.sglang.peers import DEFAULT_CHUNK_SIZE
from bench.workload import shrunk_rows, sites, traffic
from bench.workload.tensors import Workload

Part = Literal["shrink", "expand", "linear"]
# Values of the result's size that are rounded: the shrunk rows, the product with B, the sum with the base.
ROUNDINGS: dict[Part, int] = {"shrink": 1, "expand": 2, "linear": 3}
# The triton backend has an expand of its own for stacked layers.
STACKED = (("qkv_lora_b", "_qkv_lora_b_kernel"), ("gate_up_lora_b", "_gate_up_lora_b_kernel"))


class SglangSite(SglangOp):
    """run_qkv_lora, run_gate_up_lora, or run_lora_a_sgemm and run_lora_b_sgemm, as a layer of the site calls them."""

    def __init__(self, part: Part, backend: Backend, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(backend, chunk_size)
        self.part, self.backend = part, backend
        self.roundings, self.in_place = ROUNDINGS[part], part != "shrink"

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        if self.part == "linear":
            return _linear(backend, workload)
        return _shrink(backend, workload) if self.part == "shrink" else _expand(backend, workload)

    def required_bytes(self, workload: Workload) -> int:
        """The least bytes of the op; for both launches also the shrunk rows, written and read in between."""
        between = 2 * traffic.shrunk_of_site(workload) if self.part == "linear" else 0
        return traffic.minimum(workload) + between

    def kernels(self) -> list[KernelRef]:
        """The kernels of every site, because the site decides which of triton's expands runs."""
        found = self.of_backend.kernels(("shrink", "expand") if self.part == "linear" else (self.part,))
        stacked = STACKED if self.backend == "triton" and self.part != "shrink" else ()
        return found + [self.of_backend.peer.kernel_ref(*names) for names in stacked]

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return shrunk_rows.packed(workload, output, back=True) if self.part == "shrink" else output


def _linear(backend: Any, workload: Workload) -> Launch:
    x, base, tables = workload.given("x"), workload.given("base"), workload.all_site_tables()
    bounds, shape, site = boundaries(workload), sites.shape_of(workload.case), workload.case.site

    def qkv(k: int) -> torch.Tensor:
        a, b = tables[k]
        out: torch.Tensor = backend.run_qkv_lora(
            x=x[k], qkv_lora_a=a, qkv_lora_b=b, base_output=base[k], max_qkv_out_dim=max(shape.widths), **bounds
        )
        return out

    def gate_up(k: int) -> torch.Tensor:
        a, b = tables[k]
        out: torch.Tensor = backend.run_gate_up_lora(
            x=x[k], gate_up_lora_a=a, gate_up_lora_b=b, base_output=base[k], **bounds
        )
        return out

    def one_slice(k: int) -> torch.Tensor:
        a, b = tables[k]
        shrunk = backend.run_lora_a_sgemm(x[k], a)
        out: torch.Tensor = backend.run_lora_b_sgemm(x=shrunk, weights=b, base_output=base[k], **bounds)
        return out

    return {"qkv": qkv, "gate_up": gate_up}.get(site, one_slice)


def _shrink(backend: Any, workload: Workload) -> Launch:
    x, tables, slices = workload.given("x"), workload.all_site_tables(), sites.shape_of(workload.case).slices
    return lambda k: backend.run_lora_a_sgemm(x[k], tables[k][0], stack_num=slices)


def _expand(backend: Any, workload: Workload) -> Launch:
    """The call of the backend's method, or for stacked layers the one inside it: they have no method of their own."""
    base, tables, site = workload.given("base"), workload.all_site_tables(), workload.case.site
    shrunk = [shrunk_rows.packed(workload, rows) for rows in workload.given("shrunk")]
    bounds, shape = boundaries(workload), sites.shape_of(workload.case)
    functions = importlib.import_module(type(backend).__module__)

    def one_slice(k: int) -> torch.Tensor:
        out: torch.Tensor = backend.run_lora_b_sgemm(x=shrunk[k], weights=tables[k][1], base_output=base[k], **bounds)
        return out

    if shape.slices == 1:
        return one_slice
    if hasattr(functions, "chunked_sgmv_lora_expand_forward"):
        run, info = functions.chunked_sgmv_lora_expand_forward, backend.batch_info
        given = {"slice_offsets": bounds["output_offset"], "max_slice_size": max(shape.widths)}
        if "slice_offsets_cpu" in run.__code__.co_varnames:  # 0.5.22
            given["slice_offsets_cpu"] = bounds["output_offset_cpu"]
        return lambda k: run(x=shrunk[k], weights=tables[k][1], batch_info=info, base_output=base[k], **given)
    info = backend._sgemm_info()
    if site == "qkv":
        more = (bounds["output_offset"], max(shape.widths))
        return lambda k: functions.qkv_lora_b_fwd(shrunk[k], tables[k][1], info, *more, base[k])
    return lambda k: functions.gate_up_lora_b_fwd(shrunk[k], tables[k][1], info, max(shape.widths), base[k])
