"""What SGLang's layer and head contenders share: a backend's kernels, and setting a backend up on a batch."""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import torch

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.sglang.csgmv import SglangCsgmv
from bench.contenders.sglang.peers import DEFAULT_CHUNK_SIZE, Peer
from bench.contenders.sglang.triton import SglangTriton
from bench.workload import sites
from bench.workload.tensors import Workload

Backend = Literal["csgmv", "triton"]
Part = Literal["lookup", "shrink", "expand"]


@dataclass(frozen=True)
class BackendKernels:
    """A backend of SGLang: the peer of its lookup, and the modules and kernels of its other parts."""

    peer: Peer
    shrink: tuple[str, str]
    expand: tuple[str, str]

    def kernels(self, parts: tuple[Part, ...]) -> list[KernelRef]:
        names = {"lookup": self.peer.kernel, "shrink": self.shrink, "expand": self.expand}
        return [self.peer.kernel_ref(*names[part]) for part in parts]


BACKENDS: dict[Backend, BackendKernels] = {
    "csgmv": BackendKernels(
        SglangCsgmv.peer,
        shrink=("chunked_sgmv_shrink", "_chunked_lora_shrink_kernel"),
        expand=("chunked_sgmv_expand", "_chunked_lora_expand_kernel"),
    ),
    "triton": BackendKernels(
        SglangTriton.peer,
        shrink=("sgemm_lora_a", "_sgemm_lora_a_kernel"),
        expand=("sgemm_lora_b", "_sgemm_lora_b_kernel"),
    ),
}


class SglangOp(ProductOp):
    """A backend object of SGLang, prepared by its own `prepare_lora_batch`. A subclass calls its methods.

    SGLang's kernels round three times: shrunk rows, the product with B, and the sum with the base.
    """

    parts: ClassVar[tuple[Part, ...]]
    tf32 = True

    def __init__(self, backend: Backend, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
        self.name = f"sglang_{backend}" + (f"-chunk{chunk_size}" if backend == "csgmv" else "")
        self.of_backend, self.chunk_size = BACKENDS[backend], chunk_size

    def unavailable(self) -> str | None:
        return self.of_backend.peer.unavailable()

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        backend = self.of_backend.peer.prepare(workload, static=static, chunk_size=self.chunk_size)
        launch = self.launch_on(backend, workload)
        return launch if workload.device.type == "cuda" else _without_gpu_name(launch, self.kernels())

    @abstractmethod
    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        """The launch on the batch that `backend` prepared last."""

    def kernels(self) -> list[KernelRef]:
        return self.of_backend.kernels(self.parts)


def offsets(workload: Workload) -> torch.Tensor:
    """SGLang's boundaries of the output, for one slice or for those that a site stacks."""
    case = workload.case
    bounds = (0, workload.out_features) if case.site == "none" else sites.shape_of(case).starts
    return torch.tensor(bounds, dtype=torch.int32, device=workload.device)


def boundaries(workload: Workload) -> dict[str, torch.Tensor]:
    """The offsets as an expand takes them: on the device. From 0.5.22 on also on the host, for a grid of exact size."""
    on_device = offsets(workload)
    return {"output_offset": on_device, "output_offset_cpu": on_device.cpu()}


def _without_gpu_name(launch: Launch, kernels: list[KernelRef]) -> Launch:
    """The launch where no GPU has a name, by which csgmv looks for tuned configurations: it finds none.

    0.5.10 has no such configurations, and asks for no name.
    """
    name = f"{kernels[0][0].rpartition('.')[0]}.lora_tuning_config"
    if importlib.util.find_spec(name) is None:
        return launch
    tuning = importlib.import_module(name)
    named: Callable[[], str] = lambda: "none"  # noqa: E731

    @wraps(launch)
    def hosted(index_set: int) -> torch.Tensor:
        with patch.object(tuning, "get_device_name", named):
            return launch(index_set)

    return hosted
