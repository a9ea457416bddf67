"""Batches, tables and oracles for the tests of the whole layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from csgmv_embed import EmbeddingBatch, embedding_lora_reference, to_storage
from tests.support.rounding import Exact

NAN = float("nan")


@dataclass
class Case:
    """A batch over `len(ranks)` slots; `padding` rows behind its tokens, for a static batch."""

    lens: Sequence[int] = (3, 1, 40, 0, 7)
    slots: Sequence[int] = (0, 1, 2, 2, 3)
    ranks: Sequence[int] = (16, 0, 24, 5)
    max_rank: int = 24
    chunk_size: int = 16
    padding: int = 0
    words: bool = True
    dtype: torch.dtype = torch.float32
    storage: str = "vocab_major"
    hidden: int = 80
    vocab: int = 200
    device: Any = "cpu"

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(len(self.lens) + self.chunk_size)
        self.scalings = [0.5 + slot for slot in range(len(self.ranks))]

    @property
    def tokens(self) -> int:
        return sum(self.lens) + self.padding

    def batch(self) -> EmbeddingBatch:
        options: dict[str, Any] = {"segments": True, "chunk_size": self.chunk_size, "device": self.device}
        if self.padding:
            batch = EmbeddingBatch.allocate(max_tokens=self.tokens + 3, slots=len(self.ranks), **options)
            batch.refill(self.lens, self.slots, self.ranks, self.scalings)
        else:
            batch = EmbeddingBatch.build(self.lens, self.slots, self.ranks, scalings=self.scalings, **options)
        return batch if self.words else batch.without_token_words()

    def random(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(shape, device=self.device, generator=self.generator)
        return (values * scale).to(self.dtype)

    def ids(self) -> torch.Tensor:
        """Some of them outside the vocabulary."""
        shape = (self.tokens,)
        return torch.randint(-2, self.vocab + 9, shape, device=self.device, generator=self.generator)

    def a_table(self, columns: int) -> torch.Tensor:
        """(slots, max_rank, columns), NaN beyond each slot's rank."""
        table = self.random(len(self.ranks), self.max_rank, columns)
        for slot, rank in enumerate(self.ranks):
            table[slot, rank:] = NAN
        return table

    def embedding_a(self) -> torch.Tensor:
        return to_storage(self.a_table(self.vocab), self.storage)  # type: ignore[arg-type]

    def b_table(self, rows: int) -> torch.Tensor:
        """(slots, rows, max_rank), NaN beyond each slot's rank."""
        table = self.random(len(self.ranks), rows, self.max_rank, scale=self.max_rank**-0.5)
        for slot, rank in enumerate(self.ranks):
            table[slot, :, rank:] = NAN
        return table

    @property
    def token_slots(self) -> torch.Tensor:
        """Slots of the tokens, -1 for padding rows."""
        slots = [slot for length, slot in zip(self.lens, self.slots, strict=True) for _ in range(length)]
        return torch.tensor(slots + [-1] * self.padding, device=self.device)

    def _per_slot(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """token_slots, ranks and scalings with one slot of rank 0 more, that of the padding rows."""
        slots = torch.where(self.token_slots < 0, len(self.ranks), self.token_slots)
        ranks = torch.tensor([*self.ranks, 0], device=self.device)
        return slots, ranks, torch.tensor([*self.scalings, 1.0], device=self.device)

    def expected_layer(
        self, ids: torch.Tensor, embedding: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any
    ) -> Exact:
        extra = options.pop("extra_embeddings", None)
        tables = embedding, _one_slot_more(a), _one_slot_more(b)
        extra = None if extra is None else _one_slot_more(extra)

        def reference(change: Any) -> torch.Tensor:
            changed = None if extra is None else change(extra)
            return embedding_lora_reference(
                ids, *map(change, tables), *self._per_slot(), self.vocab, changed, **options
            )

        return Exact(reference(torch.clone), reference(torch.abs), terms=self.max_rank + 2)  # scaled, base added


def _one_slot_more(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, table.new_zeros(1, *table.shape[1:])])
