"""One point of the parameter space: a frozen, hashable value, and the only key of a measurement."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, get_args

import msgspec

T = TypeVar("T")

Phase = Literal["decode", "prefill", "mixed"]
RankMix = Literal["equal", "ladder", "gaps"]
DType = Literal["float16", "bfloat16", "float32"]
Cache = Literal["warm", "cold"]
Storage = Literal["vocab_major", "rank_major"]
ClockName = Literal["graph", "eager", "prepare", "work"]
# lookup: the A side of the embedding layer; layer: all of it; head: shrink and expand of lm_head; expand: its expand.
Op = Literal["lookup", "layer", "head", "expand"]
TablesKey = tuple[Op, int, int, int, int, DType]  # op (head for expand), slots, rank, vocab, hidden, dtype

PHASES: tuple[Phase, ...] = get_args(Phase)
DTYPES: tuple[DType, ...] = get_args(DType)
CACHES: tuple[Cache, ...] = get_args(Cache)
STORAGES: tuple[Storage, ...] = get_args(Storage)
CLOCKS: tuple[ClockName, ...] = get_args(ClockName)
OPS: tuple[Op, ...] = get_args(Op)
HEAD_OPS: tuple[Op, ...] = ("head", "expand")  # one row a request in every phase: SGLang prunes a prefill's to the last
HIDDEN_OPS: tuple[Op, ...] = ("layer", "head")  # those that the hidden size matters to
ELEMENT_BYTES: dict[DType, int] = {"float16": 2, "bfloat16": 2, "float32": 4}

# In a mixed batch one request in eight is a prefill of `seq_len` tokens, the rest decode one token.
MIXED_PREFILL_SHARE = 8


class Case(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """The op, the batch and the tables of one point.

    `op` is what is run; `hidden` the width of an embedding, 0 for the ops that have none. `batch_size` requests; in
    prefill they share batch_size * seq_len tokens, lengths proportional to (i+1)^-skew. `adapters` slots hold an
    adapter; `mix` says how requests choose among them, and `base_fraction` of the requests use none. Storage and chunk
    size are properties of a contender.
    """

    phase: Phase
    batch_size: int
    seq_len: int
    rank: int
    skew: float = 0.0
    adapters: int = 8
    mix: str = "uniform"
    base_fraction: float = 0.0
    rank_mix: RankMix = "equal"
    vocab: int = 128256
    dtype: DType = "bfloat16"
    cache: Cache = "warm"
    op: Op = "lookup"
    hidden: int = 0

    @property
    def num_prefills(self) -> int:
        """Requests that bring more than one token."""
        if self.phase == "decode":
            return 0
        if self.phase == "prefill":
            return self.batch_size
        return max(1, self.batch_size // MIXED_PREFILL_SHARE)

    @property
    def num_tokens(self) -> int:
        prefills = self.num_prefills
        return prefills * self.seq_len + self.batch_size - prefills

    @property
    def tables(self) -> TablesKey:
        """Equal for cases whose tables are the same."""
        op: Op = "head" if self.op in HEAD_OPS else self.op
        return op, self.adapters + (self.base_fraction > 0), self.rank, self.vocab, self.hidden, self.dtype

    @property
    def key(self) -> str:
        """Canonical `name=value` list, sorted by name: the identity of the case in files and on the command line.

        A lookup's leaves out op and hidden, as written before there were other ops: its seeds and counts stay.
        """
        left_out = {"op=lookup", f"hidden={self.hidden}"} if self.op == "lookup" else set()
        return ",".join(term for term in self.terms if term not in left_out)

    @property
    def terms(self) -> list[str]:
        """`name=value` of every field, sorted by name: what a selection of cases may ask for."""
        return [f"{name}={value}" for name, value in sorted(msgspec.structs.asdict(self).items())]

    @property
    def label(self) -> str:
        """A short name for people; not unique across all axes, the key is."""
        shape = f"{self.batch_size}" if self.phase == "decode" else f"{self.batch_size}x{self.seq_len}"
        skew = f" skew {self.skew:g}" if self.skew else ""
        op = "" if self.op == "lookup" else f"{self.op} "
        hidden = f" h{self.hidden}" if self.hidden else ""
        return f"{op}{self.phase} {shape}{skew} r{self.rank}{hidden}"


def shuffled_by_tables(items: Iterable[T], case_of: Callable[[T], Case], rng: random.Random) -> list[T]:
    """A random order in which items that share tables stay together: making tables takes longer than sampling."""
    groups: dict[TablesKey, list[T]] = {}
    for item in items:
        groups.setdefault(case_of(item).tables, []).append(item)
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    for group in shuffled:
        rng.shuffle(group)
    return [item for group in shuffled for item in group]


def point_name(case: Case, contender: str, clock: str) -> str:
    """`contender|clock|case`: a point in NVTX ranges and logs, without the characters that are operators to ncu."""
    return f"{contender}|{clock}|" + case.key.replace(",", "|")
