"""Chooses the tile of a kernel: what was measured to be fastest on this GPU, otherwise a rule for the kernel.

A tile is BLOCK_M rows by BLOCK_N columns of the output; a product takes BLOCK_K terms of its sum at a time.

Every choice is asked for by the name of its kernel (`Kernel`). A forced tile comes first, then the GPU's table
(launch/tuned.py), then the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar, cast

from csgmv_embed.launch.tuned import tuned

Plan = Literal["tokens", "segments"]  # how a kernel learns slot and rank of a token (kernels/lookup.py)
Kernel = Literal[
    "lookup_tokens_vocab_major",
    "lookup_tokens_rank_major",
    "lookup_segments_vocab_major",
    "lookup_segments_rank_major",
    "layer",
    "lora_shrink",
    "lora_expand",
]
T = TypeVar("T", bound=tuple[Any, ...])


class LookupTile(NamedTuple):
    """Tile of a lookup: one program copies block_m tokens by block_n ranks with num_warps warps."""

    block_m: int
    block_n: int
    num_warps: int


# The rule, from 182 tiles timed once on an NVIDIA H200 (bf16, 8 slots, vocab 128256, graphs of 60 launches).
# Contiguous rows: (largest output in elements, elements of a tile).
# Small batches wait for memory: small tiles put more programs in flight. Large ones need bytes in flight: 2048
# elements are two 16-byte loads a thread (rank 256, 16384 tokens: 6.6 us).
ROW_TILES = ((1 << 17, 512), (1 << 19, 1024), (1 << 62, 2048))
MAX_BLOCK_N = 256

# Scattered elements: tall tiles of few ranks, ranks in the outer grid axis, so that programs running together read
# neighbouring ids of the same (slot, rank) line of the table (rank 256, 16384 tokens: 85 us, the worst tile 103).
SCATTERED_TILE = LookupTile(block_m=32, block_n=16, num_warps=4)


class MatrixTile(NamedTuple):
    """Tile of the embedding layer: a program takes block_m tokens by `steps` blocks of block_n columns.

    It multiplies block_k ranks at a time.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    steps: int = 1


class ShrinkTile(NamedTuple):
    """Tile of the shrink in linear layers and lm_head: tokens, block_n rows of A, and one of `splits` parts of the sum.

    The long sum is taken block_k input features at a time. The batch decides the tile's tokens (batch/tile_plan.py).
    """

    block_n: int
    block_k: int
    splits: int
    stages: int
    num_warps: int


class ExpandTile(NamedTuple):
    """Tile of the expand in linear layers and lm_head: a program takes `steps` blocks of block_n columns.

    block_k are ranks. The batch decides the tile's tokens (batch/tile_plan.py).
    """

    block_n: int
    block_k: int
    steps: int
    stages: int
    num_warps: int


# Up to here the layer's programs find rows without adapter by their token words, two dependent loads away, in a batch
# planned anew too; beyond, where bytes count and latency does not, the walk of its segments writes them.
WORDS_MAX_TOKENS = 1024
MIN_TILE = 16  # the smallest matrix product
SMALL_RANK = 32  # up to here a row of A and its product are cheap
LARGE_PREFILL = 8192  # tokens from which on reading B out of the L2 is what a prefill waits for

# Linear layers. In a decode step the parts of the sum put more programs in flight, until reading them again in the
# expand costs more.
MOST_SPLITS = 16
SHORTEST_SUM = 256  # of a part
PREFILL_PROGRAMS = 264  # two for each multiprocessor of an H200
WIDE_FEATURES = 8192  # from here on there are programs enough without the longest ones
VOCABULARY = 1 << 16  # columns from which on a decode step has programs enough for long ones too: lm_head


class Forced:
    """Tiles to use whatever the tables and rules say, by kernel. Used to measure tiles."""

    __slots__ = ("seen", "tiles")

    def __init__(self) -> None:
        self.tiles: dict[Kernel, tuple[Any, ...]] = {}
        self.seen: object = None  # the same, as a part of a launch's key


forced_now = Forced()


@contextmanager
def forced(**kernels: tuple[Any, ...]) -> Iterator[None]:
    """Within this context, kernels use these tiles: forced(layer=MatrixTile(...)). Keywords are names of `Kernel`."""
    before = forced_now.tiles
    _force({**before, **kernels})
    try:
        yield
    finally:
        _force(before)


