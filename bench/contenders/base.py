"""The interface of every implementation under test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.model.case import Case, DType
from bench.model.sources import LIBRARY
from bench.workload import oracle, sites

if TYPE_CHECKING:
    import torch

    from bench.workload.tensors import Workload

# launch(k) runs the op once on index set k and returns its output, allocated or given; nothing else is timed.
Launch = Callable[[int], "torch.Tensor"]


class KernelRef(tuple[str, str]):
    """(module, attribute) of a Triton kernel object, which the work clock traces."""


@dataclass(frozen=True)
class Preparation:
    """What the prepare clock times: `prepare` plans the workload's batch on the host and sends it to the device.

    `launch` runs the op on what the last `prepare` wrote, in order to verify it.
    """

    prepare: Callable[[], object]
    launch: Launch


class Contender(Protocol):
    """One implementation of an op, with its options fixed.

    `setup` does everything that a serving engine does before the op (batch info, buffers, table storage). Only the
    launch that it returns is timed. `static` asks for the buffers of a CUDA graph: fixed addresses, padded to the
    capacity that a serving engine would have captured.
    """

    name: str
    in_place: bool  # adds into an output that it is given: a second launch on the same index set adds again

    def tolerance(self, case: Case) -> float:
        """Largest error allowed, relative to the oracle's largest value. 0 for a lookup, which only copies."""
        ...

    def unavailable(self) -> str | None:
        """Why this contender cannot run here and how to install it; None if it can run."""
        ...

    def setup(self, workload: Workload, *, static: bool) -> Launch: ...

    def preparation(self, workload: Workload) -> AbstractContextManager[Preparation] | None:
        """The planning of this batch into the buffers that a captured graph reads. None if the contender plans nothing.

        Its inputs are lists, as a scheduler has them.
        """
        ...

    def required_bytes(self, workload: Workload) -> int:
        """Bytes that one launch must move with this contender's storage, including the written output."""
        ...

    def kernels(self) -> list[KernelRef]:
        """The Triton kernels a launch uses; empty if it uses none."""
        ...

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        """The exact result that launch(index_set) must give, in float64 or in the dtype of the case."""
        ...

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        """A launch's output in the oracle's layout: a shrink's columns in one order, and zero where nothing is stored.

        This is not timed.
        """
        ...


class LookupOp:
    """What all contenders of the lookup share."""

    in_place = False

    def tolerance(self, case: Case) -> float:
        return 0.0

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        return oracle.exact(workload, index_set)

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return output


class Absent(LookupOp):
    """A contender of the library, where the library is missing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def unavailable(self) -> str:
        return f"{LIBRARY} is not here; expected it in the checkout, or installed"


# Largest relative error of rounding once to a dtype: half a step of its significand of 8, 11 or 24 bits.
UNIT_ROUNDOFF: dict[DType, float] = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
TF32_ROUNDOFF = 2.0**-11  # of each factor, where a kernel multiplies float32 in the tensor cores' own format


class ProductOp:
    """What the contenders of all ops but the lookup share. A subclass says how often its results are rounded.

    roundings  times that a value of the size of the result is rounded to the dtype of the case on its way
    tf32       whether float32 products are taken in TF32, which is Triton's default
    """

    in_place = False
    roundings: int
    tf32 = False

    def tolerance(self, case: Case) -> float:
        """A unit roundoff for each rounding, plus float32's for each term of the sums in between.

        A rounding of v errs by at most v times the unit roundoff. No v exceeds the oracle's largest value by more than
        the slack that summation needs in theory and does not use.
        """
        terms = sites.terms(case) if case.site != "none" else case.rank + case.hidden
        product = 2 * TF32_ROUNDOFF if self.tf32 and case.dtype == "float32" else 0.0
        return self.roundings * UNIT_ROUNDOFF[case.dtype] + terms * UNIT_ROUNDOFF["float32"] + product

    def preparation(self, workload: Workload) -> None:
        """None: a batch is planned once for all ops, and the prepare clock times that with the lookup."""
        return None

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        return oracle.exact(workload, index_set)

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return output
