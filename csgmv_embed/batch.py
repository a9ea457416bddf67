"""EmbeddingBatch: which adapter each token of a batch uses, planned on the host, held on the device.

A batch has two descriptions of the same thing, and the kernels read either:

token words         token_adapters[t] = slot << 16 | rank; 0 where the token has no LoRA. All the lookup needs.
csgmv's structure   `permutation` groups the tokens by slot, stable; each group is cut into segments of at most
                    `chunk_size` tokens; segment g is permutation[seg_indptr[g] : seg_indptr[g+1]], slot seg_slots[g].
                    Costs a sort and three more arrays, so it is planned on request.

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
MAX_TOKENS = (1 << 31) - 1  # the arrays are int32
ALIGN = 16  # elements: every array starts on 64 bytes, so Triton compiles one alignment only
RING = 2  # staging buffers: the host fills one while the copy out of the other is in flight

Ints = Sequence[int] | npt.NDArray[np.integer[Any]]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchCapacity:
    """What the buffers of a batch can hold; `segments`: csgmv's structure beside the token words."""

    max_tokens: int
    max_sequences: int
    slots: int
    chunk_size: int
    segments: bool

    @property
    def max_segments(self) -> int:
        """Most segments any batch can need: full chunks, and one ragged chunk for each slot in use."""
        return self.max_tokens // self.chunk_size + min(self.slots, self.max_sequences, self.max_tokens)

    @property
    def section_sizes(self) -> tuple[int, ...]:
        """Elements of token_adapters, and with segments of permutation, seg_indptr, seg_slots and ranks."""
        if not self.segments:
            return (self.max_tokens,)
        return (self.max_tokens, self.max_tokens, self.max_segments + 1, self.max_segments, self.slots)


@dataclass
class _Staging:
    """A host buffer cut into the arrays of a batch, and the event after which it may be overwritten."""

    buffer: torch.Tensor
    sections: list[Int32Array]
    copied: torch.cuda.Event | None = None


@dataclass
class _Contents:
    """What the host knows of the tokens in the buffers; one object for every view of them."""

    num_tokens: int | None  # None: not known on the host
    max_rank: int | None  # largest rank in use; None: not known on the host


