"""Which tile a kernel takes, and why: a measured table per GPU model, and a rule where there is none.

A tile is BLOCK_M rows by BLOCK_N columns of what is written; a product takes BLOCK_K terms of its sum at a time.

Tables are `tuned/<GPU name>.json`, written by `python -m bench tune` on that GPU. Each row says up to which rank and
number of tokens it holds, for one plan, storage and element size, and why: the time of its configuration and of the
rule's. What suits one plan does not suit the other: every tile of the segments plan repeats its dependent loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

TABLES = Path(__file__).parents[1] / "tuned"
Plan = Literal["tokens", "segments"]  # how a kernel learns slot and rank of a token (kernels/lookup.py)


class LaunchConfig(NamedTuple):
    """Of a lookup: one program copies block_m tokens by block_n ranks with num_warps warps."""

    block_m: int
    block_n: int
    num_warps: int


class TunedRow(NamedTuple):
    """The best configuration measured for max_tokens tokens of rank max_rank, used up to there."""

    plan: str  # a Plan, or "any": the times are geometric means over both
    rows_contiguous: bool
    element_bytes: int
    max_rank: int
    max_tokens: int
    config: LaunchConfig
    best_us: float
    rule_us: float


# The rule, from 182 tiles timed once on an NVIDIA H200 (bf16, 8 slots, vocab 128256, graphs of 60 launches).
# Contiguous rows: (largest output in elements, elements of a tile).
# Small batches wait for memory: small tiles put more programs in flight. Large ones need bytes in flight: 2048
# elements are two 16-byte loads a thread (rank 256, 16384 tokens: 6.6 us).
ROW_TILES = ((1 << 17, 512), (1 << 19, 1024), (1 << 62, 2048))
MAX_BLOCK_N = 256

# Scattered elements: tall tiles of few ranks, ranks in the outer grid axis, so that programs running together read
# neighbouring ids of the same (slot, rank) line of the table (rank 256, 16384 tokens: 85 us, the worst tile 103).
SCATTERED_TILE = LaunchConfig(block_m=32, block_n=16, num_warps=4)


class TileConfig(NamedTuple):
    """Of the embedding layer and lm_head: a program takes block_m tokens by `steps` blocks of block_n columns.

    Terms of the sum, ranks but for lm_head's shrink, are multiplied block_k at a time.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    steps: int = 1


class ShrinkTile(NamedTuple):
    """Of linear layers: a program takes a tile of tokens, block_n rows of A and one of `splits` parts of the long sum.

    block_k are input features. The rows of a tile are the batch's (batch/tile_plan.py).
    """

    block_n: int
    block_k: int
    splits: int
    stages: int
    num_warps: int


class ExpandTile(NamedTuple):
    """Of linear layers: a program takes a tile of tokens and `steps` blocks of block_n columns; block_k are ranks."""

    block_n: int
    block_k: int
    steps: int
    stages: int
    num_warps: int


# Up to here the layer's programs find rows without adapter by their token words, two dependent loads away, in a batch
# planned anew too; beyond, where bytes count and latency does not, the walk of its segments writes them.
WORDS_MAX_TOKENS = 1024
MIN_TILE = 16  # the smallest matrix product
MAX_EXPAND_TILE = 32
SMALL_RANK = 32  # up to here a row of A and its product are cheap
LARGE_PREFILL = 8192  # tokens from which on reading B out of the L2 is what a prefill waits for

# Linear layers. In a decode step the parts of the sum put more programs in flight, until reading them again in the
# expand costs more.
MOST_SPLITS = 16
SHORTEST_SUM = 256  # of a part
PREFILL_PROGRAMS = 264  # two for each multiprocessor of an H200
WIDE_FEATURES = 8192  # from here on there are programs enough without the longest ones


class Forced:
    """What every launch uses now instead of what is chosen: for measuring it."""

    __slots__ = ("linear", "lookup", "matrix")

    def __init__(self) -> None:
        self.lookup: LaunchConfig | None = None
        self.matrix: TileConfig | None = None
        self.linear: tuple[ShrinkTile, ExpandTile] | None = None


forced_now = Forced()


def choose(
    plan: Plan, num_tokens: int, max_rank: int, rows_contiguous: bool, element_bytes: int, gpu: str
) -> LaunchConfig:
    """The configuration for num_tokens rows of max_rank columns of element_bytes each.

    rows_contiguous: the table is vocab-major. gpu: the name torch.cuda.get_device_name gives, empty for none.
    """
    return forced_now.lookup or _chosen(plan, num_tokens, max_rank, rows_contiguous, element_bytes, gpu)


