"""Host buffers that one asynchronous copy takes to the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

Int32Array = npt.NDArray[np.int32]
ALIGN = 16  # elements: every array starts on 64 bytes, so Triton compiles one alignment only
SMALLEST = 4096  # elements of a host buffer that grows
LAP = 4  # host buffers that one event covers
LAPS = 2


@dataclass(frozen=True)
class Packing:
    """Where the arrays of a plan lie in a buffer of 32-bit words. Each starts at a multiple of 64 bytes."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    total: int
    cuts: tuple[int, ...]  # the sizes, and those of the gaps between
    places: tuple[int, ...]  # of the arrays among the cuts

    def host(self, words: Int32Array) -> list[Int32Array]:
        """Views of the arrays in a host buffer."""
        return [words[start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)]

    def device(self, buffer: torch.Tensor, used: Sequence[int] = ()) -> list[torch.Tensor]:
        """Views of the arrays in a device buffer.

        used: the used sizes of the shrinking arrays, at most the planned ones.
        """
        cuts = [*self.cuts]
        for place, size in zip(self.places, used, strict=False):
            cuts[place + 1] += cuts[place] - size
            cuts[place] = size
        views = buffer.split_with_sizes(cuts)  # one call for all views; one slice each costs more
        return [views[place] for place in self.places]


@lru_cache(maxsize=1024)
def packing_of(sizes: tuple[int, ...], shrinking: int = 0) -> Packing:
    """The packing of these arrays in this order. The first `shrinking` of them may be used in part.

    Cached, because decode steps have the same sizes again and again.
    """
    ends = tuple(itertools.accumulate(_padded(size) for size in sizes))
    cuts: list[int] = []
    places = []
    for at, size in enumerate(sizes):
        places.append(len(cuts))
        gap = _padded(size) - size
        cuts += (size, gap) if gap or at < shrinking else (size,)
    return Packing(sizes, (0, *ends[:-1]), ends[-1], tuple(cuts), tuple(places))


def host_memory(elements: int, *, pinned: bool) -> torch.Tensor:
    """Zeros in memory that can be copied to the device asynchronously."""
    with torch.inference_mode(False):
        return torch.zeros(elements, dtype=torch.int32, device="cpu", pin_memory=pinned)


class HostBuffer:
    """Pinned memory that holds one packing at a time."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self._packing: Packing | None = None

    def holds(self, packing: Packing) -> bool:
        """Make room for a packing; False if the memory is too small. Steps of the same size reuse their views."""
        if self._packing is packing:
            return True
        if self._memory.shape[0] < packing.total:
            return False
        self._packing = packing
        self.tensor = self._memory[: packing.total]
        self.words: Int32Array = self.tensor.numpy()
        self.views = packing.host(self.words)
        return True


class Staging:
    """Pinned host buffers, used in turn: the host fills one while earlier ones are still being copied.

    The ring is used in LAPS. One event for each lap, not for each copy, says when the buffers of a lap may be written
    again, because recording and querying an event costs as much as planning the segments.
    """

    def __init__(self, device: torch.device, elements: int = 0) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers = [HostBuffer(self._memory(elements)) for _ in range(LAPS * LAP)]
        self._copied: list[list[torch.cuda.Event]] = [[] for _ in range(LAPS)]  # events after the copies of each lap
        self._turn = -1
        self._stream: tuple[int, torch.cuda.Stream] | None = None  # of the last copy

    def next(self, packing: Packing) -> HostBuffer:
        """A buffer for `packing` that no copy reads any more. Its contents are undefined."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._turn % LAP == 0 and self._stream is not None:
            self._record((self._turn - 1) // LAP % LAPS)  # the lap that ends here
            self._wait(self._turn // LAP)
        buffer = self._buffers[self._turn]
        if not buffer.holds(packing):
            # torch keeps the old pinned memory until its last copy is done
            buffer = HostBuffer(self._memory(1 << (max(packing.total, SMALLEST) - 1).bit_length()))
            self._buffers[self._turn] = buffer
            buffer.holds(packing)
        return buffer

    def send(self, target: torch.Tensor) -> None:
        """Copy the buffer that `next` returned last to `target`, in the order of the current stream.

        `target` has the size of the buffer's packing.
        """
        if self._pinned:
            self._follow_stream()
        target.copy_(self._buffers[self._turn].tensor, non_blocking=True)

    def _memory(self, elements: int) -> torch.Tensor:
        return host_memory(elements, pinned=self._pinned)

    def _follow_stream(self) -> None:
        """An event of one stream says nothing of another: what was copied in the last one gets its own.

        torch.cuda.current_stream costs more than planning a small batch: asked only when the stream has changed.
        """
        device = self._device.index if self._device.index is not None else torch.cuda.current_device()
        raw: int = torch._C._cuda_getCurrentRawStream(device)
        if self._stream is None or self._stream[0] != raw:
            if self._stream is not None:
                self._record(self._turn // LAP)
            self._stream = raw, torch.cuda.current_stream(device)

    def _record(self, lap: int) -> None:
        assert self._stream is not None
        event = torch.cuda.Event()
        event.record(self._stream[1])
        self._copied[lap].append(event)

    def _wait(self, lap: int) -> None:
        for event in self._copied[lap]:
            event.synchronize()  # returns at once unless the GPU is LAP batches behind
        self._copied[lap].clear()


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