def _force(found: dict[Any, tuple[Any, ...]]) -> None:
    forced_now.tiles = found
    forced_now.seen = tuple(sorted(found.items())) or None


def _choose(
    kernel: Kernel, rule: T, sizes: tuple[int, ...], element_bytes: int, gpu: str, fit: Callable[[T], T] | None = None
) -> T:
    """The tile that is forced, else the one of the GPU's table for these sizes, else the rule's.

    fit: makes a tile that was measured at other sizes one for these.
    """
    held = forced_now.tiles.get(kernel)
    if held is not None:
        return cast(T, held)
    fields = tuned(gpu, kernel, element_bytes, sizes)
    tile = rule if fields is None else type(rule)(**fields)
    return fit(tile) if fit else tile


def choose_lookup(
    plan: Plan, num_tokens: int, max_rank: int, rows_contiguous: bool, element_bytes: int, gpu: str
) -> LookupTile:
    """The tile for num_tokens rows of max_rank columns of element_bytes each.

    rows_contiguous: the table is vocab-major. gpu: the name that torch.cuda.get_device_name returns, empty for none.
    """
    kernel = lookup_kernel(plan, rows_contiguous)
    rule = lookup_rule(num_tokens, max_rank, rows_contiguous)

    def fit(tile: LookupTile) -> LookupTile:
        return tile._replace(block_n=min(tile.block_n, next_power_of_2(max_rank)))

    return _choose(kernel, rule, (max_rank, num_tokens), element_bytes, gpu, fit)


def lookup_kernel(plan: Plan, rows_contiguous: bool) -> Kernel:
    """The kernel's name in the tables. Each plan and storage has its own, because they need different tiles."""
    return f"lookup_{plan}_{'vocab' if rows_contiguous else 'rank'}_major"  # type: ignore[return-value]