class EmbeddingBatch:
    """The adapters of a batch of tokens, on `device`.

    Made by `build` (exact size), `allocate` + `refill` (static buffers of a CUDA graph), or `from_sglang` (a view of
    SGLang's LoRABatchInfo). Device arrays, all int32 unless from SGLang: token_adapters (tokens,), None if from
    SGLang; permutation (tokens,), seg_indptr (segments + 1,), seg_slots (segments,) and ranks (slots,), None unless
    planned with segments=True or from SGLang, whose triton backend has no permutation.
    """

    def __init__(
        self,
        *,
        token_adapters: torch.Tensor | None,
        permutation: torch.Tensor | None,
        seg_indptr: torch.Tensor | None,
        seg_slots: torch.Tensor | None,
        ranks: torch.Tensor | None,
        slots: int,
        chunk_size: int,
        max_tokens: int | None,
        num_segments: int,
        contents: _Contents,
    ) -> None:
        self.token_adapters = token_adapters
        self.permutation = permutation
        self.seg_indptr = seg_indptr
        self.seg_slots = seg_slots
        self.ranks = ranks
        self.slots = slots
        self.chunk_size = chunk_size
        self.max_tokens = max_tokens  # None: not a static batch
        self.num_segments = num_segments
        first = token_adapters if token_adapters is not None else seg_indptr
        assert first is not None
        self.device = first.device
        self._contents = contents
        self._capacity: BatchCapacity | None = None
        self._device_buffer: torch.Tensor | None = None
        self._staging: list[_Staging] = []
        self._turn = 0

    @property
    def static(self) -> bool:
        """Whether the buffers have a capacity and may hold fewer tokens than they are launched for."""
        return self.max_tokens is not None

    @property
    def num_tokens(self) -> int | None:
        """Tokens in the batch; None if only the device knows (a static batch of SGLang)."""
        return self._contents.num_tokens

    @property
    def max_rank(self) -> int | None:
        """Largest rank of a slot; None if only the device knows (SGLang)."""
        return self._contents.max_rank

    @classmethod
    def build(
        cls,
        seq_lens: Ints,
        seq_slots: Ints,
        ranks: Ints,
        *,
        segments: bool = False,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Plan one batch into buffers of exactly its size.

        seq_lens, seq_slots (sequences,): tokens and slot of each sequence; ranks (slots,), 0 = no LoRA; all on the
        host. segments: plan csgmv's structure too. Raises ShapeError, SlotError, CapacityError on bad values.
        """
        lens, slots, slot_ranks = _checked(seq_lens, seq_slots, ranks)
        _check_chunk_size(chunk_size)
        capacity = BatchCapacity(int(lens.sum()), len(lens), len(slot_ranks), chunk_size, segments)
        batch = cls._with_buffers(capacity, torch.device(device), ring=1)
        batch._fill(lens, slots, slot_ranks)
        batch.max_tokens = None
        batch._capacity = None
        batch._staging = []  # pinned memory is kept by torch until the copy is done
        return batch

    @classmethod
    def allocate(
        cls,
        *,
        max_tokens: int,
        slots: int,
        max_sequences: int | None = None,
        segments: bool = False,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Static buffers for a CUDA graph, empty until the first `refill`. max_sequences: max_tokens if not given."""
        sequences = max_tokens if max_sequences is None else max_sequences
        for name, value, high in (
            ("max_tokens", max_tokens, MAX_TOKENS),
            ("slots", slots, MAX_SLOTS),
            ("max_sequences", sequences, MAX_TOKENS),
        ):
            if not 0 <= value <= high:
                raise SlotError(f"{name} is {value}; expected a value in [0, {high}]")
        _check_chunk_size(chunk_size)
        capacity = BatchCapacity(max_tokens, sequences, slots, chunk_size, segments)
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
        tokens = None if permutation is None else permutation.shape[0]
        return cls(
            token_adapters=None,
            permutation=permutation,
            seg_indptr=batch_info.seg_indptr,
            seg_slots=batch_info.weight_indices,
            ranks=batch_info.lora_ranks,
            slots=batch_info.lora_ranks.shape[0],
            chunk_size=batch_info.max_len,
            max_tokens=tokens if static else None,
            num_segments=batch_info.weight_indices.shape[0] if capacity_segments else batch_info.num_segments,
            contents=_Contents(None if static else tokens, None),
        )

    def refill(self, seq_lens: Ints, seq_slots: Ints, ranks: Ints) -> None:
        """Write another batch into the static buffers, in place, in the order of the current stream.

        Takes what `build` takes. Raises CapacityError if it does not fit; the buffers are then unchanged.
        One copy to the device; waits for the GPU only if it is RING refills behind.
        """
        capacity = self._capacity
        if capacity is None:
            raise CapacityError("this batch has no static buffers; expected one made by EmbeddingBatch.allocate")
        lens, slots, slot_ranks = _checked(seq_lens, seq_slots, ranks)
        if len(slot_ranks) != capacity.slots:
            raise CapacityError(f"ranks has {len(slot_ranks)} slots; expected {capacity.slots}, as allocated")
        if len(lens) > capacity.max_sequences:
            raise CapacityError(f"the batch has {len(lens)} sequences; expected at most {capacity.max_sequences}")
        if (total := int(lens.sum())) > capacity.max_tokens:
            raise CapacityError(f"the batch has {total} tokens; expected at most {capacity.max_tokens}")
        self._fill(lens, slots, slot_ranks)

    def without_token_words(self) -> EmbeddingBatch:
        """The same batch seen through csgmv's structure alone; shares the device arrays and follows refills.

        Raises ShapeError if the batch was planned without segments.
        """
        if self.seg_indptr is None:
            raise ShapeError("this batch was planned without csgmv's structure; expected one made with segments=True")
        return EmbeddingBatch(
            token_adapters=None,
            permutation=self.permutation,
            seg_indptr=self.seg_indptr,
            seg_slots=self.seg_slots,
            ranks=self.ranks,
            slots=self.slots,
            chunk_size=self.chunk_size,
            max_tokens=self.max_tokens,
            num_segments=self.num_segments,
            contents=self._contents,
        )

    @classmethod
    def _with_buffers(cls, capacity: BatchCapacity, device: torch.device, ring: int) -> EmbeddingBatch:
        sizes = capacity.section_sizes
        total = sum(_padded(size) for size in sizes)
        device_buffer = torch.empty(total, dtype=torch.int32, device=device)
        words, *structure = _sections(device_buffer, sizes)
        permutation, seg_indptr, seg_slots, ranks = structure or (None, None, None, None)
        batch = cls(
            token_adapters=words,
            permutation=permutation,
            seg_indptr=seg_indptr,
            seg_slots=seg_slots,
            ranks=ranks,
            slots=capacity.slots,
            chunk_size=capacity.chunk_size,
            max_tokens=capacity.max_tokens,
            num_segments=capacity.max_segments,
            contents=_Contents(0, 0),
        )
        batch._capacity = capacity
        batch._device_buffer = device_buffer
        for _ in range(ring):
            host = torch.zeros(total, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
            batch._staging.append(_Staging(host, [section.numpy() for section in _sections(host, sizes)]))
        return batch

    def _fill(self, lens: Int64Array, slots: Int64Array, ranks: Int64Array) -> None:
        """Plan into the next staging buffer and copy it to the device."""
        assert self._device_buffer is not None
        staging = self._staging[self._turn]
        self._turn = (self._turn + 1) % len(self._staging)
        if staging.copied is not None:
            staging.copied.synchronize()  # returns at once unless the GPU is RING refills behind
        words, *structure = staging.sections
        tokens = _plan_words(lens, slots, ranks, words)
        if structure:
            _plan_segments(lens, slots, ranks, self.chunk_size, tokens, *structure)
        self._contents.num_tokens = tokens
        self._contents.max_rank = int(ranks.max(initial=0))
        self._device_buffer.copy_(staging.buffer, non_blocking=True)
        if self._device_buffer.is_cuda and len(self._staging) > 1:
            staging.copied = staging.copied or torch.cuda.Event()
            staging.copied.record(torch.cuda.current_stream(self.device))


def _plan_words(lens: Int64Array, slots: Int64Array, ranks: Int64Array, words: Int32Array) -> int:
    """Write the token words and a tail of zeros; returns the number of tokens."""
    word_of_slot = np.where(ranks > 0, np.arange(len(ranks)) << 16 | ranks, 0).astype(np.int32)
    word_of_sequence = word_of_slot[slots]
    if len(lens) > 0 and lens.max() == lens.min() == 1:
        tokens = len(lens)
        words[:tokens] = word_of_sequence  # decode: one token a sequence
    else:
        of_token = word_of_sequence.repeat(lens)
        tokens = len(of_token)
        words[:tokens] = of_token
    words[tokens:] = 0
    return tokens


def _plan_segments(
    lens: Int64Array,
    slots: Int64Array,
    ranks: Int64Array,
    chunk_size: int,
    tokens: int,
    permutation: Int32Array,
    seg_indptr: Int32Array,
    seg_slots: Int32Array,
    rank_out: Int32Array,
) -> None:
    """Write csgmv's structure and neutral tails into the given arrays."""
    order = slots.astype(np.int16).argsort(kind="stable")  # 16-bit integers are sorted by radix
    starts = lens.cumsum() - lens
    sorted_lens = lens[order]
    shift = starts[order] - (sorted_lens.cumsum() - sorted_lens)  # from a token's place in the group order to the token
    np.add(shift.astype(np.int32).repeat(sorted_lens), np.arange(tokens, dtype=np.int32), out=permutation[:tokens])
    permutation[tokens:] = 0

    group_tokens = np.bincount(slots, weights=lens, minlength=len(ranks)).astype(np.int64)
    group_segments = -(-group_tokens // chunk_size)
    segments = int(group_segments.sum())
    first_segment = group_segments.cumsum() - group_segments
    group_start = group_tokens.cumsum() - group_tokens
    # segment g of a group starts at group_start + (g - first_segment) * chunk_size
    base = group_start - first_segment * chunk_size
    seg_indptr[:segments] = base.repeat(group_segments) + np.arange(segments) * chunk_size
    seg_indptr[segments:] = tokens  # segments of the tail are empty
    seg_slots[:segments] = np.arange(len(ranks)).repeat(group_segments)
    seg_slots[segments:] = 0
    rank_out[:] = ranks


def _checked(seq_lens: Ints, seq_slots: Ints, ranks: Ints) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The three sequences as int64 arrays, or the error that names the first bad value."""
    slot_ranks = _integers("ranks", ranks, MAX_RANK)
    if len(slot_ranks) > MAX_SLOTS:
        raise SlotError(f"ranks has {len(slot_ranks)} slots; expected at most {MAX_SLOTS}")
    lens = _integers("seq_lens", seq_lens, MAX_TOKENS)
    slots = _integers("seq_slots", seq_slots, len(slot_ranks) - 1)
    if len(lens) != len(slots):
        raise ShapeError(f"seq_slots has {len(slots)} entries; expected {len(lens)}, one for each of seq_lens")
    if (total := int(lens.sum())) > MAX_TOKENS:
        raise CapacityError(f"seq_lens sum to {total} tokens; expected at most {MAX_TOKENS}")
    return lens, slots, slot_ranks


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise SlotError(f"chunk_size is {chunk_size}; expected at least 1")


def _integers(name: str, values: Ints, high: int) -> Int64Array:
    """A 1-D int64 array of values in [0, high]."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShapeError(f"{name} is {array.ndim}-D of {array.dtype}; expected a 1-D sequence of integers")
    if array.size and (array.max() > high or array.min() < 0):
        at = int(((array < 0) | (array > high)).argmax())
        raise SlotError(f"{name}[{at}] is {array[at]}; expected a value in [0, {high}]")
    return array.astype(np.int64, copy=False)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _sections(buffer: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Consecutive aligned views of a flat buffer."""
    views, start = [], 0
    for size in sizes:
        views.append(buffer[start : start + size])
        start += _padded(size)
    return views
