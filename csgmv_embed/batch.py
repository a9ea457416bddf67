"""EmbeddingBatch: which adapter each token of a batch uses, planned on the host, held on the device.

A batch has two descriptions of the same thing, and the kernels read either:

csgmv's structure   `permutation` groups the tokens by slot, stable; each group is cut into segments of at most
                    `chunk_size` tokens; segment g is permutation[seg_indptr[g] : seg_indptr[g+1]], slot seg_slots[g].
token words         token_adapters[t] = slot << 16 | rank; 0 where the token has no LoRA.

All arrays are int32 and lie in one buffer, so a refill is one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csgmv_embed.errors import CapacityError, ShapeError, SlotError

MAX_SLOTS = 1 << 15
MAX_RANK = (1 << 16) - 1
ALIGN = 16  # elements: every array starts on 64 bytes, so Triton compiles one alignment only
RING = 2  # staging buffers: the host fills one while the copy out of the other is in flight

Ints = Sequence[int] | npt.NDArray[np.integer[Any]]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchCapacity:
    """What static buffers can hold."""

    max_tokens: int
    max_sequences: int
    slots: int
    chunk_size: int

    @property
    def max_segments(self) -> int:
        """Most segments any batch can need: full chunks, and one ragged chunk for each slot in use."""
        return self.max_tokens // self.chunk_size + min(self.slots, self.max_sequences, self.max_tokens)


@dataclass
class _Staging:
    """One host buffer and the event after which it may be overwritten."""

    buffer: torch.Tensor
    copied: torch.cuda.Event | None = None


class EmbeddingBatch:
    """The adapters of a batch of tokens, on `device`.

    Made by `build` (exact size), `allocate` + `refill` (static buffers of a CUDA graph), or
    `from_sglang` (a view of SGLang's LoRABatchInfo). Device arrays, all int32 unless from SGLang:
    permutation (tokens,), seg_indptr (segments + 1,), seg_slots (segments,), ranks (slots,) and
    token_adapters (tokens,), which is None for a batch that came from SGLang.
    """

    def __init__(
        self,
        *,
        permutation: torch.Tensor | None,
        seg_indptr: torch.Tensor,
        seg_slots: torch.Tensor,
        ranks: torch.Tensor,
        token_adapters: torch.Tensor | None,
        chunk_size: int,
        num_tokens: int | None,
        max_tokens: int | None,
        num_segments: int,
        max_rank: int | None,
    ) -> None:
        self.permutation = permutation
        self.seg_indptr = seg_indptr
        self.seg_slots = seg_slots
        self.ranks = ranks
        self.token_adapters = token_adapters
        self.chunk_size = chunk_size
        self.num_tokens = num_tokens  # None: not known on the host
        self.max_tokens = max_tokens  # None: not a static batch
        self.num_segments = num_segments
        self.max_rank = max_rank  # largest rank in use; None: not known on the host
        self._capacity: BatchCapacity | None = None
        self._device_buffer: torch.Tensor | None = None
        self._staging: list[_Staging] = []
        self._turn = 0

    @property
    def static(self) -> bool:
        """Whether the buffers have a capacity and may hold fewer tokens than they are launched for."""
        return self.max_tokens is not None

    @property
    def device(self) -> torch.device:
        return self.seg_indptr.device

    @classmethod
    def build(
        cls,
        seq_lens: Ints,
        seq_slots: Ints,
        ranks: Ints,
        *,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Plan one batch into buffers of exactly its size.

        seq_lens, seq_slots (sequences,): tokens and slot of each sequence; ranks (slots,), 0 = no LoRA.
        Raises ShapeError, SlotError on bad values.
        """
        lens, slots, slot_ranks = _checked(seq_lens, seq_slots, ranks, chunk_size)
        capacity = BatchCapacity(int(lens.sum()), len(lens), len(slot_ranks), chunk_size)
        batch = cls._with_buffers(capacity, torch.device(device), ring=1)
        batch._fill(lens, slots, slot_ranks)
        batch.max_tokens = None
        batch._capacity = None
        return batch

    @classmethod
    def allocate(
        cls,
        *,
        max_tokens: int,
        slots: int,
        max_sequences: int | None = None,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Static buffers for a CUDA graph; empty until the first `refill`, which must come before a launch counts."""
        if max_tokens < 0 or slots < 0 or chunk_size < 1:
            raise SlotError(
                f"allocate(max_tokens={max_tokens}, slots={slots}, chunk_size={chunk_size}): "
                "expected max_tokens >= 0, slots >= 0 and chunk_size >= 1"
            )
        sequences = max_tokens if max_sequences is None else max_sequences
        capacity = BatchCapacity(max_tokens, sequences, slots, chunk_size)
        batch = cls._with_buffers(capacity, torch.device(device), ring=RING)
        nothing = np.zeros(0, dtype=np.int64)
        batch._fill(nothing, nothing, np.zeros(slots, dtype=np.int64))
        return batch

    @classmethod
    def from_sglang(cls, batch_info: Any) -> EmbeddingBatch:
        """A view of an SGLang LoRABatchInfo, of the csgmv backend or of the triton backend; nothing is copied.

        Raises ShapeError if a field the lookup needs is missing.
        """
        for name in ("seg_indptr", "weight_indices", "lora_ranks", "max_len"):
            if getattr(batch_info, name, None) is None:
                raise ShapeError(f"batch_info.{name} is None or missing; expected SGLang's LoRABatchInfo, prepared")
        permutation = batch_info.permutation
        static = bool(batch_info.use_cuda_graph)
        # Captured csgmv launches cover every segment the buffers can hold: later replays may need more than now.
        capacity_segments = static and permutation is not None
        segments = batch_info.weight_indices.shape[0] if capacity_segments else batch_info.num_segments
        tokens = None if permutation is None else permutation.shape[0]
        return cls(
            permutation=permutation,
            seg_indptr=batch_info.seg_indptr,
            seg_slots=batch_info.weight_indices,
            ranks=batch_info.lora_ranks,
            token_adapters=None,
            chunk_size=batch_info.max_len,
            num_tokens=None if static else tokens,
            max_tokens=tokens if static else None,
            num_segments=segments,
            max_rank=None,
        )

    def refill(self, seq_lens: Ints, seq_slots: Ints, ranks: Ints) -> None:
        """Write another batch into the static buffers, in place, in the order of the current stream.

        Takes what `build` takes. Raises CapacityError if it does not fit; the buffers are then unchanged.
        """
        if self._capacity is None:
            raise CapacityError("this batch has no static buffers; expected one made by EmbeddingBatch.allocate")
        lens, slots, slot_ranks = _checked(seq_lens, seq_slots, ranks, self.chunk_size)
        capacity = self._capacity
        if len(slot_ranks) != capacity.slots:
            raise CapacityError(f"ranks has {len(slot_ranks)} slots; expected {capacity.slots}, as allocated")
        if len(lens) > capacity.max_sequences:
            raise CapacityError(f"the batch has {len(lens)} sequences; expected at most {capacity.max_sequences}")
        if (total := int(lens.sum())) > capacity.max_tokens:
            raise CapacityError(f"the batch has {total} tokens; expected at most {capacity.max_tokens}")
        self._fill(lens, slots, slot_ranks)

    def without_token_words(self) -> EmbeddingBatch:
        """The same batch seen through csgmv's structure alone; shares the device arrays."""
        return EmbeddingBatch(
            permutation=self.permutation,
            seg_indptr=self.seg_indptr,
            seg_slots=self.seg_slots,
            ranks=self.ranks,
            token_adapters=None,
            chunk_size=self.chunk_size,
            num_tokens=self.num_tokens,
            max_tokens=self.max_tokens,
            num_segments=self.num_segments,
            max_rank=self.max_rank,
        )

    @classmethod
    def _with_buffers(cls, capacity: BatchCapacity, device: torch.device, ring: int) -> EmbeddingBatch:
        sizes = _section_sizes(capacity)
        total = sum(_padded(size) for size in sizes)
        device_buffer = torch.empty(total, dtype=torch.int32, device=device)
        words, permutation, seg_indptr, seg_slots, ranks = _sections(device_buffer, sizes)
        batch = cls(
            permutation=permutation,
            seg_indptr=seg_indptr,
            seg_slots=seg_slots,
            ranks=ranks,
            token_adapters=words,
            chunk_size=capacity.chunk_size,
            num_tokens=0,
            max_tokens=capacity.max_tokens,
            num_segments=capacity.max_segments,
            max_rank=0,
        )
        batch._capacity = capacity
        batch._device_buffer = device_buffer
        pinned = device.type == "cuda"
        batch._staging = [
            _Staging(torch.zeros(total, dtype=torch.int32, device="cpu", pin_memory=pinned)) for _ in range(ring)
        ]
        return batch

    def _fill(self, lens: Int64Array, slots: Int64Array, ranks: Int64Array) -> None:
        """Plan into the next staging buffer and copy it to the device."""
        assert self._capacity is not None and self._device_buffer is not None
        staging = self._staging[self._turn]
        self._turn = (self._turn + 1) % len(self._staging)
        if staging.copied is not None:
            staging.copied.synchronize()  # returns at once unless the GPU is RING refills behind
        host = [section.numpy() for section in _sections(staging.buffer, _section_sizes(self._capacity))]
        self.num_tokens = _plan(lens, slots, ranks, self.chunk_size, *host)
        self.max_rank = int(ranks.max(initial=0))
        self._device_buffer.copy_(staging.buffer, non_blocking=True)
        if self._device_buffer.is_cuda:
            staging.copied = staging.copied or torch.cuda.Event()
            staging.copied.record()


def _plan(
    lens: Int64Array,
    slots: Int64Array,
    ranks: Int64Array,
    chunk_size: int,
    words: Int32Array,
    permutation: Int32Array,
    seg_indptr: Int32Array,
    seg_slots: Int32Array,
    rank_out: Int32Array,
) -> int:
    """Write the plan and neutral tails into the given arrays; returns the number of tokens."""
    tokens = int(lens.sum())
    words[:tokens] = np.repeat(np.where(ranks[slots] > 0, slots << 16 | ranks[slots], 0), lens)
    words[tokens:] = 0

    order = np.argsort(slots, kind="stable")
    starts = np.cumsum(lens) - lens
    sorted_lens = lens[order]
    sorted_starts = np.cumsum(sorted_lens) - sorted_lens
    permutation[:tokens] = np.repeat(starts[order] - sorted_starts, sorted_lens) + np.arange(tokens)
    permutation[tokens:] = 0

    group_tokens = np.bincount(slots, weights=lens, minlength=len(ranks)).astype(np.int64)
    group_segments = -(-group_tokens // chunk_size)
    segments = int(group_segments.sum())
    first_segment = np.cumsum(group_segments) - group_segments
    group_start = np.cumsum(group_tokens) - group_tokens
    index_in_group = np.arange(segments) - np.repeat(first_segment, group_segments)
    seg_indptr[:segments] = np.repeat(group_start, group_segments) + index_in_group * chunk_size
    seg_indptr[segments:] = tokens  # segments of the tail are empty
    seg_slots[:segments] = np.repeat(np.arange(len(ranks)), group_segments)
    seg_slots[segments:] = 0
    rank_out[:] = ranks
    return tokens


def _checked(
    seq_lens: Ints, seq_slots: Ints, ranks: Ints, chunk_size: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The three sequences as int64 arrays, or the error that names the first bad value."""
    lens, slots, slot_ranks = (
        _integers(name, values) for name, values in (("seq_lens", seq_lens), ("seq_slots", seq_slots), ("ranks", ranks))
    )
    if len(lens) != len(slots):
        raise ShapeError(f"seq_slots has {len(slots)} entries; expected {len(lens)}, one for each of seq_lens")
    if chunk_size < 1:
        raise SlotError(f"chunk_size is {chunk_size}; expected at least 1")
    if len(slot_ranks) > MAX_SLOTS:
        raise SlotError(f"ranks has {len(slot_ranks)} slots; expected at most {MAX_SLOTS}")
    for name, values, low, high in (
        ("seq_lens", lens, 0, np.iinfo(np.int32).max),
        ("seq_slots", slots, 0, len(slot_ranks) - 1),
        ("ranks", slot_ranks, 0, MAX_RANK),
    ):
        wrong = (values < low) | (values > high)
        if wrong.any():
            at = int(wrong.argmax())
            raise SlotError(f"{name}[{at}] is {values[at]}; expected a value in [{low}, {high}]")
    return lens, slots, slot_ranks


def _integers(name: str, values: Ints) -> Int64Array:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShapeError(f"{name} is {array.ndim}-D of {array.dtype}; expected a 1-D sequence of integers")
    return array.astype(np.int64)


def _section_sizes(capacity: BatchCapacity) -> tuple[int, ...]:
    tokens, segments = capacity.max_tokens, capacity.max_segments
    return (tokens, tokens, segments + 1, segments, capacity.slots)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _sections(buffer: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Consecutive aligned views of a flat buffer."""
    views, start = [], 0
    for size in sizes:
        views.append(buffer[start : start + size])
        start += _padded(size)
    return views
