"""What the plugin keeps for one backend object: its adapters, its host buffers, its last decode step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from csgmv_embed.batch.plan import MAX_RANK, Int32Array, Int64Array, Ranks
from csgmv_embed.batch.staging import Staging
from csgmv_embed.sglang.targets import Release

STATE = "csgmv_embed_state"  # attribute of a backend object


class Scalings:
    """The scalings of the slots as 32-bit words; they change when adapters do, not with every batch."""

    def __init__(self) -> None:
        self.given: list[float] = []
        self.words = np.zeros(0, dtype=np.int32)

    def update(self, scalings: list[float]) -> None:
        if scalings != self.given:
            self.given = list(scalings)
            self.words = np.array(scalings, dtype=np.float32).view(np.int32)


class Step(NamedTuple):
    """A decode step as it was given, and what was prepared for it."""

    slots: list[int]
    ranks: list[int] | None
    scalings: list[float]
    words_version: int
    static_info: Any
    batch_info: Any


@dataclass
class State:
    """What the plugin keeps for one backend object.

    None in the two flags, in slot_has_embedding and slot_has_head means not told: then everything is prepared.
    """

    backend: Any
    release: Release
    embedding_targeted: bool | None = None
    lm_head_targeted: bool | None = None
    in_row_layer: bool = False  # whether a row-parallel linear layer is being run
    linear_wanted: bool = False  # whether linear layers are served by this plugin: their tiles are planned then
    head_wanted: bool = False  # the same of lm_head
    slot_has_embedding: npt.NDArray[np.bool_] | None = None
    slot_has_head: npt.NDArray[np.bool_] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    scalings: Scalings = field(default_factory=Scalings)
    staging: Staging | None = None
    positions: torch.Tensor | None = None  # 0, 1, 2, ... on the device
    last_step: Step | None = None  # what the last call prepared, if that was a decode step
    layer_ranks: Int32Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # of the words below
    # The words of all slots these came from, and those that are left of them; None if a slot has changed since.
    _words_known: tuple[Int32Array, Int32Array | None] | None = None
    words_version: int = 0

    def set_slot(self, slot: int, *, has_embedding: bool, has_head: bool) -> None:
        """Say whether the adapter now in `slot` has LoRA weights of the embedding layer, and of lm_head."""
        if self.slot_has_embedding is None or self.slot_has_head is None:
            self.slot_has_embedding = np.zeros(self.backend.max_loras_per_batch, dtype=np.bool_)
            self.slot_has_head = self.slot_has_embedding.copy()
        self.slot_has_embedding[slot], self.slot_has_head[slot] = has_embedding, has_head
        self._words_known = None
        self.words_version += 1  # word_by_slot does not where the embedding layer is not targeted

    @contextmanager
    def with_all_layers(self) -> Iterator[None]:
        """Within, every slot with a rank has LoRA on every layer, whatever was said of them."""
        told = self.slot_has_embedding, self.slot_has_head
        self.slot_has_embedding = self.slot_has_head = self._words_known = None
        try:
            yield
        finally:
            self.slot_has_embedding, self.slot_has_head = told
            self._words_known = None

    def head_ranks(self) -> Int64Array:
        """The rank of each slot on lm_head, 0 where its adapter has no LoRA there."""
        ranks = self.ranks.values
        return ranks if self.slot_has_head is None else np.where(self.slot_has_head, ranks, 0)

    def heads_of(self, slots: Int64Array) -> tuple[bool, bool]:
        """Whether an adapter among those of these slots has LoRA on lm_head, and whether all of them have."""
        has_head = self.head_ranks()[slots] > 0
        return bool(has_head.any()), bool((has_head == (self.ranks.values[slots] > 0)).all())

    def word_by_slot(self) -> Int32Array | None:
        """The token word of each slot; None if no slot that was given a rank has LoRA on the embedding layer.

        Afterwards layer_ranks are the ranks in the words.
        """
        if self.embedding_targeted is False:
            return None
        words = self.ranks.words
        if self._words_known is None or self._words_known[0] is not words:
            left = words if self.slot_has_embedding is None else np.where(self.slot_has_embedding, words, 0)
            self._words_known = words, left if left.any() else None
            self.layer_ranks = left & MAX_RANK
            self.words_version += 1
        return self._words_known[1]


def attach(backend: Any, release: Release, *, linear: bool = False, head: bool = False) -> State:
    """The state of a backend object, made on first use. linear, head: whether the plugin serves them."""
    state: State | None = getattr(backend, STATE, None)
    if state is None:
        state = State(backend, release, linear_wanted=linear, head_wanted=head)
        setattr(backend, STATE, state)
    return state
