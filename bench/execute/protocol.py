"""Messages between the runner of pairs and the worker of one side, and the interface of a side."""

from __future__ import annotations

from typing import Protocol

import msgspec

from bench.model.config import PlannedPoint
from bench.model.fields import Positive, Some
from bench.model.records import Environment, Status


class Begin(msgspec.Struct, tag=True):
    """Start a measuring process as a child of the worker, so that imports are paid for once.

    `ahead`: this many of the next ones are opened too, in parallel, and wait, because nothing may be opened while
    something is timed. `rehearse`: the points whose kernels each child loads while it opens.
    """

    process: int
    ahead: int = 0
    rehearse: PlannedPoint | None = None


class Begun(msgspec.Struct, tag=True):
    """The measuring process is ready; `library` is the file its csgmv_embed came from."""

    env: Environment
    library: str


class Prepare(msgspec.Struct, tag=True):
    """Lay out, capture and, in a process's first layout, verify. `extra_share`: additional launches, as a share."""

    planned: PlannedPoint
    layout_seed: int
    extra_share: float = 0.0


class Prepared(msgspec.Struct, tag=True):
    """The point is ready to be sampled, or why not. `lost`: the measuring process has ended."""

    status: Status
    reason: str | None = None
    nodes: int | None = None
    lost: bool = False


class Visit(msgspec.Struct, tag=True):
    """Take this many blocks of the prepared point."""

    blocks: int


class Visited(msgspec.Struct, tag=True):
    """Time of one call in us for each block, and the GPU's state after them."""

    blocks_us: Some[Positive]
    sm_mhz: int | None = None
    throttle: list[str] = []


class Finish(msgspec.Struct, tag=True):
    """End the measuring process."""


class Ended(msgspec.Struct, tag=True):
    """The measuring process has ended. `reason` is None if it was asked to."""

    reason: str | None = None


Request = Begin | Prepare | Visit | Finish


class SideLost(Exception):
    """A side's measuring process is gone. The message says how it ended."""


class Side(Protocol):
    """One side of a pair.

    Every call may raise SideLost. After that, and after `finish`, `begin` may be called again.
    """

    def begin(self, begin: Begin) -> Begun: ...

    def prepare(self, planned: PlannedPoint, layout_seed: int, extra_share: float) -> Prepared: ...

    def visit(self, blocks: int) -> Visited: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...