def rule(num_tokens: int, max_rank: int, rows_contiguous: bool) -> LaunchConfig:
    """What is used without a table for the GPU."""
    rank = next_power_of_2(max_rank)
    if not rows_contiguous:
        return SCATTERED_TILE._replace(block_n=min(rank, SCATTERED_TILE.block_n))
    elements = next(tile for limit, tile in ROW_TILES if num_tokens * max_rank <= limit)
    block_n = min(rank, MAX_BLOCK_N)
    return LaunchConfig(min(64, elements // block_n), block_n, 4)


def forced(config: LaunchConfig) -> AbstractContextManager[None]:
    """Within, every lookup uses this configuration: for measuring one."""
    return _during("lookup", config)


def forced_tile(config: TileConfig) -> AbstractContextManager[None]:
    """Within, every kernel of the embedding layer and lm_head uses this tile."""
    return _during("matrix", config)


def forced_linear(shrink: ShrinkTile, expand: ExpandTile) -> AbstractContextManager[None]:
    """Within, every kernel of linear layers uses these tiles."""
    return _during("linear", (shrink, expand))


@contextmanager
def _during(kind: str, tile: object) -> Iterator[None]:
    setattr(forced_now, kind, tile)
    try:
        yield
    finally:
        setattr(forced_now, kind, None)


@lru_cache(maxsize=4096)
def _chosen(
    plan: Plan, num_tokens: int, max_rank: int, rows_contiguous: bool, element_bytes: int, gpu: str
) -> LaunchConfig:
    wanted = (rows_contiguous, element_bytes)
    rows = [
        row for row in table(gpu) if row.plan in (plan, "any") and (row.rows_contiguous, row.element_bytes) == wanted
    ]
    if not rows:
        return rule(num_tokens, max_rank, rows_contiguous)
    rank = _at_least(max_rank, {row.max_rank for row in rows})
    tokens = _at_least(num_tokens, {row.max_tokens for row in rows if row.max_rank == rank})
    config = next(row.config for row in rows if (row.max_rank, row.max_tokens) == (rank, tokens))
    return config._replace(block_n=min(config.block_n, next_power_of_2(max_rank)))


def _at_least(value: int, steps: set[int]) -> int:
    """The smallest step that is not below value, or the largest there is."""
    return min((step for step in steps if step >= value), default=max(steps))


@lru_cache
def table(gpu: str) -> tuple[TunedRow, ...]:
    """The rows for a GPU by its name; empty where it has not been tuned for."""
    path = table_path(gpu)
    if not gpu or not path.exists():
        return ()
    return tuple(_row(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"])


def table_path(gpu: str) -> Path:
    """Where the table of a GPU is kept."""
    return TABLES / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def _row(fields: dict[str, Any]) -> TunedRow:
    return TunedRow(**{**fields, "config": LaunchConfig(**fields["config"])})


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is not below value, 1 at least."""
    return 1 << max(0, value - 1).bit_length()


def choose_layer(num_tokens: int, max_rank: int, hidden: int, element_bytes: int) -> TileConfig:
    """The layer kernel's tile for num_tokens rows of `hidden` columns and tables of max_rank.

    From 108 tiles timed for decode and 60 for prefill on an NVIDIA H100 (bf16, hidden 4096, ranks 16 and 64, 8 slots,
    vocab 128256, requests of even and of random slots and lengths). Tiles of 16 rows, SGLang's smallest chunk, are
    never of two slots. Larger ones are, and then do the work of two: for 512 tokens of rank 64 in slots of even size
    64 rows take 5.7 us and 16 rows 6.4, in slots of random size 8.9 and 7.5. So they are for prefills of many tokens,
    which wait for B out of the L2, read once a tile. float32 is multiplied without tensor cores, out of registers:
    small tiles. No tile takes more than 96 KiB of shared memory.
    """
    if forced_now.matrix is not None:
        return forced_now.matrix
    small = max_rank <= SMALL_RANK
    if element_bytes > 2:
        tile = TileConfig(16, 64, 16, 4, 1 if num_tokens <= WORDS_MAX_TOKENS else 4)
    elif num_tokens <= 8:
        tile = TileConfig(16, 64, 64, 4)
    elif num_tokens <= 256:
        tile = TileConfig(16, 256, 64, 8)
    elif small or num_tokens <= WORDS_MAX_TOKENS:
        tile = TileConfig(16, 256, 64, 4)
    elif num_tokens <= LARGE_PREFILL:
        tile = TileConfig(16, 128, 64, 4, 8)
    else:
        tile = TileConfig(64, 128, 64, 4, 8)
    most = tile.block_n if max_rank <= tile.block_k else min(tile.block_n, 128)
    block_n = min(most, max(MIN_TILE, next_power_of_2(hidden)))
    return tile._replace(block_n=block_n, steps=min(tile.steps, max(1, hidden // block_n)))


def choose_head_shrink(element_bytes: int) -> TileConfig:
    """The tile of lm_head's shrink: block_n are ranks, block_k hidden states.

    1024 bytes of each row: 8 us for 32 to 512 rows of 4096 bf16 on an NVIDIA H100, where the worst of 9 tiles takes 16,
    and 96 KiB of shared memory, which every GPU from compute capability 8.0 on has.
    """
    return forced_now.matrix or TileConfig(MIN_TILE, MIN_TILE, 1024 // element_bytes, 4)


def choose_head_expand(num_tokens: int, slots: int, max_rank: int, element_bytes: int) -> TileConfig:
    """The tile of lm_head's expand: as many tokens as a slot has on average, for B is read once for all of a tile.

    Within 1.03 to 1.16 of what the bytes take on an NVIDIA H100 (32 to 512 rows, ranks 16 and 64).
    """
    if forced_now.matrix is not None:
        return forced_now.matrix
    if element_bytes > 2:
        return TileConfig(16, 64, 16, 4)
    tokens = min(MAX_EXPAND_TILE, max(MIN_TILE, next_power_of_2(num_tokens // max(1, slots))))
    return TileConfig(tokens, 128, 64, 4, 4 if max_rank <= SMALL_RANK and num_tokens <= 64 else 1)


def block_k(config: TileConfig, max_rank: int) -> int:
    """Ranks multiplied at a time: 16 for tables of up to 16, else the tile's, which is 16 or 64 and never 32.

    With blocks of 32 the LLVM of Triton 3.6 pairs the rank indices of A and B in one vector, shifts the unused half
    beyond its 32 bits and lets it run over into the other: the kernel then reads A at odd addresses.
    tests/csgmv_embed/kernels/test_compiled_layers.py looks for such shifts.
    """
    return MIN_TILE if max_rank <= MIN_TILE else config.block_k


def choose_linear_shrink(
    decode: bool, token_tiles: int, stacked: int, in_features: int, element_bytes: int
) -> ShrinkTile:
    """The shrink's tile for `stacked` rows of A, of all slices, and in_features terms of each sum.

    decode: the batch has small tiles of tokens. token_tiles: how many it can have; a decode step does not ask.
    From 7 tiles timed for decode and 6 for prefill of 4096 tokens on an NVIDIA H200, bf16, 8 slots of ranks 16 and 64,
    the four linear sites of an 8B model, tables out of memory. Float32 is multiplied without tensor cores, out of
    registers: small tiles.
    """
    return (
        forced_now.linear[0]
        if forced_now.linear
        else _linear_shrink(decode, token_tiles, stacked, in_features, element_bytes)
    )


@lru_cache(maxsize=4096)
def _linear_shrink(decode: bool, token_tiles: int, stacked: int, in_features: int, element_bytes: int) -> ShrinkTile:
    if element_bytes > 2:
        return ShrinkTile(16, 64, 1, 2, 4)
    block_n = min(64, max(MIN_TILE, next_power_of_2(stacked)))
    blocks = max(1, -(-stacked // block_n))
    wanted = MOST_SPLITS // blocks if decode else -(-PREFILL_PROGRAMS // max(1, token_tiles * blocks))
    splits = 1
    while 2 * splits <= min(wanted, MOST_SPLITS) and in_features >= 2 * splits * SHORTEST_SUM:
        splits *= 2
    return ShrinkTile(block_n, 128, splits, 3, 4)


def choose_linear_expand(decode: bool, out_features: int, max_rank: int, element_bytes: int) -> ExpandTile:
    """The expand's, from 5 tiles each, timed as for the shrink; block_k is never 32, as `block_k` says."""
    if forced_now.linear is not None:
        return forced_now.linear[1]
    if element_bytes > 2:
        return ExpandTile(64, MIN_TILE, 1, 1, 4)
    ranks = MIN_TILE if max_rank <= MIN_TILE else 64
    if decode:
        return ExpandTile(128, ranks, 2, 2, 4)
    return ExpandTile(64, ranks, 16 if out_features <= WIDE_FEATURES else 8, 3, 4)
