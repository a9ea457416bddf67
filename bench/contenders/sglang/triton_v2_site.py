"""SGLang's newest backend on linear layers: `forward_with_base`, and its two halves."""

from __future__ import annotations

from typing import Any

import torch

from bench.contenders.base import Launch
from bench.contenders.sglang.ops import offsets
from bench.contenders.sglang.site import ROUNDINGS, Part, SglangSite
from bench.contenders.sglang.triton_v2 import SglangTritonV2, bridge, kinds, plan_of
from bench.workload import shrunk_rows, sites
from bench.workload.tensors import Workload


class SglangTritonV2Site(SglangTritonV2):
    """Shrink and expand on a given base output, which replaces the product that the backend would run."""

    def __init__(self, part: Part) -> None:
        self.part, self.roundings, self.in_place = part, ROUNDINGS[part], part != "shrink"
        self._of_every_slot = False  # whether a shrink has left a plane a slot

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        if self.part == "shrink":
            return self._shrink(backend, workload)
        return _linear(backend, workload) if self.part == "linear" else _expand(backend, workload)

    def _shrink(self, backend: Any, workload: Workload) -> Launch:
        x, tables, shape = workload.given("x"), workload.all_site_tables(), sites.shape_of(workload.case)
        runner, kind = backend.runner, kinds().LINEAR
        runner.workspace = _OwnRows(runner.workspace)

        def launch(k: int) -> torch.Tensor:
            plan = plan_of(runner, kind, workload, shape.features)
            found = runner.run_a(x[k], tables[k][0], stack=shape.slices, plan=plan)
            self._of_every_slot = found.slot_planes
            rows: torch.Tensor = found.tensor
            return rows

        return launch

    def required_bytes(self, workload: Workload) -> int:
        return SglangSite(self.part, "triton").required_bytes(workload)

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        if self.part != "shrink":
            return output
        if self._of_every_slot:
            slots = torch.from_numpy(workload.token_slots()).to(workload.device).long()
            output = output[slots, torch.arange(workload.num_tokens, device=workload.device)]
        elif output.dim() == 3:  # parts of the sum, which the expand adds up
            output = output.sum(0).to(workload.dtype)
        return shrunk_rows.packed(workload, output, back=True)


def _linear(backend: Any, workload: Workload) -> Launch:
    x, base, tables = workload.given("x"), workload.given("base"), workload.all_site_tables()
    bounds, starts = offsets(workload), sites.shape_of(workload.case).starts

    def launch(k: int) -> torch.Tensor:
        out: torch.Tensor = backend.forward_with_base(None, x[k], lambda: base[k], *tables[k], bounds, starts)
        return out

    return launch


def _expand(backend: Any, workload: Workload) -> Launch:
    base, tables, shape = workload.given("base"), workload.all_site_tables(), sites.shape_of(workload.case)
    shrunk = [bridge(shrunk_rows.packed(workload, rows)) for rows in workload.given("shrunk")]
    runner, kind = backend.runner, kinds().LINEAR

    def launch(k: int) -> torch.Tensor:
        plan = plan_of(runner, kind, workload, shape.features)
        out: torch.Tensor = runner.run_b(shrunk[k], tables[k][1], base[k], offsets=shape.starts, plan=plan)
        return out

    return launch


class _OwnRows:
    """SGLang's workspace, but for the shrunk rows: they are the result of a launch, which the next may not write."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    def tensor(self, name: str, shape: tuple[int, ...], **options: Any) -> torch.Tensor:
        if name.startswith("dense:bridge"):
            return torch.empty(shape, dtype=options["dtype"], device=options["device"])
        found: torch.Tensor = self._workspace.tensor(name, shape, **options)
        return found