def lookup_rule(num_tokens: int, max_rank: int, rows_contiguous: bool) -> LookupTile:
    """The tile where no table has a better one."""
    rank = next_power_of_2(max_rank)
    if not rows_contiguous:
        return SCATTERED_TILE._replace(block_n=min(rank, SCATTERED_TILE.block_n))
    elements = next(tile for limit, tile in ROW_TILES if num_tokens * max_rank <= limit)
    block_n = min(rank, MAX_BLOCK_N)
    return LookupTile(min(64, elements // block_n), block_n, 4)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least `value`, and at least 1."""
    return 1 << max(0, value - 1).bit_length()


def choose_layer(num_tokens: int, max_rank: int, hidden: int, element_bytes: int, gpu: str) -> MatrixTile:
    """The layer kernel's tile for num_tokens rows of `hidden` columns and tables of max_rank.

    From 108 tiles timed for decode and 60 for prefill on an NVIDIA H100 (bf16, hidden 4096, ranks 16 and 64, 8 slots,
    vocab 128256, requests of even and of random slots and lengths). Tiles of 16 rows, SGLang's smallest chunk, are
    never of two slots. Larger ones are, and then do the work of two: for 512 tokens of rank 64 in slots of even size
    64 rows take 5.7 us and 16 rows 6.4, in slots of random size 8.9 and 7.5. So they are for prefills of many tokens,
    which wait for B out of the L2, read once a tile. float32 is multiplied without tensor cores, out of registers:
    small tiles. No tile takes more than 96 KiB of shared memory.
    """
    rule = layer_rule(num_tokens, max_rank, element_bytes)

    def fit(tile: MatrixTile) -> MatrixTile:
        most = tile.block_n if max_rank <= tile.block_k else min(tile.block_n, 128)
        block_n = min(most, max(MIN_TILE, next_power_of_2(hidden)))
        return tile._replace(block_n=block_n, steps=min(tile.steps, max(1, hidden // block_n)))

    return _choose("layer", rule, (max_rank, num_tokens), element_bytes, gpu, fit)


def layer_rule(num_tokens: int, max_rank: int, element_bytes: int) -> MatrixTile:
    """The tile where no table has a better one."""
    small = max_rank <= SMALL_RANK
    if element_bytes > 2:
        return MatrixTile(16, 64, 16, 4, 1 if num_tokens <= WORDS_MAX_TOKENS else 4)
    if num_tokens <= 8:
        return MatrixTile(16, 64, 64, 4)
    if num_tokens <= 256:
        return MatrixTile(16, 256, 64, 8)
    if small or num_tokens <= WORDS_MAX_TOKENS:
        return MatrixTile(16, 256, 64, 4)
    if num_tokens <= LARGE_PREFILL:
        return MatrixTile(16, 128, 64, 4, 8)
    return MatrixTile(64, 128, 64, 4, 8)


def block_k(config: MatrixTile, max_rank: int) -> int:
    """Ranks multiplied at a time: 16 for tables of up to rank 16, otherwise the tile's, which is 16 or 64, never 32.

    With blocks of 32, the LLVM of Triton 3.6 packs the rank indices of A and B into one vector, shifts the unused half
    beyond its 32 bits and lets it carry into the other half. The kernel then reads A at odd addresses.
    tests/csgmv_embed/kernels/test_compiled_layers.py looks for such shifts.
    """
    return MIN_TILE if max_rank <= MIN_TILE else config.block_k


def choose_linear_shrink(
    decode: bool, token_tiles: int, stacked: int, in_features: int, element_bytes: int, gpu: str
) -> ShrinkTile:
    """The shrink's tile for `stacked` rows of A, of all slices, and in_features terms of each sum.

    decode: the batch has small tiles of tokens. token_tiles: how many it can have; a decode step does not ask.
    From 7 tiles timed for decode and 6 for prefill of 4096 tokens on an NVIDIA H200, bf16, 8 slots of ranks 16 and 64,
    the four linear sites of an 8B model, tables out of memory. Float32 is multiplied without tensor cores, out of
    registers: small tiles.
    """
    if "lora_shrink" in forced_now.tiles:
        return cast(ShrinkTile, forced_now.tiles["lora_shrink"])
    return _linear_shrink(decode, token_tiles, stacked, in_features, element_bytes, gpu)


@lru_cache(maxsize=4096)
def _linear_shrink(
    decode: bool, token_tiles: int, stacked: int, in_features: int, element_bytes: int, gpu: str
) -> ShrinkTile:
    """Kept, because every call asks."""
    rule = linear_shrink_rule(decode, token_tiles, stacked, in_features, element_bytes)
    return _choose("lora_shrink", rule, (token_tiles, stacked, in_features), element_bytes, gpu)


def linear_shrink_rule(
    decode: bool, token_tiles: int, stacked: int, in_features: int, element_bytes: int
) -> ShrinkTile:
    """The tile where no table has a better one."""
    if element_bytes > 2:
        return ShrinkTile(16, 64, 1, 2, 4)
    block_n = min(64, max(MIN_TILE, next_power_of_2(stacked)))
    blocks = max(1, -(-stacked // block_n))
    wanted = MOST_SPLITS // blocks if decode else -(-PREFILL_PROGRAMS // max(1, token_tiles * blocks))
    splits = 1
    while 2 * splits <= min(wanted, MOST_SPLITS) and in_features >= 2 * splits * SHORTEST_SUM:
        splits *= 2
    return ShrinkTile(block_n, 128, splits, 3, 4)


def choose_linear_expand(decode: bool, out_features: int, max_rank: int, element_bytes: int, gpu: str) -> ExpandTile:
    """The tile of the expand, from 5 tiles for each site, timed as for the shrink. block_k is never 32 (see `block_k`).

    For a vocabulary it is from 25 tiles, timed for 32, 128 and 512 rows of ranks 16 and 64.
    """
    rule = linear_expand_rule(decode, out_features, max_rank, element_bytes)
    return _choose("lora_expand", rule, (int(decode), max_rank, out_features), element_bytes, gpu)


def linear_expand_rule(decode: bool, out_features: int, max_rank: int, element_bytes: int) -> ExpandTile:
    """The tile where no table has a better one."""
    if element_bytes > 2:
        return ExpandTile(64, MIN_TILE, 1, 1, 4)
    ranks = MIN_TILE if max_rank <= MIN_TILE else 64
    if decode:
        return ExpandTile(128, ranks, 8, 3, 4) if out_features >= VOCABULARY else ExpandTile(128, ranks, 2, 2, 4)
    return ExpandTile(64, ranks, 16 if out_features <= WIDE_FEATURES else 8, 3, 4)
