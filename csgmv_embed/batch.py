"""EmbeddingBatch: which adapter each token of a batch uses, planned on the host, held on the device.

A batch has two descriptions of the same thing, and the kernels read either:

token words         token_adapters[t] = slot << 16 | rank; 0 where the token has no LoRA. All the lookup needs.
csgmv's structure   `permutation` groups the tokens by slot, stable; each group is cut into segments of at most
                    `chunk_size` tokens; segment g is permutation[seg_indptr[g] : seg_indptr[g+1]], slot seg_slots[g].
                    Costs a sort and three more arrays, so it is planned on request.

All arrays are int32 and lie in one buffer, so a refill is one transfer.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from csgmv_embed.errors import CapacityError, DeviceError, DtypeError, ShapeError, SlotError

MAX_SLOTS = 1 << 15
BYTE = 1 << 8  # values of a byte
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
    words: Int32Array  # all of the buffer
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

    _ranks: _Ranks  # of a batch with host buffers

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
        self._stream: tuple[int, torch.cuda.Stream] | None = None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A copy would have host views and device buffers that no longer belong together.
        raise TypeError("an EmbeddingBatch cannot be copied or pickled; expected another one, built or allocated")

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
        seq_lens: Ints | None,
        seq_slots: Ints,
        ranks: Ints,
        *,
        segments: bool = False,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Plan one batch into buffers of exactly its size.

        seq_lens, seq_slots (sequences,): tokens and slot of each sequence, seq_lens None for one token each (decode);
        ranks (slots,), 0 = no LoRA; all on the host. segments: plan csgmv's structure too.
        Raises ShapeError, SlotError, CapacityError on bad values.
        """
        known = _Ranks()
        known.update(ranks)
        lens, slots, tokens = _checked(seq_lens, seq_slots, len(known.values))
        chunk_size = _size("chunk_size", chunk_size, 1)
        capacity = BatchCapacity(tokens, len(slots), len(known.values), chunk_size, segments)
        batch = cls._with_buffers(capacity, torch.device(device), ring=1)
        batch._ranks = known
        batch._fill(lens, slots, tokens)
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
        capacity = BatchCapacity(
            max_tokens=_size("max_tokens", max_tokens, 0),
            max_sequences=_size("max_sequences", max_tokens if max_sequences is None else max_sequences, 0),
            slots=_size("slots", slots, 0, MAX_SLOTS),
            chunk_size=_size("chunk_size", chunk_size, 1),
            segments=segments,
        )
        batch = cls._with_buffers(capacity, torch.device(device), ring=RING)
        batch.refill([], [], [0] * capacity.slots)
        return batch

    @classmethod
    def from_sglang(cls, batch_info: Any) -> EmbeddingBatch:
        """A view of an SGLang LoRABatchInfo, of the csgmv backend or of the triton backend; nothing is copied.

        Take another view after each `prepare_lora_batch`, which may replace the arrays. Raises ShapeError, DtypeError,
        DeviceError if a field the lookup needs is missing or is not what the kernels read.
        """
        for name in ("seg_indptr", "weight_indices", "lora_ranks", "max_len"):
            if getattr(batch_info, name, None) is None:
                raise ShapeError(f"batch_info.{name} is None or missing; expected SGLang's LoRABatchInfo, prepared")
        permutation = getattr(batch_info, "permutation", None)
        _check_foreign(batch_info, permutation)
        static = bool(batch_info.use_cuda_graph)
        # Captured csgmv launches cover every segment the buffers can hold: later replays may need more than now.
        capacity_segments = static and (permutation is not None or batch_info.num_segments is None)
        tokens = None if permutation is None else permutation.shape[0]
        return cls(
            token_adapters=None,
            permutation=permutation,
            seg_indptr=batch_info.seg_indptr,
            seg_slots=batch_info.weight_indices,
            ranks=batch_info.lora_ranks,
            slots=batch_info.lora_ranks.shape[0],
            chunk_size=_size("batch_info.max_len", batch_info.max_len, 0),
            max_tokens=tokens if static else None,
            num_segments=batch_info.weight_indices.shape[0]
            if capacity_segments
            else _size("batch_info.num_segments", batch_info.num_segments, 0),
            contents=_Contents(None if static else tokens, None),
        )

    def refill(self, seq_lens: Ints | None, seq_slots: Ints, ranks: Ints) -> None:
        """Write another batch into the static buffers, in place, in the order of the current stream.

        Takes what `build` takes. Raises CapacityError if it does not fit; the buffers are then unchanged.
        One copy to the device; waits for the GPU only if it is RING refills behind. Not while a graph is captured,
        which would record the copy (DeviceError): refill before a replay.
        """
        capacity = self._capacity
        if capacity is None:
            raise CapacityError("this batch has no static buffers; expected one made by EmbeddingBatch.allocate")
        self._ranks.update(ranks)
        if len(self._ranks.values) != capacity.slots:
            raise CapacityError(f"ranks has {len(self._ranks.values)} slots; expected {capacity.slots}, as allocated")
        lens, slots, tokens = _checked(seq_lens, seq_slots, capacity.slots)
        if len(slots) > capacity.max_sequences:
            raise CapacityError(f"the batch has {len(slots)} sequences; expected at most {capacity.max_sequences}")
        if tokens > capacity.max_tokens:
            raise CapacityError(f"the batch has {tokens} tokens; expected at most {capacity.max_tokens}")
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise DeviceError("refill while a CUDA graph is captured; expected it before the capture or a replay")
        self._fill(lens, slots, tokens)

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
        with torch.inference_mode(False):  # an inference tensor could not be refilled outside that mode
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
        batch._ranks = _Ranks()
        batch._device_buffer = device_buffer
        for _ in range(ring):
            host = torch.zeros(total, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
            batch._staging.append(_Staging(host, host.numpy(), [section.numpy() for section in _sections(host, sizes)]))
        return batch

    def _fill(self, lens: Int64Array | None, slots: Int64Array, tokens: int) -> None:
        """Plan into the next staging buffer and copy it to the device."""
        assert self._device_buffer is not None
        staging = self._staging[self._turn]
        self._turn = (self._turn + 1) % len(self._staging)
        if staging.copied is not None:
            staging.copied.synchronize()  # returns at once unless the GPU is RING refills behind
        words, *structure = staging.sections
        staging.words.fill(0)  # one call for the neutral tails of all arrays
        of_sequence = self._ranks.words[slots]
        words[:tokens] = of_sequence if lens is None else of_sequence.repeat(lens)
        if structure:
            _plan_segments(lens, slots, self._ranks.values, self.chunk_size, tokens, *structure)
        self._contents.num_tokens = tokens
        self._contents.max_rank = self._ranks.largest
        self._device_buffer.copy_(staging.buffer, non_blocking=True)
        if self._device_buffer.is_cuda and len(self._staging) > 1:
            staging.copied = staging.copied or torch.cuda.Event()
            staging.copied.record(self._current_stream())

    def _current_stream(self) -> torch.cuda.Stream:
        """torch.cuda.current_stream, which costs more than planning a small batch, only when the stream has changed."""
        raw: int = torch._C._cuda_getCurrentRawStream(self.device.index)
        if self._stream is None or self._stream[0] != raw:
            self._stream = raw, torch.cuda.current_stream(self.device)
        return self._stream[1]


class _Ranks:
    """The ranks of the slots and what follows from them alone; they change when adapters do, not with every batch."""

    def __init__(self) -> None:
        self.given: list[int] | None = None
        self.values: Int64Array = counting(0)
        self.words: Int32Array = _NO_WORDS  # slot << 16 | rank of each slot, 0 without LoRA; replaced, not written
        self.largest = 0

    def update(self, ranks: Ints) -> None:
        """Take these ranks; raises ShapeError, SlotError."""
        if type(ranks) is list and ranks == self.given:
            return
        values = _integers("ranks", ranks, MAX_RANK)
        if len(values) > MAX_SLOTS:
            raise SlotError(f"ranks has {len(values)} slots; expected at most {MAX_SLOTS}")
        self.given = list(ranks) if type(ranks) is list else None
        self.values = values.copy()  # the caller may write into its array later
        self.words = np.where(values > 0, np.arange(len(values)) << 16 | values, 0).astype(np.int32)
        self.largest = int(values.max(initial=0))


def _plan_segments(
    lens: Int64Array | None,
    slots: Int64Array,
    ranks: Int64Array,
    chunk_size: int,
    tokens: int,
    permutation: Int32Array,
    seg_indptr: Int32Array,
    seg_slots: Int32Array,
    rank_out: Int32Array,
) -> int:
    """Write csgmv's structure into the given arrays; returns the number of segments.

    What is beyond the tokens in permutation, and beyond the segments in seg_slots, is left as it is: zeros, to be
    neutral. seg_indptr has a neutral tail.
    """
    # 8 and 16-bit integers are sorted by radix.
    order = slots.astype(np.uint8 if len(ranks) <= BYTE else np.int16).argsort(kind="stable")
    if lens is None:
        permutation[:tokens] = order
        group_tokens = np.bincount(slots, minlength=len(ranks))
    else:
        starts = lens.cumsum() - lens
        sorted_lens = lens[order]
        # from a token's place in the group order to the token
        shift = starts[order] - (sorted_lens.cumsum() - sorted_lens)
        np.add(shift.astype(np.int32).repeat(sorted_lens), counting_int32(tokens), out=permutation[:tokens])
        group_tokens = np.bincount(slots, weights=lens, minlength=len(ranks)).astype(np.int64)

    chunk, round_up = chunk_constants(chunk_size)
    group_segments = (group_tokens + round_up) // chunk
    owners = counting(len(ranks)).repeat(group_segments)
    segments = len(owners)
    # Segment g begins where its group does, chunk_size further for each segment of the group before g. That is
    # g * chunk_size less what the groups before left of their last chunks.
    spare = group_segments * chunk - group_tokens
    lost = np.add.accumulate(spare) - spare
    seg_indptr.fill(tokens)  # segments of the tail are empty
    seg_indptr[:segments] = counting(segments) * chunk - lost[owners]
    seg_slots[:segments] = owners
    rank_out[:] = ranks
    return segments


@cache
def chunk_constants(chunk_size: int) -> tuple[Int64Array, Int64Array]:
    """chunk_size and chunk_size - 1 without axes: numpy takes these at half the time of a Python int."""
    return np.array(chunk_size), np.array(chunk_size - 1)


_NO_WORDS: Int32Array = np.zeros(0, dtype=np.int32)
_counting: Int64Array = np.arange(1024)
_counting_int32: Int32Array = np.arange(1024, dtype=np.int32)


def counting(size: int) -> Int64Array:
    """0, 1, ... size - 1, to be read only: a slice of an array made once costs less than another one."""
    global _counting
    if size > len(_counting):
        _counting = np.arange(1 << (size - 1).bit_length())
    return _counting[:size]


def counting_int32(size: int) -> Int32Array:
    """The same in 32 bits."""
    global _counting_int32
    if size > len(_counting_int32):
        _counting_int32 = np.arange(1 << (size - 1).bit_length(), dtype=np.int32)
    return _counting_int32[:size]


def _checked(seq_lens: Ints | None, seq_slots: Ints, num_slots: int) -> tuple[Int64Array | None, Int64Array, int]:
    """Lengths (None: all one) and slots as int64 arrays and the tokens, or the error that names the first bad value."""
    slots = _slot_array(seq_slots, num_slots)
    if seq_lens is None:
        return None, slots, len(slots)
    lens = _integers("seq_lens", seq_lens, MAX_TOKENS)
    if len(lens) != len(slots):
        raise ShapeError(f"seq_slots has {len(slots)} entries; expected {len(lens)}, one for each of seq_lens")
    if (tokens := int(lens.sum())) > MAX_TOKENS:
        raise CapacityError(f"seq_lens sum to {tokens} tokens; expected at most {MAX_TOKENS}")
    return lens, slots, tokens


def _slot_array(values: Ints, num_slots: int) -> Int64Array:
    """A 1-D int64 array of values in [0, num_slots).

    A list of slots that fit a byte, which is what a server gives, is read and checked as bytes, in a third of the time.
    """
    if type(values) is list and num_slots <= BYTE:
        try:
            found = bytes(values)
        except (TypeError, ValueError):
            pass
        else:
            if not found.translate(None, _allowed_bytes(num_slots)):  # nothing is left without the allowed ones
                return np.frombuffer(found, dtype=np.uint8).astype(np.int64)
    return _integers("seq_slots", values, num_slots - 1)  # names what is wrong


@cache
def _allowed_bytes(num_slots: int) -> bytes:
    return bytes(range(num_slots))


def _check_foreign(batch_info: Any, permutation: torch.Tensor | None) -> None:
    """The kernels read these arrays by their addresses."""
    device = batch_info.seg_indptr.device
    arrays = {name: getattr(batch_info, name) for name in ("seg_indptr", "weight_indices", "lora_ranks")}
    if permutation is not None:
        arrays["permutation"] = permutation
    for name, tensor in arrays.items():
        if tensor.ndim != 1 or not tensor.is_contiguous():
            raise ShapeError(
                f"batch_info.{name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}; "
                "expected 1-D, contiguous"
            )
        if tensor.dtype not in (torch.int32, torch.int64):
            raise DtypeError(f"batch_info.{name} is {tensor.dtype}; expected torch.int32 or torch.int64")
        if tensor.device != device:
            raise DeviceError(f"batch_info.{name} is on {tensor.device}; expected {device}, where seg_indptr is")


def _size(name: str, value: object, low: int, high: int = MAX_TOKENS) -> int:
    """A plain int in [low, high]."""
    try:
        size = int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise ShapeError(f"{name} is {value!r}; expected an integer") from None
    if not low <= size <= high:
        raise SlotError(f"{name} is {size}; expected a value in [{low}, {high}]")
    return size


def _integers(name: str, values: Ints, high: int) -> Int64Array:
    """A 1-D int64 array of values in [0, high]."""
    found: npt.NDArray[Any]
    try:
        # From a list, array.array takes a third of the time of np.asarray.
        found = np.asarray(array("q", values) if type(values) is list else values)
    except (TypeError, ValueError, OverflowError):  # ragged, on a GPU, not integers, beyond 64 bits
        found = _object_array(values)
    if found.size == 0:
        found = found.astype(np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ShapeError(f"{name} is {_shown(values, found)}; expected a 1-D sequence of integers on the host")
    # As unsigned, a negative value is larger than any that is allowed: one pass checks both ends.
    unsigned = found.astype(np.int64, copy=False).view(np.uint64)
    if found.size and (high < 0 or np.maximum.reduce(unsigned) > high):
        at = int(((found < 0) | (found > high)).argmax())
        raise SlotError(f"{name}[{at}] is {found[at]}; expected a value in [0, {high}]")
    return found.astype(np.int64, copy=False)


def _object_array(values: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        return np.empty((), dtype=object)


def _shown(values: object, found: npt.NDArray[Any]) -> str:
    return f"{found.ndim}-D of {found.dtype}" if found.ndim else f"a {type(values).__name__}"


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _sections(buffer: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Consecutive aligned views of a flat buffer."""
    views, start = [], 0
    for size in sizes:
        views.append(buffer[start : start + size])
        start += _padded(size)
    return views
