"""One point of the parameter space: a frozen, hashable value, and the only key of a measurement."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, get_args

import msgspec

T = TypeVar("T")

Phase = Literal["decode", "prefill", "mixed"]
RankMix = Literal["equal", "ladder", "gaps", "pairs"]
DType = Literal["float16", "bfloat16", "float32"]
Cache = Literal["warm", "cold"]
Storage = Literal["vocab_major", "rank_major"]
ClockName = Literal["graph", "eager", "prepare", "work"]
# lookup: the A side of the embedding layer; layer: all of it; head: shrink and expand of lm_head; expand: its expand.
# With a site: shrink and expand are the halves of LoRA on it, linear both; an expand without one is lm_head's.
Op = Literal["lookup", "layer", "head", "linear", "expand", "shrink"]
Site = Literal["none", "qkv", "o", "gate_up", "down"]
Model = Literal["none", "1b", "8b", "70b-tp8", "135m"]  # whose shapes a site has: bench/workload/sites.py
# op (head for its expand, linear for all of a site), slots, rank, vocab, hidden, dtype, site, model
TablesKey = tuple[Op, int, int, int, int, DType, Site, Model]

PHASES: tuple[Phase, ...] = get_args(Phase)
DTYPES: tuple[DType, ...] = get_args(DType)
CACHES: tuple[Cache, ...] = get_args(Cache)
STORAGES: tuple[Storage, ...] = get_args(Storage)
CLOCKS: tuple[ClockName, ...] = get_args(ClockName)
OPS: tuple[Op, ...] = get_args(Op)
SITES: tuple[Site, ...] = get_args(Site)
MODELS: tuple[Model, ...] = get_args(Model)
SITE_OPS: tuple[Op, ...] = ("linear", "expand", "shrink")  # those that a site has
HIDDEN_OPS: tuple[Op, ...] = ("layer", "head")  # those that the hidden size matters to
PLAIN_VOCAB = 128256  # Llama 3's; of what has no vocabulary, too
ELEMENT_BYTES: dict[DType, int] = {"float16": 2, "bfloat16": 2, "float32": 4}

# In a mixed batch one request in eight is a prefill of `seq_len` tokens, the rest decode one token.
MIXED_PREFILL_SHARE = 8


class Case(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """The op, the batch and the tables of one point.

    `op` is what is run. `hidden` is the width of an embedding, 0 for ops that have none. `site` names the linear layers
    of `model` whose LoRA is run; it is none for the ops of embedding and lm_head. There are `batch_size` requests. In
    prefill they share batch_size * seq_len tokens, with lengths proportional to (i+1)^-skew. `adapters` slots hold an
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
    vocab: int = PLAIN_VOCAB
    dtype: DType = "bfloat16"
    cache: Cache = "warm"
    op: Op = "lookup"
    hidden: int = 0
    site: Site = "none"
    model: Model = "none"

    @property
    def of_head(self) -> bool:
        """Whether the op is lm_head's.

        It has one row for each request in every phase, because SGLang prunes a prefill's rows to the last.
        """
        return self.op == "head" or (self.op == "expand" and self.site == "none")

    @property
    def num_prefills(self) -> int:
        """Requests with more than one token."""
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
        """A value that is equal for cases with the same tables."""
        op: Op = "head" if self.of_head else "linear" if self.site != "none" else self.op
        slots = self.adapters + (self.base_fraction > 0)
        return op, slots, self.rank, self.vocab, self.hidden, self.dtype, self.site, self.model

    @property
    def key(self) -> str:
        """Canonical `name=value` list, sorted by name: the identity of the case in files and on the command line.

        A lookup's key leaves out op and hidden, because it was written before there were other ops. Keys without a site
        leave out site and model. So their seeds and counts stay the same.
        """
        left_out = {"site=none", "model=none"}
        if self.op == "lookup":
            left_out |= {"op=lookup", f"hidden={self.hidden}"}
        return ",".join(term for term in self.terms if term not in left_out)

    @property
    def terms(self) -> list[str]:
        """`name=value` of every field, sorted by name. A selection of cases may name any of them."""
        return [f"{name}={value}" for name, value in sorted(msgspec.structs.asdict(self).items())]

    @property
    def label(self) -> str:
        """A short name for people. It is not unique over all axes; the key is."""
        shape = f"{self.batch_size}" if self.phase == "decode" else f"{self.batch_size}x{self.seq_len}"
        skew = f" skew {self.skew:g}" if self.skew else ""
        op = "" if self.op == "lookup" else f"{self.op} "
        site = "" if self.site == "none" else f"{self.model} {self.site} "
        hidden = f" h{self.hidden}" if self.hidden else ""
        return f"{op}{site}{self.phase} {shape}{skew} r{self.rank}{hidden}"


def shuffled_by_tables(items: Iterable[T], case_of: Callable[[T], Case], rng: random.Random) -> list[T]:
    """A random order that keeps items with the same tables together.

    Making tables takes longer than sampling.
    """
    groups: dict[TablesKey, list[T]] = {}
    for item in items:
        groups.setdefault(case_of(item).tables, []).append(item)
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    for group in shuffled:
        rng.shuffle(group)
    return [item for group in shuffled for item in group]


def point_name(case: Case, contender: str, clock: str) -> str:
    """`contender|clock|case`: a point's name in NVTX ranges and logs, without characters that are operators to ncu."""
    return f"{contender}|{clock}|" + case.key.replace(",", "|")
