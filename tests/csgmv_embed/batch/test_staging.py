"""Host buffers against a GPU that does nothing until it is waited for, and the views of a packing."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from csgmv_embed.batch.staging import LAP, Staging, packing_of


class LazyGpu:
    """Streams by number; `work` counts what is queued on each, `done` what a synchronised event says is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.waits: list[int] = []  # how much was queued after what was waited for
        self.work: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.copies: list[tuple[int, int, int]] = []  # address, stream, place in the stream's work
        gpu = self

        class Event:
            def record(self, stream: SimpleNamespace) -> None:
                self.stream, self.place = stream.number, gpu.work.get(stream.number, 0)

            def synchronize(self) -> None:
                gpu.waits.append(gpu.work[self.stream] - self.place)
                gpu.done[self.stream] = max(gpu.done.get(self.stream, 0), self.place)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(number=self.current))
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: self.current, raising=False)

    def copy_(self, source: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.work[self.current] = self.work.get(self.current, 0) + 1
        self.copies.append((source.data_ptr(), self.current, self.work[self.current]))

    def still_reads(self, buffer: torch.Tensor) -> bool:
        return any(
            address == buffer.data_ptr() and self.done.get(stream, 0) < place for address, stream, place in self.copies
        )


@pytest.fixture
def staging() -> Staging:
    """One that takes the GPU to be there, in memory that is not pinned."""
    found = Staging(torch.device("cpu"), 64)
    found._device, found._pinned = torch.device("cuda", 0), True
    return found


@pytest.mark.parametrize("streams", [1, 3])
def test_no_buffer_is_handed_out_while_a_copy_reads_it(
    streams: int, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu: Any = LazyGpu(monkeypatch)
    chance = random.Random(3)
    packing = packing_of((40,))
    steps = 400
    for _ in range(steps):
        assert not gpu.still_reads(staging.next(packing).tensor)
        if chance.random() < 0.3:
            gpu.current = chance.randrange(streams)
        if chance.random() < 0.9:  # else planning has failed
            staging.send(gpu)
    if streams == 1:
        assert 0 < len(gpu.waits) <= steps / LAP
        assert min(gpu.waits) > 0  # never for the batch before


def test_a_larger_layout_gets_other_memory() -> None:
    staging = Staging(torch.device("cpu"))
    for sizes in ((5,), (70_000, 3), (5,)):
        target = torch.empty(packing_of(sizes).total, dtype=torch.int32)
        for step in range(10):
            for view in staging.next(packing_of(sizes)).views:
                view[:] = step
            staging.send(target)
            assert all((view == step).all() for view in packing_of(sizes).device(target))


@pytest.mark.parametrize("used", [(), (0, 0), (3, 16), (17, 1)])
def test_device_views_are_the_host_views_cut_to_what_is_used(used: tuple[int, ...]) -> None:
    packing = packing_of((17, 16, 0, 5, 32), shrinking=2)
    buffer = torch.arange(packing.total, dtype=torch.int32)
    views = packing.device(buffer, used)
    assert [len(view) for view in views] == [*used, *packing.sizes[len(used) :]]
    for view, host, start in zip(views, packing.host(buffer.numpy()), packing.starts, strict=True):
        assert start % 16 == 0 and view.tolist() == host.tolist()[: len(view)]
