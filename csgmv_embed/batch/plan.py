"""The arithmetic of a plan: checks the callers' arrays and computes csgmv's structure. Uses numpy only, no torch."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from csgmv_embed.errors import CapacityError, ShapeError, SlotError

MAX_SLOTS = 1 << 15
BYTE = 1 << 8  # values of a byte
MAX_RANK = (1 << 16) - 1
MAX_TOKENS = (1 << 31) - 1  # the arrays are int32

Ints = Sequence[int] | npt.NDArray[np.integer[Any]]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


class Ranks:
    """The ranks of the slots and what follows from them. They change with the adapters, not with every batch."""

    def __init__(self) -> None:
        self.given: list[int] | None = None
        self.values: Int64Array = counting(0)
        self.words: Int32Array = _NO_WORDS  # slot << 16 | rank of each slot, 0 without LoRA; replaced, not written
        self.largest = 0

    def update(self, ranks: Ints) -> None:
        """Take these ranks; raises ShapeError, SlotError."""
        if type(ranks) is list and ranks == self.given:
            return
        values = integers("ranks", ranks, MAX_RANK)
        if len(values) > MAX_SLOTS:
            raise SlotError(f"ranks has {len(values)} slots; expected at most {MAX_SLOTS}")
        self.given = list(ranks) if type(ranks) is list else None
        self.values = values.copy()  # the caller may write into its array later
        self.words = np.where(values > 0, np.arange(len(values)) << 16 | values, 0).astype(np.int32)
        self.largest = int(values.max(initial=0))


def plan_segments(
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
    """Write csgmv's structure into the given arrays. Returns the number of segments.

    The rest of permutation behind the tokens, and of seg_slots behind the segments, is left as it is; it must be zeros
    to be neutral. seg_indptr gets a neutral tail.
    """
    # 8 and 16-bit integers are sorted by radix.
    order = slots.astype(np.uint8 if len(ranks) <= BYTE else np.int16).argsort(kind="stable")
    if lens is None:
        permutation[:tokens] = order
    else:
        starts = lens.cumsum() - lens
        sorted_lens = lens[order]
        # from a token's place in the group order to the token
        shift = starts[order] - (sorted_lens.cumsum() - sorted_lens)
        np.add(shift.astype(np.int32).repeat(sorted_lens), counting_int32(tokens), out=permutation[:tokens])

    group_tokens = group_sizes(lens, slots, len(ranks))
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


def group_sizes(lens: Int64Array | None, slots: Int64Array, num_slots: int) -> Int64Array:
    """Tokens of each slot. lens=None means one token for each sequence."""
    if lens is None:
        return np.bincount(slots, minlength=num_slots)
    return np.bincount(slots, weights=lens, minlength=num_slots).astype(np.int64)


@cache
def chunk_constants(chunk_size: int) -> tuple[Int64Array, Int64Array]:
    """chunk_size and chunk_size - 1 as 0-d arrays, which numpy uses in half the time of a Python int."""
    return np.array(chunk_size), np.array(chunk_size - 1)


_NO_WORDS: Int32Array = np.zeros(0, dtype=np.int32)
_counting: Int64Array = np.arange(1024)
_counting_int32: Int32Array = np.arange(1024, dtype=np.int32)


def counting(size: int) -> Int64Array:
    """0, 1, ... size - 1, read-only: a slice of an array made once, because that costs less than a new one."""
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


def checked(seq_lens: Ints | None, seq_slots: Ints, num_slots: int) -> tuple[Int64Array | None, Int64Array, int]:
    """Lengths (None: one each) and slots as int64 arrays, and the number of tokens.

    Raises an error naming the first bad value.
    """
    slots = _slot_array(seq_slots, num_slots)
    if seq_lens is None:
        return None, slots, len(slots)
    lens = integers("seq_lens", seq_lens, MAX_TOKENS)
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
    return integers("seq_slots", values, num_slots - 1)  # names what is wrong


@cache
def _allowed_bytes(num_slots: int) -> bytes:
    return bytes(range(num_slots))


def checked_scalings(scalings: Sequence[float] | None, num_slots: int) -> Int32Array:
    """The float32 scalings of the slots as 32-bit words, as a buffer holds them. None means 1.0 each."""
    if scalings is None:
        return _ones(num_slots)
    try:
        found = np.asarray(scalings, dtype=np.float32)
    except (TypeError, ValueError):
        raise ShapeError(f"scalings is {scalings!r}; expected {num_slots} numbers on the host") from None
    if found.shape != (num_slots,):
        raise ShapeError(f"scalings has shape {found.shape}; expected ({num_slots},), one for each slot")
    if not np.isfinite(found).all():
        at = int((~np.isfinite(found)).argmax())
        raise ShapeError(f"scalings[{at}] is {found[at]}; expected a finite number")
    return found.view(np.int32)


@cache
def _ones(size: int) -> Int32Array:
    return np.ones(size, np.float32).view(np.int32)


def checked_size(name: str, value: object, low: int, high: int = MAX_TOKENS) -> int:
    """A plain int in [low, high]."""
    size = integer(name, value)
    if not low <= size <= high:
        raise SlotError(f"{name} is {size}; expected a value in [{low}, {high}]")
    return size


def integer(name: str, value: object) -> int:
    """A plain int from any integer type except bool. Raises ShapeError."""
    try:
        if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise ShapeError(f"{name} is {value!r}; expected an integer") from None


def integers(name: str, values: Ints, high: int) -> Int64Array:
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
