"""Launch configurations: a measured table per GPU model, and a rule where there is none.

Tables are `tuned/<GPU name>.json`, written by `python -m bench tune` on that GPU. Each row says up to which rank and
number of tokens it holds, for one plan, storage and element size, and why: the time of its configuration and of the
rule's. What suits one plan does not suit the other: every tile of the segments plan repeats its dependent loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

TABLES = Path(__file__).parents[1] / "tuned"
Plan = Literal["tokens", "segments"]  # how a kernel learns slot and rank of a token (kernels/lookup.py)


class LaunchConfig(NamedTuple):
    """One program copies a tile of block_tokens rows by block_rank columns with num_warps warps."""

    block_tokens: int
    block_rank: int
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
MAX_BLOCK_RANK = 256

# Scattered elements: tall tiles of few ranks, ranks in the outer grid axis, so that programs running together read
# neighbouring ids of the same (slot, rank) line of the table (rank 256, 16384 tokens: 85 us, the worst tile 103).
SCATTERED_TILE = LaunchConfig(block_tokens=32, block_rank=16, num_warps=4)


class TileConfig(NamedTuple):
    """One program of a matrix kernel: block_tokens rows by `steps` blocks of columns, ranks taken in blocks."""

    block_tokens: int
    block_columns: int
    block_rank: int
    num_warps: int
    steps: int = 1


# Up to here the layer's programs find rows without adapter by their token words, two dependent loads away, in a batch
# planned anew too; beyond, where bytes count and latency does not, the walk of its segments writes them.
WORDS_MAX_TOKENS = 1024
MIN_TILE = 16  # the smallest matrix product
MAX_EXPAND_TILE = 32
SMALL_RANK = 32  # up to here a row of A and its product are cheap
LARGE_PREFILL = 8192  # tokens from which on reading B out of the L2 is what a prefill waits for

_forced: LaunchConfig | None = None
_forced_tile: TileConfig | None = None


def choose(
    plan: Plan, num_tokens: int, max_rank: int, rows_contiguous: bool, element_bytes: int, gpu: str
) -> LaunchConfig:
    """The configuration for num_tokens rows of max_rank columns of element_bytes each.

    rows_contiguous: the table is vocab-major. gpu: the name torch.cuda.get_device_name gives, empty for none.
    """
    return _forced or _chosen(plan, num_tokens, max_rank, rows_contiguous, element_bytes, gpu)


def rule(num_tokens: int, max_rank: int, rows_contiguous: bool) -> LaunchConfig:
    """What is used without a table for the GPU."""
    rank = next_power_of_2(max_rank)
    if not rows_contiguous:
        return SCATTERED_TILE._replace(block_rank=min(rank, SCATTERED_TILE.block_rank))
    elements = next(tile for limit, tile in ROW_TILES if num_tokens * max_rank <= limit)
    block_rank = min(rank, MAX_BLOCK_RANK)
    return LaunchConfig(min(64, elements // block_rank), block_rank, 4)


@contextmanager
def forced(config: LaunchConfig) -> Iterator[None]:
    """Within, every launch uses this configuration: for measuring one."""
    global _forced
    _forced = config
    try:
        yield
    finally:
        _forced = None


def forced_config() -> LaunchConfig | None:
    """The configuration that every launch uses now, if one is forced."""
    return _forced


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
    return config._replace(block_rank=min(config.block_rank, next_power_of_2(max_rank)))


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
    if _forced_tile is not None:
        return _forced_tile
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
    most = tile.block_columns if max_rank <= tile.block_rank else min(tile.block_columns, 128)
    columns = min(most, max(MIN_TILE, next_power_of_2(hidden)))
    return tile._replace(block_columns=columns, steps=min(tile.steps, max(1, hidden // columns)))


def choose_shrink(element_bytes: int) -> TileConfig:
    """The tile of lm_head's shrink: block_columns are taken of the hidden states at a time.

    1024 bytes of each row: 8 us for 32 to 512 rows of 4096 bf16 on an NVIDIA H100, where the worst of 9 tiles takes 16,
    and 96 KiB of shared memory, which every GPU from compute capability 8.0 on has.
    """
    return _forced_tile or TileConfig(16, 1024 // element_bytes, 16, 4)


def choose_expand(num_tokens: int, slots: int, max_rank: int, element_bytes: int) -> TileConfig:
    """The tile of lm_head's expand: as many tokens as a slot has on average, for B is read once for all of a tile.

    Within 1.03 to 1.16 of what the bytes take on an NVIDIA H100 (32 to 512 rows, ranks 16 and 64).
    """
    if _forced_tile is not None:
        return _forced_tile
    if element_bytes > 2:
        return TileConfig(16, 64, 16, 4)
    tokens = min(MAX_EXPAND_TILE, max(MIN_TILE, next_power_of_2(num_tokens // max(1, slots))))
    return TileConfig(tokens, 128, 64, 4, 4 if max_rank <= SMALL_RANK and num_tokens <= 64 else 1)


def block_rank(config: TileConfig, max_rank: int) -> int:
    """Ranks multiplied at a time: 16 for tables of up to 16, else the tile's, which is 16 or 64 and never 32.

    With blocks of 32 the LLVM of Triton 3.6 pairs the rank indices of A and B in one vector, shifts the unused half
    beyond its 32 bits and lets it run over into the other: the kernel then reads A at odd addresses.
    test_compiled_layers.py looks for such shifts.
    """
    return MIN_TILE if max_rank <= MIN_TILE else config.block_rank


@contextmanager
def forced_tile(config: TileConfig) -> Iterator[None]:
    """Within, every matrix kernel uses this tile: for measuring one."""
    global _forced_tile
    _forced_tile = config
    try:
        yield
    finally:
        _forced_tile = None


def forced_layer() -> TileConfig | None:
    """The tile that every matrix kernel uses now, if one is forced."""
    return _forced_tile
