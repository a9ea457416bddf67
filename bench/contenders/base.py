"""The one interface of every implementation under test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from bench.workload import Workload

# launch(k) runs the op once on index set k and returns its output; nothing else is timed.
Launch = Callable[[int], "torch.Tensor"]


class KernelRef(tuple[str, str]):
    """(module, attribute) of a Triton kernel object, so that the work clock can trace it."""


@dataclass(frozen=True)
class Preparation:
    """What the prepare clock times: `prepare` plans the workload's batch on the host and sends it to the device.

    `launch` runs the op on what the last `prepare` wrote, to verify it.
    """

    prepare: Callable[[], object]
    launch: Launch


class Contender(Protocol):
    """One implementation of the lookup, with its options fixed.

    `setup` does everything a serving engine does before the op (batch info, buffers, table storage);
    only the returned launch is timed. `static` asks for the buffers of a CUDA graph: fixed
    addresses, padded to the capacity a serving engine would have captured with.
    """

    name: str
    tolerance: float  # largest error allowed, relative to the oracle's largest value; 0 for a lookup, which copies

    def unavailable(self) -> str | None:
        """Why this contender cannot run here and how to get it, or None."""
        ...

    def setup(self, workload: Workload, *, static: bool) -> Launch: ...

    def preparation(self, workload: Workload) -> AbstractContextManager[Preparation] | None:
        """The planning of this batch in the buffers a captured graph would read; None if the contender plans nothing.

        Lists in, as a scheduler has them.
        """
        ...

    def required_bytes(self, workload: Workload) -> int:
        """Bytes one launch must move with this contender's storage, written output included."""
        ...

    def kernels(self) -> list[KernelRef]:
        """The Triton kernels a launch uses; empty if it uses none."""
        ...

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        """The exact result that launch(index_set) must give."""
        ...
