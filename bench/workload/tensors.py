"""The tensors of a case, made from the case and a seed only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from bench.model.case import ELEMENT_BYTES, Case, Storage
from bench.workload import sites

IntArray = np.ndarray[tuple[int], np.dtype[np.int32]]

# Every tensor of values is one random block laid end to end: filling it costs memory bandwidth instead of random
# numbers. A prime period keeps a wrong slot, rank or id from reading the right value; tensors that are multiplied with
# each other come from different blocks.
PATTERN_PERIOD = 1_048_583
SECTOR_BYTES = 32

# Beside the A table of lookup and layer, which has a storage. b: of layer and of lm_head, by the op of the case.
Weight = Literal["embedding", "b", "head_a", "lm_head"]
Input = Literal["hidden_states", "shrunk", "logits", "x", "base"]
ADDED_TO: tuple[Input, ...] = ("logits", "base")  # what heads and sites add to in place
SiteTable = Literal["site_a", "site_b", "site_weight"]
_BLOCKS: dict[str, int] = {"a": 0, "embedding": 1, "b": 2, "head_a": 3, "lm_head": 4, "hidden_states": 5}
_BLOCKS |= {"shrunk": 6, "logits": 7, "site_a": 8, "site_b": 9, "site_weight": 10, "x": 11, "base": 12}
SET_STEP = 7919  # elements of the block between the tensors of neighbouring index sets

LAYOUT_PAD_BYTES = 4 << 20
LAYOUT_STEP_BYTES = 512  # alignment of torch's own allocations: kernels see the same alignment in every layout
RELAYOUT_LIMIT_BYTES = 4 << 30  # a larger table stays where it is: two copies may not fit


def case_seed(case: Case, seed: int) -> int:
    """A seed that depends on the whole case, and is equal in every process."""
    digest = hashlib.sha256(f"{seed}:{case.key}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def sequence_lengths(case: Case) -> IntArray:
    """Tokens of each request: shares proportional to (i+1)^-skew of the prefill tokens, at least 1, the total exact."""
    prefills = case.num_prefills
    ones = np.ones(case.batch_size - prefills, dtype=np.int32)
    if prefills == 0:
        return ones
    spare = prefills * (case.seq_len - 1)
    weights = np.arange(1, prefills + 1, dtype=np.float64) ** -case.skew
    share = spare * weights / weights.sum()
    lengths = np.floor(share).astype(np.int32)
    largest_remainders = np.argsort(lengths - share, kind="stable")[: spare - int(lengths.sum())]
    lengths[largest_remainders] += 1
    return np.concatenate([lengths + 1, ones])


def adapter_ranks(case: Case) -> IntArray:
    """Rank of each slot. ladder: rank, rank/2, rank/4, rank/8, repeated; pairs: rank, rank/4; gaps: a fourth is 0."""
    slots = np.arange(case.adapters)
    ranks = np.full(case.adapters, case.rank, dtype=np.int32)
    if case.rank_mix == "ladder":
        ranks = np.maximum(1, case.rank >> (slots % 4)).astype(np.int32)
    elif case.rank_mix == "pairs":
        ranks = np.maximum(1, case.rank >> (slots % 2 * 2)).astype(np.int32)
    elif case.rank_mix == "gaps":
        ranks[slots % 4 == 3] = 0
    if case.base_fraction > 0:
        ranks = np.append(ranks, np.int32(0))  # requests without an adapter share one slot of rank 0, as in SGLang
    return ranks.astype(np.int32)


def request_slots(case: Case, rng: np.random.Generator) -> IntArray:
    """The slot of each request, by `case.mix`; a random `base_fraction` of them uses the slot without adapter."""
    count, adapters = case.batch_size, case.adapters
    if case.mix == "one":
        slots = np.zeros(count, dtype=np.int64)
    elif case.mix == "distinct":
        slots = np.arange(count, dtype=np.int64)
    elif case.mix == "uniform":
        slots = rng.permutation(np.arange(count, dtype=np.int64) % adapters)
    else:
        exponent = float(case.mix.removeprefix("zipf:"))
        weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
        slots = rng.choice(adapters, size=count, p=weights / weights.sum())
    base = round(case.base_fraction * count)
    slots[rng.permutation(count)[:base]] = adapters
    return slots.astype(np.int32)


@dataclass
class Workload:
    """Lengths, slots, ranks and scalings on the host; index sets and tables on the device.

    Shapes: seq_lens, seq_slots (batch_size,); ranks, scalings (slots,); index_sets: each (num_tokens,) int64. Tables
    and inputs are made when they are first asked for; cases with equal `Case.tables` may share `tables`.

    reuse_bytes: index sets of a site have tables of their own, as many as it takes that so many bytes of them are read
    before one is read again; 0: all have the same.
    """

    case: Case
    device: torch.device
    seq_lens: IntArray
    seq_slots: IntArray
    ranks: IntArray
    index_sets: list[torch.Tensor]
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[Input, list[torch.Tensor]] = field(default_factory=dict)
    reuse_bytes: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[self.case.dtype]

    @property
    def num_tokens(self) -> int:
        return self.case.num_tokens

    @property
    def num_slots(self) -> int:
        return len(self.ranks)

    @property
    def out_features(self) -> int:
        """Columns that the op writes: rows of a slot's B, a lookup's rank, or the ranks of a shrink's slices."""
        case = self.case
        if case.site != "none":
            return sites.out_features(case)
        return case.rank if case.op == "lookup" else case.vocab if case.of_head else case.hidden

    @property
    def scalings(self) -> list[float]:
        """Scaling of each slot: 0.5, 0.75, 1, 1.25, repeated.

        Exact in every dtype, and different from its neighbour's.
        """
        return [0.5 + 0.25 * (slot % 4) for slot in range(self.num_slots)]

    def table(self, storage: Storage) -> torch.Tensor:
        """The A table (slots, rank, vocab) of lookup and layer, in this storage. Both storages have equal values."""
        if storage not in self.tables:
            self.tables[storage] = make_table(self.case, self.num_slots, storage, self.dtype, self.device)
        return self.tables[storage]

    def weight(self, name: Weight) -> torch.Tensor:
        """embedding, lm_head (vocab, hidden); b (slots, out_features, rank); head_a (slots, rank, hidden).

        Values are scaled so that what a product with them adds up to is of the order of 1.
        """
        if name not in self.tables:
            case, slots = self.case, self.num_slots
            per_hidden = max(1, case.hidden) ** -0.5  # an expand has no hidden size
            shape, scale = {
                "embedding": ((case.vocab, case.hidden), 1.0),
                "lm_head": ((case.vocab, case.hidden), per_hidden),
                "b": ((slots, self.out_features, case.rank), case.rank**-0.5),
                "head_a": ((slots, case.rank, case.hidden), per_hidden),
            }[name]
            self.tables[name] = self._filled(name, shape, scale=scale)
        return self.tables[name]

    def given(self, name: Input) -> list[torch.Tensor]:
        """For each index set, (tokens, columns): hidden_states, shrunk, logits of lm_head; of a site x, shrunk, base.

        Shrunk rows of a site have slice i from column i * rank on. Logits and base are what is added to: `restore`
        makes them anew.
        """
        if name not in self.inputs:
            self.inputs[name] = [self._input(name, index) for index in range(len(self.index_sets))]
        return self.inputs[name]

    def site_tables(self, index_set: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A (slots, slices * rank, features), packed by each slot's own rank, and B (slots, out_features, rank)."""
        shape, rank, slots = sites.shape_of(self.case), self.case.rank, self.num_slots
        number = index_set % self._copies(self.used_ranks * (shape.slices * shape.features + shape.out_features))
        a_shape, b_shape = (slots, shape.slices * rank, shape.features), (slots, shape.out_features, rank)
        a_table = self._site_table("site_a", number, a_shape, shape.features**-0.5)
        return a_table, self._site_table("site_b", number, b_shape, rank**-0.5)

    def all_site_tables(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The site tables of every index set."""
        return [self.site_tables(index) for index in range(len(self.index_sets))]

    def site_weight(self, index_set: int) -> torch.Tensor:
        """The base weight (out_features, features) of the site."""
        shape = sites.shape_of(self.case)
        number = index_set % self._copies(shape.out_features * shape.features)
        return self._site_table("site_weight", number, (shape.out_features, shape.features), shape.features**-0.5)

    def _site_table(self, name: SiteTable, number: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        key = f"{name}_{number}"
        if key not in self.tables:
            self.tables[key] = self._filled(name, shape, scale=scale, first=SET_STEP * number)
        return self.tables[key]

    def _copies(self, elements: int) -> int:
        """Tables of so many elements that are read in turn: the least that spreads the index sets evenly over them."""
        sets, nbytes = len(self.index_sets), max(1, elements * ELEMENT_BYTES[self.case.dtype])
        least = max(1, -(-self.reuse_bytes // nbytes))
        return next((count for count in range(least, sets + 1) if sets % count == 0), sets)

    @property
    def used_ranks(self) -> int:
        """Sum of the ranks of the slots in use."""
        return int(self.ranks[np.unique(self.seq_slots)].sum(dtype=np.int64))

    def unadded(self, index_set: int) -> torch.Tensor:
        """A copy of an index set's logits or base before anything was added."""
        return self._input("base" if self.case.site != "none" else "logits", index_set)

    def restore(self) -> None:
        """Undo what ops that add in place have added."""
        for name in ADDED_TO:
            for index, added_to in enumerate(self.inputs.get(name, ())):
                fill(added_to, _BLOCKS[name], first=SET_STEP * index)

    def _input(self, name: Input, index_set: int) -> torch.Tensor:
        case = self.case
        if case.site == "none":
            columns = {"hidden_states": case.hidden, "shrunk": case.rank, "logits": case.vocab}[name]
        else:
            shape = sites.shape_of(case)
            columns = {"x": shape.features, "shrunk": shape.slices * case.rank, "base": shape.out_features}[name]
        return self._filled(name, (self.num_tokens, columns), first=SET_STEP * index_set)

    def _filled(self, name: str, shape: tuple[int, ...], *, scale: float = 1.0, first: int = 0) -> torch.Tensor:
        made = torch.empty(shape, dtype=self.dtype, device=self.device)
        fill(made, _BLOCKS[name], scale=scale, first=first)
        return made

    def relayout(self, seed: int) -> None:
        """Move every tensor to other addresses, because one memory layout is only one sample of many."""
        rng = np.random.default_rng(seed)
        self.index_sets = [_moved(ids, rng) for ids in self.index_sets]
        for name in list(self.tables):
            if self.tables[name].nbytes <= RELAYOUT_LIMIT_BYTES:
                self.tables[name] = _moved(self.tables[name], rng)
        for sets in self.inputs.values():
            for index in range(len(sets)):  # one at a time: two copies of all may not fit
                sets[index] = _moved(sets[index], rng)

    def token_slots(self) -> IntArray:
        return np.repeat(self.seq_slots, self.seq_lens)

    def distinct_rows(self, ids_together: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Distinct slot * vocab + id of those tokens of index set 0 that read anything.

        Ids in one aligned group of `ids_together` count once: they share a sector in a rank-major table.
        """
        slots = self.token_slots().astype(np.int64)
        ids = self.index_sets[0].cpu().numpy() // ids_together * ids_together
        return np.unique((slots * self.case.vocab + ids)[self.ranks[slots] > 0])


def _moved(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A copy at a random offset in a fresh, larger allocation; strides kept (the tensor must be dense)."""
    slab = torch.empty(tensor.nbytes + LAYOUT_PAD_BYTES, dtype=torch.uint8, device=tensor.device)
    offset = int(rng.integers(LAYOUT_PAD_BYTES // LAYOUT_STEP_BYTES)) * LAYOUT_STEP_BYTES
    home = slab[offset : offset + tensor.nbytes].view(tensor.dtype)
    return home.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def fill(tensor: torch.Tensor, block: int, *, scale: float = 1.0, first: int = 0) -> None:
    """Repeat a random block end to end in a contiguous tensor, from its element `first` on, times `scale`."""
    pattern = _pattern(block, tensor.device)
    pattern = torch.roll(pattern, -first).mul_(scale) if first % PATTERN_PERIOD or scale != 1.0 else pattern
    flat = tensor.view(-1)
    pattern = pattern.to(tensor.dtype)
    whole = flat.numel() // PATTERN_PERIOD * PATTERN_PERIOD
    flat[:whole].view(-1, PATTERN_PERIOD).copy_(pattern.expand(whole // PATTERN_PERIOD, -1))
    flat[whole:].copy_(pattern[: flat.numel() - whole])


@lru_cache
def _pattern(block: int, device: torch.device) -> torch.Tensor:
    """A block of standard normal values, float32: made once in a process, for it takes 19 ms."""
    rng = np.random.default_rng(PATTERN_PERIOD + block)
    return torch.from_numpy(rng.standard_normal(PATTERN_PERIOD, dtype=np.float32)).to(device)


def make_table(case: Case, slots: int, storage: Storage, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A (slots, rank, vocab) table whose values depend only on the logical index."""
    table = torch.empty(slots, case.rank, case.vocab, dtype=dtype, device=device)
    fill(table, _BLOCKS["a"])
    return table if storage == "rank_major" else table.transpose(1, 2).contiguous().transpose(1, 2)


def set_bytes(case: Case) -> int:
    """Memory of one index set: ids, inputs and what a launch writes."""
    if case.site != "none":
        shape = sites.shape_of(case)
        columns = shape.slices * case.rank
        columns += {"shrink": shape.features, "expand": shape.out_features}.get(
            case.op, shape.features + shape.out_features
        )
        return case.num_tokens * (8 + columns * ELEMENT_BYTES[case.dtype])
    case_bytes = {
        "lookup": case.rank,
        "layer": case.hidden,
        "head": case.hidden + case.rank + case.vocab,
        "expand": case.rank + case.vocab,
    }[case.op]
    return case.num_tokens * (8 + case_bytes * ELEMENT_BYTES[case.dtype])


def make_workload(case: Case, *, seed: int, index_sets: int, device: torch.device, reuse_bytes: int = 0) -> Workload:
    """Lengths, slots, ids and ranks of a case. Tables are made on demand."""
    rng = np.random.default_rng(case_seed(case, seed))
    seq_slots = request_slots(case, rng)
    ids = [torch.from_numpy(rng.integers(0, case.vocab, case.num_tokens)).to(device) for _ in range(index_sets)]
    lens, ranks = sequence_lengths(case), adapter_ranks(case)
    return Workload(case, device, lens, seq_slots, ranks, ids, reuse_bytes=reuse_bytes)
