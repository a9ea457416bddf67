"""The tensors of a case, made from the case and a seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from bench.case import ELEMENT_BYTES, Case, Storage
from csgmv_embed import layout
from csgmv_embed.reference import embedding_lora_a_reference

IntArray = np.ndarray[tuple[int], np.dtype[np.int32]]

# The table is one random block laid end to end: filling it costs memory bandwidth instead of random numbers.
# A prime period keeps a wrong slot, rank or id from reading the right value.
PATTERN_PERIOD = 1_048_583
SECTOR_BYTES = 32

LAYOUT_PAD_BYTES = 4 << 20
LAYOUT_STEP_BYTES = 512  # alignment of torch's own allocations: kernels see the same alignment in every layout
RELAYOUT_LIMIT_BYTES = 4 << 30  # a larger table stays where it is: two copies may not fit


def case_seed(case: Case, seed: int) -> int:
    """A seed that depends on the whole case, equal in every process."""
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
    """Rank of each slot. ladder: rank, rank/2, rank/4, rank/8, repeated; gaps: every fourth slot has rank 0."""
    slots = np.arange(case.adapters)
    ranks = np.full(case.adapters, case.rank, dtype=np.int32)
    if case.rank_mix == "ladder":
        ranks = np.maximum(1, case.rank >> (slots % 4)).astype(np.int32)
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
    """Lengths, slots and ranks on the host; index sets and tables on the device.

    Shapes: seq_lens, seq_slots (batch_size,); ranks (slots,); index_sets: each (num_tokens,) int64.
    """

    case: Case
    device: torch.device
    seq_lens: IntArray
    seq_slots: IntArray
    ranks: IntArray
    index_sets: list[torch.Tensor]
    tables: dict[Storage, torch.Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[self.case.dtype]

    @property
    def num_tokens(self) -> int:
        return self.case.num_tokens

    @property
    def num_slots(self) -> int:
        return len(self.ranks)

    def table(self, storage: Storage) -> torch.Tensor:
        """The A table (slots, rank, vocab) in this storage; equal values in both."""
        if storage not in self.tables:
            self.tables[storage] = make_table(self.case, self.num_slots, storage, self.dtype, self.device)
        return self.tables[storage]

    def relayout(self, seed: int) -> None:
        """Move every tensor to other addresses: one memory layout is one sample of many."""
        rng = np.random.default_rng(seed)
        self.index_sets = [_moved(ids, rng) for ids in self.index_sets]
        for storage in list(self.tables):
            if self.tables[storage].nbytes <= RELAYOUT_LIMIT_BYTES:
                self.tables[storage] = _moved(self.tables[storage], rng)

    def token_slots(self) -> IntArray:
        return np.repeat(self.seq_slots, self.seq_lens)

    def oracle(self, index_set: int) -> torch.Tensor:
        """The exact lookup of one index set, by the torch reference."""
        storage: Storage = "vocab_major" if "vocab_major" in self.tables else "rank_major"
        return embedding_lora_a_reference(
            self.index_sets[index_set],
            self.table(storage),
            torch.from_numpy(self.token_slots()).to(self.device),
            torch.from_numpy(self.ranks).to(self.device),
            self.case.vocab,
        )

    def distinct_rows(self, ids_together: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Distinct slot * vocab + id of the tokens of index set 0 that read anything.

        Ids in one aligned group of `ids_together` count as one: those that share a sector in a rank-major table.
        """
        slots = self.token_slots().astype(np.int64)
        ids = self.index_sets[0].cpu().numpy() // ids_together * ids_together
        return np.unique((slots * self.case.vocab + ids)[self.ranks[slots] > 0])

    def minimum_bytes(self) -> int:
        """Least traffic of any implementation: ids and distinct rows read once, the output written once."""
        element = ELEMENT_BYTES[self.case.dtype]
        rows = self.distinct_rows() // self.case.vocab
        row_bytes = int(self.ranks[rows].sum()) * element
        return self.num_tokens * (8 + self.case.rank * element) + row_bytes


def _moved(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A copy at a random offset in a fresh, larger allocation; strides kept (the tensor must be dense)."""
    slab = torch.empty(tensor.nbytes + LAYOUT_PAD_BYTES, dtype=torch.uint8, device=tensor.device)
    offset = int(rng.integers(LAYOUT_PAD_BYTES // LAYOUT_STEP_BYTES)) * LAYOUT_STEP_BYTES
    home = slab[offset : offset + tensor.nbytes].view(tensor.dtype)
    return home.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def make_table(case: Case, slots: int, storage: Storage, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A (slots, rank, vocab) table whose values depend on the logical index alone."""
    rng = np.random.default_rng(PATTERN_PERIOD)
    pattern = torch.from_numpy(rng.standard_normal(PATTERN_PERIOD, dtype=np.float32)).to(device=device, dtype=dtype)
    table = layout.empty_a_table(slots, case.rank, case.vocab, dtype=dtype, device=device, storage="rank_major")
    flat = table.view(-1)
    whole = flat.numel() // PATTERN_PERIOD * PATTERN_PERIOD
    flat[:whole].view(-1, PATTERN_PERIOD).copy_(pattern.expand(whole // PATTERN_PERIOD, -1))
    flat[whole:].copy_(pattern[: flat.numel() - whole])
    return layout.to_storage(table, storage)


def make_workload(case: Case, *, seed: int, index_sets: int, device: torch.device) -> Workload:
    """Lengths, slots, ids and ranks of a case; tables follow on demand."""
    rng = np.random.default_rng(case_seed(case, seed))
    seq_slots = request_slots(case, rng)
    ids = [torch.from_numpy(rng.integers(0, case.vocab, case.num_tokens)).to(device) for _ in range(index_sets)]
    return Workload(case, device, sequence_lengths(case), seq_slots, adapter_ranks(case), ids)
