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
from typing import Any, NamedTuple, NoReturn

import torch

from csgmv_embed.batch import buffers, foreign
from csgmv_embed.batch.capacity import BatchCapacity, Contents
from csgmv_embed.batch.plan import MAX_SLOTS, Ints, Ranks, checked, checked_scalings, checked_size
from csgmv_embed.batch.staging import HostBuffer, Staging, host_memory
from csgmv_embed.errors import CapacityError, DeviceError, ShapeError

# What a batch is made of, beside its contents.
ARRAYS = ("token_adapters", "permutation", "seg_indptr", "seg_slots", "ranks", "scalings", "tile_words", "tile_rows")
SIZES = ("tile_block", "slots", "chunk_size", "max_tokens", "num_segments")

NO_STRUCTURE = "this batch was planned without csgmv's structure; expected one made with segments=True"


class StaticBuffers(NamedTuple):
    """The buffers that a refill writes into."""

    capacity: BatchCapacity
    buffer: torch.Tensor  # of all arrays, on the device
    staging: Staging
    ranks: Ranks


class EmbeddingBatch:
    """The adapters of a batch of tokens, on `device`.

    Made by `build` (exact size), `allocate` + `refill` (static buffers of a CUDA graph), or `from_sglang` (a view of
    SGLang's LoRABatchInfo). Device arrays, all int32 unless from SGLang: token_adapters (tokens,), None if from
    SGLang; permutation (tokens,), seg_indptr (segments + 1,), seg_slots (segments,) and ranks (slots,), None unless
    planned with segments=True or from SGLang, whose triton backend has no permutation. With them come the scalings
    (slots,), float32, by which the whole layer and lm_head multiply the product of B and A. With tiles=True also the
    tiles that linear layers take (tile_plan.py): tile_words (2 * tiles,) and tile_rows (tile_block * tiles,).
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
        contents: Contents,
        scalings: torch.Tensor | None = None,
        tile_words: torch.Tensor | None = None,
        tile_rows: torch.Tensor | None = None,
        tile_block: int = 0,
    ) -> None:
        self.token_adapters = token_adapters
        self.permutation = permutation
        self.seg_indptr = seg_indptr
        self.seg_slots = seg_slots
        self.ranks = ranks
        self.scalings = scalings
        self.tile_words = tile_words
        self.tile_rows = tile_rows
        self.tile_block = tile_block
        self.slots = slots
        self.chunk_size = chunk_size
        self.max_tokens = max_tokens  # None: not a static batch
        self.num_segments = num_segments
        first = token_adapters if token_adapters is not None else seg_indptr
        assert first is not None
        self.device = first.device
        self.contents = contents
        self._static: StaticBuffers | None = None
        self._arrays_seen: int | None = None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A copy would have host views and device buffers that no longer belong together.
        raise TypeError("an EmbeddingBatch cannot be copied or pickled; expected another one, built or allocated")

    @property
    def static(self) -> bool:
        """Whether this batch has static buffers, which may hold fewer tokens than they have room for."""
        return self.max_tokens is not None

    @property
    def num_tokens(self) -> int | None:
        """Tokens in the batch. None if only the device knows (a static batch of SGLang)."""
        return self.contents.num_tokens

    @property
    def adapted(self) -> bool:
        """Whether a token of the batch may have an adapter.

        False only if it was built without any; static batches may.
        """
        return self.contents.adapted

    def seen_words(self) -> int:
        """What a lookup by token words depends on, except what `check_fits` checks in every call."""
        if self._arrays_seen is None:  # the arrays never change
            self._arrays_seen = _number_of(self)
        return self._arrays_seen

    def seen(self) -> tuple[object, ...]:
        """What kernels that walk csgmv's structure depend on, except what `check_fits` checks in every call."""
        contents, static = self.contents, self.max_tokens is not None
        return (
            self.seen_words(),
            self.permutation is None,
            self.chunk_size,
            self.num_segments,
            static,
            None if static else contents.num_tokens,
            contents.adapted,
        )

    def structure(self) -> tuple[torch.Tensor, ...]:
        """Permutation, bounds and slots of the segments, ranks and scalings, for kernels that multiply.

        Raises ShapeError if the batch was planned without csgmv's structure.
        """
        bounds, slots, ranks, scalings = self.seg_indptr, self.seg_slots, self.ranks, self.scalings
        if bounds is None or slots is None or ranks is None or scalings is None:
            raise ShapeError(NO_STRUCTURE)
        return bounds if self.permutation is None else self.permutation, bounds, slots, ranks, scalings

    def segment_arrays(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same without scalings.

        If there is no permutation, the bounds stand in its place and kernels are told so.
        """
        bounds, slots, ranks = self.seg_indptr, self.seg_slots, self.ranks
        assert bounds is not None and slots is not None and ranks is not None
        return bounds if self.permutation is None else self.permutation, bounds, slots, ranks

    @property
    def without_adapter(self) -> bool:
        """Whether no token has an adapter, now and in every replay of a graph that captures this launch."""
        return not self.static and not self.adapted

    @property
    def max_rank(self) -> int | None:
        """Largest rank of a slot; None if only the device knows (SGLang)."""
        return self.contents.max_rank

    @classmethod
    def build(
        cls,
        seq_lens: Ints | None,
        seq_slots: Ints,
        ranks: Ints,
        *,
        scalings: Sequence[float] | None = None,
        segments: bool = False,
        tiles: bool = False,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Plan one batch into buffers of exactly its size.

        seq_lens, seq_slots (sequences,): tokens and slot of each sequence; seq_lens=None means one token each (decode).
        ranks (slots,): 0 means no LoRA. scalings (slots,): None means 1.0 each. All are on the host. segments=True also
        plans csgmv's structure; scalings are kept only with it. tiles=True plans the tiles of linear layers and csgmv's
        structure. Raises ShapeError, SlotError or CapacityError for bad values.
        """
        known = Ranks()
        known.update(ranks)
        factors = checked_scalings(scalings, len(known.values))
        lens, slots, tokens = checked(seq_lens, seq_slots, len(known.values))
        chunk_size = checked_size("chunk_size", chunk_size, 1)
        capacity = BatchCapacity(tokens, len(slots), len(known.values), chunk_size, segments or tiles, tiles)
        made, buffer = buffers.device_arrays(capacity, torch.device(device))
        batch = cls(**made)
        host = HostBuffer(host_memory(buffer.shape[0], pinned=buffer.is_cuda))  # torch keeps it until the copy is done
        host.holds(capacity.packing)
        buffers.write_plan(host, capacity, known, lens, slots, tokens, factors)
        buffer.copy_(host.tensor, non_blocking=True)
        batch.contents = Contents(tokens, known.largest, bool(known.words[slots].any()))
        batch.max_tokens = None
        return batch

    @classmethod
    def allocate(
        cls,
        *,
        max_tokens: int,
        slots: int,
        max_sequences: int | None = None,
        segments: bool = False,
        tiles: bool = False,
        chunk_size: int = 16,
        device: torch.device | str = "cuda",
    ) -> EmbeddingBatch:
        """Static buffers for a CUDA graph, empty until the first `refill`. max_sequences defaults to max_tokens."""
        capacity = BatchCapacity(
            max_tokens=checked_size("max_tokens", max_tokens, 0),
            max_sequences=checked_size("max_sequences", max_tokens if max_sequences is None else max_sequences, 0),
            slots=checked_size("slots", slots, 0, MAX_SLOTS),
            chunk_size=checked_size("chunk_size", chunk_size, 1),
            segments=segments or tiles,
            tiles=tiles,
        )
        made, buffer = buffers.device_arrays(capacity, torch.device(device))
        batch = cls(**made)
        batch._static = StaticBuffers(capacity, buffer, Staging(buffer.device, buffer.shape[0]), Ranks())
        batch.refill([], [], [0] * capacity.slots)
        return batch

    @classmethod
    def from_sglang(cls, batch_info: Any) -> EmbeddingBatch:
        """A view of an SGLang LoRABatchInfo, from the csgmv or the triton backend. Nothing is copied.

        Take a new view after each `prepare_lora_batch`, because it may replace the arrays. Raises ShapeError,
        DtypeError or DeviceError if a field that the lookup needs is missing, or is not what the kernels read.
        """
        return cls(**foreign.described(batch_info))

    def refill(
        self, seq_lens: Ints | None, seq_slots: Ints, ranks: Ints, scalings: Sequence[float] | None = None
    ) -> None:
        """Write another batch into the static buffers, in place, in the order of the current stream.

        Takes the arguments of `build`. Raises CapacityError if the batch does not fit; the buffers are then unchanged.
        Makes one copy to the device. Waits for the GPU only if it is several refills behind. Call it before a replay,
        not during a capture: the graph would record the copy (DeviceError).
        """
        if self._static is None:
            raise CapacityError("this batch has no static buffers; expected one made by EmbeddingBatch.allocate")
        capacity, buffer, staging, known = self._static
        known.update(ranks)
        if len(known.values) != capacity.slots:
            raise CapacityError(f"ranks has {len(known.values)} slots; expected {capacity.slots}, as allocated")
        lens, slots, tokens = checked(seq_lens, seq_slots, capacity.slots)
        factors = checked_scalings(scalings, capacity.slots)
        if len(slots) > capacity.max_sequences:
            raise CapacityError(f"the batch has {len(slots)} sequences; expected at most {capacity.max_sequences}")
        if tokens > capacity.max_tokens:
            raise CapacityError(f"the batch has {tokens} tokens; expected at most {capacity.max_tokens}")
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise DeviceError("refill while a CUDA graph is captured; expected it before the capture or a replay")
        host = staging.next(capacity.packing)
        host.words.fill(0)  # one call for the neutral tails of all arrays
        buffers.write_plan(host, capacity, known, lens, slots, tokens, factors)
        self.contents.num_tokens, self.contents.max_rank = tokens, known.largest
        staging.send(buffer)

    def without_token_words(self) -> EmbeddingBatch:
        """A view of this batch with csgmv's structure only. It shares the device arrays and follows refills.

        Raises ShapeError if the batch was planned without segments.
        """
        if self.seg_indptr is None:
            raise ShapeError(NO_STRUCTURE)
        others = {name: getattr(self, name) for name in (*ARRAYS[1:], *SIZES)}
        return EmbeddingBatch(token_adapters=None, contents=self.contents, **others)

    def check_fits(self, tokens: int, slots: int, max_rank: int, what: str) -> None:
        """Check that an operand of `tokens` rows and tables of these slots and this max_rank fit the batch.

        Zero rows always fit: engines run their layers so on a rank that idles while others work. what: the operand's
        name. Raises ShapeError or CapacityError.
        """
        contents, capacity = self.contents, self.max_tokens
        planned = contents.num_tokens
        if capacity is not None and tokens > capacity:
            raise CapacityError(f"{what} has {tokens} tokens; expected at most {capacity}, as allocated")
        if planned is not None and tokens != planned and tokens != 0:
            if capacity is None:
                raise ShapeError(f"{what} has {tokens} tokens; expected {planned}, the tokens of the batch")
            if tokens < planned:
                raise ShapeError(f"{what} has {tokens} tokens; expected at least {planned}, those of the batch")
        rank = contents.max_rank
        if rank is None:
            return  # SGLang's ranks live on the device; the kernels clamp rank and slot instead
        if self.slots > slots:
            raise ShapeError(f"the batch has {self.slots} slots; expected at most {slots}, those of the tables")
        if rank > max_rank:
            raise ShapeError(
                f"the batch has an adapter of rank {rank}; expected at most {max_rank}, that of the tables"
            )


_numbers: dict[tuple[object, ...], int] = {}


def _number_of(batch: EmbeddingBatch) -> int:
    """Another number for each combination of dtypes, device and slots: cheaper in a key than these are."""
    described = [None if array is None else array.dtype for array in (getattr(batch, name) for name in ARRAYS)]
    return _numbers.setdefault((batch.device, batch.slots, *described), len(_numbers))
