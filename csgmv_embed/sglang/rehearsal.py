"""Rehearses prefills of every size at a server's start, so that no request waits for the compiler.

Triton compiles a kernel at its first launch, which takes about a second, and keeps it on disk. A decode step's kernels
are compiled when its graphs are captured. A prefill takes other tiles, and other ones for 1024 tokens than for 8192:
without a rehearsal the first prompt of each size waits for the kernels of all sites, whenever it comes.

While the graphs are captured, each hook says what it launched (`note`). Afterwards all of that runs once more on
prefills of 1, 2, 4, ... tokens that nobody asked for, whose rows hold anything and whose results nobody reads. They are
planned as real ones are, so what they compile is what real ones take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import torch

from csgmv_embed.batch.plan import checked
from csgmv_embed.sglang.planner.arrays import Plan
from csgmv_embed.sglang.planner.eager import fill_new
from csgmv_embed.sglang.planner.state import State

logger = logging.getLogger(__name__)

Again = Callable[[Any, int], None]  # (batch info, tokens): launches what a hook launched, on so many rows
MOST_TOKENS = 16384  # tiles do not change beyond

noted: dict[object, Again] | None = None  # by what tells launches apart; None: nobody listens


def note(again: Again, *key: object) -> None:
    """What a hook has launched, and what tells it from other launches. Only to be called while someone listens."""
    assert noted is not None
    noted.setdefault(key, again)


@contextmanager
def listening() -> Iterator[Mapping[object, Again]]:
    """Within, hooks note what they launch."""
    global noted
    before, noted = noted, {}
    try:
        yield noted
    finally:
        noted = before


def rows_like(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Uninitialised rows (rows, columns) in the dtype of a tensor, as far apart as its own."""
    columns = tensor.shape[1]
    apart = tensor.stride(0) if tensor.shape[0] > 1 else columns
    return tensor.new_empty(rows, apart)[:, :columns]


def sizes(most_tokens: int) -> list[int]:
    """Up to the longest prefill: each power of two, where rules change their tile, and one more. Rising."""
    most = min(most_tokens, MOST_TOKENS)
    steps = {(1 << power) + more for power in range(most.bit_length()) for more in (0, 1)}
    return sorted({size for size in steps if size < most} | {most})


def rehearse(state: State, launched: Mapping[object, Again], most_tokens: int) -> None:
    """Run what was launched on prefills of every size up to most_tokens. The backend's own batch stays as it is.

    Where memory does not suffice for a size, or it fails, the larger ones are left to the requests. Raises nothing.
    """
    if not launched:
        return
    began, done, slots = monotonic(), 0, state.backend.max_loras_per_batch
    try:
        state.ranks.update([1] * slots)
        state.scalings.update([1.0] * slots)
        with state.with_all_layers():  # no slot holds an adapter when a server starts
            for tokens in sizes(most_tokens):
                # Of few and of many slots: an embedding's programs share out the rows without adapter by segments.
                for requests in sizes(min(tokens, slots)):
                    info = _batch_info(state, tokens, requests)
                    for again in launched.values():
                        again(info, tokens)
                done = tokens
    except torch.OutOfMemoryError:
        logger.warning("csgmv-embed: no memory to compile ahead for prefills of more than %d tokens", done)
    except Exception:  # a server starts without, too: then requests wait for what they need
        logger.exception("csgmv-embed: kernels for prefills of more than %d tokens could not be compiled ahead", done)
    finally:
        state.last_step = None  # ranks and scalings are not those of the last batch any more
    took = monotonic() - began
    logger.info("csgmv-embed: kernels for prefills of up to %d tokens are compiled (%.1f s)", done, took)


def _batch_info(state: State, tokens: int, requests: int) -> Any:
    """That of an eager prefill of requests of a slot each, as even as can be, for the ranks that the state has."""
    even = [tokens * (i + 1) // requests - tokens * i // requests for i in range(requests)]
    lens, seq_slots, _ = checked(even, list(range(requests)), state.backend.max_loras_per_batch)
    chunk_size = state.backend._determine_chunk_size_for_tokens(tokens)
    info, _ = fill_new(state, Plan(lens, seq_slots, tokens, chunk_size), [])
    return info
