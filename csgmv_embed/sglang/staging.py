"""Host buffers that one asynchronous copy takes to the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from csgmv_embed.batch import ALIGN, RING

Int32Array = npt.NDArray[np.int32]
SMALLEST = 4096  # elements of a host buffer that grows


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a plan lie in a buffer of 32-bit words; each starts on 64 bytes."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    total: int

    def host(self, words: Int32Array) -> list[Int32Array]:
        """Views of a host buffer."""
        return [words[start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)]

    def device(self, buffer: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Views of a device buffer, of the sizes that are in use, none larger than planned for."""
        cuts: list[int] = []
        places = []
        for planned, used in zip(self.sizes, sizes, strict=True):
            places.append(len(cuts))
            cuts.append(used)
            if used < (space := _padded(planned)):
                cuts.append(space - used)
        views = buffer.split_with_sizes(cuts)  # one call for all views; one slice each costs more
        return [views[place] for place in places]


@lru_cache(maxsize=1024)
def layout_of(sizes: tuple[int, ...]) -> Layout:
    """These arrays in this order. Decode steps have the same sizes again and again."""
    ends = tuple(itertools.accumulate(_padded(size) for size in sizes))
    return Layout(sizes, (0, *ends[:-1]), ends[-1])


class Staging:
    """RING pinned host buffers, taken in turn: the host fills one while the copy out of another is in flight."""

    def __init__(self, device: torch.device, elements: int = 0) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers = [self._empty(elements) for _ in range(RING)]
        self._copied: list[torch.cuda.Event | None] = [None] * RING
        self._views: list[list[Int32Array] | None] = [None] * RING
        self._turn = 0
        self._stream: tuple[int, torch.cuda.Stream] | None = None

    def next(self, elements: int) -> Int32Array:
        """A buffer of at least so many words that no copy reads any more; what is in it is undefined."""
        self._turn = (self._turn + 1) % RING
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # returns at once unless the GPU is RING batches behind
        if self._buffers[self._turn][1].size < elements:
            # torch keeps the old pinned memory until its last copy is done
            self._buffers[self._turn] = self._empty(1 << (max(elements, SMALLEST) - 1).bit_length())
        return self._buffers[self._turn][1]

    def next_views(self, layout: Layout) -> list[Int32Array]:
        """The arrays of `layout` in the next buffer; for a ring that only ever holds this layout."""
        words = self.next(layout.total)
        found = self._views[self._turn]
        if found is None:
            found = self._views[self._turn] = layout.host(words)
        return found

    def send(self, target: torch.Tensor) -> None:
        """Copy the first words of the buffer taken last into all of `target`, in the order of the current stream."""
        host, size = self._buffers[self._turn][0], target.shape[0]
        target.copy_(host if host.shape[0] == size else host[:size], non_blocking=True)
        if self._pinned:
            event = self._copied[self._turn] = self._copied[self._turn] or torch.cuda.Event()
            event.record(self._current_stream())

    def _empty(self, elements: int) -> tuple[torch.Tensor, Int32Array]:
        with torch.inference_mode(False):
            host = torch.zeros(elements, dtype=torch.int32, device="cpu", pin_memory=self._pinned)
        return host, host.numpy()

    def _current_stream(self) -> torch.cuda.Stream:
        """torch.cuda.current_stream costs more than planning a small batch: asked only when the stream has changed."""
        device = self._device.index if self._device.index is not None else torch.cuda.current_device()
        raw: int = torch._C._cuda_getCurrentRawStream(device)
        if self._stream is None or self._stream[0] != raw:
            self._stream = raw, torch.cuda.current_stream(device)
        return self._stream[1]


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
