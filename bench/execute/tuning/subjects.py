"""What is tuned: each kernel, the sizes at which it is measured, and the tiles worth timing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bench.contenders.ours.lookup import CHUNK_SIZE
from bench.model.case import Case, Op, Site
from bench.workload import sites
from csgmv_embed.batch.tile_plan import PREFILL_BLOCK, most_tiles
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import ExpandTile, Kernel, LookupTile, MatrixTile, Plan, ShrinkTile
from csgmv_embed.launch.tuned import Grid, Sizes

Tile = tuple[Any, ...]  # a NamedTuple of csgmv_embed.launch.tiles
ELEMENT_BYTES = 2  # adapters are served in two bytes; the rule serves the rest
VOCAB, ADAPTERS, HIDDEN = 128256, 8, 4096
RANKS = (8, 16, 64, 256)
TOKENS = (1, 32, 256, 2048, 16384)
PRODUCT_RANKS = (16, 64)
LAYER_TOKENS = (8, 32, 256, 1024, 4096, 16384)
HEAD_TOKENS = 128  # rows of lm_head: one a request
SITES: tuple[Site, ...] = ("qkv", "o", "gate_up", "down")  # of an 8B model, out of memory as in a server
SITE_RANK = 64  # of the tables; half of the slots have 16
SITE_BATCHES = {True: (32, 1), False: (8, 512)}  # decode, prefill: requests and their length
MOST_REGISTERS = 1024  # elements a warp copies: 32 a thread


class Cell(NamedTuple):
    """A kernel at the sizes of one call. `tiles` begin with the rule's; the others worth timing follow."""

    kernel: Kernel
    at: Sizes
    case: Case
    contender: str
    tiles: list[Tile]


class Subject(NamedTuple):
    """A kernel and the axes of its cells, in the order of the library's choice."""

    kernel: Kernel
    axes: tuple[str, ...]
    cells: Callable[[], Iterator[Cell]]

    def grid(self) -> Grid:
        """The sizes at which it is measured."""
        at = [cell.at for cell in self.cells()]
        steps = tuple(tuple(sorted(set(values))) for values in zip(*at, strict=True))
        return Grid(self.kernel, ELEMENT_BYTES, self.axes, steps)


def batch_case(tokens: int, rank: int, op: Op = "lookup", hidden: int = 0) -> Case:
    """A case with the same number of tokens for every request, because only the tokens matter to a tile."""
    shape = ("decode", tokens, 1) if tokens < 1024 else ("prefill", 8, tokens // 8)
    return Case(*shape, rank, adapters=ADAPTERS, vocab=VOCAB, op=op, hidden=hidden)  # type: ignore[arg-type]


def lookup_tiles(plan: Plan, tokens: int, rank: int, rows_contiguous: bool) -> list[Tile]:
    """Powers of two: no tile mostly empty, no segment shorter than its tile, at most 32 elements a thread."""
    width = min(rank, tiles.MAX_BLOCK_N)
    if rows_contiguous:
        sizes = (32, 64, 128, 256, 512, 1024, 2048, 4096)
        shapes = [(size // width, width, warps) for size in sizes for warps in (1, 2, 4, 8) if size >= width]
    else:
        widths = (4, 8, 16, 32, 64) if plan == "tokens" else (8, 16, 32, 64, 128, 256)
        shapes = [(rows, n, warps) for rows in (4, 8, 16, 32, 64, 128) for n in widths if n <= rank for warps in (1, 4)]
    most = max(8, 2 * tokens) if plan == "tokens" else CHUNK_SIZE
    useful = [
        LookupTile(rows, n, warps)
        for rows, n, warps in shapes
        if rows <= most and 32 * warps <= rows * n <= MOST_REGISTERS * warps
    ]
    return _once(tiles.lookup_rule(tokens, rank, rows_contiguous), useful)


def layer_tiles(tokens: int, rank: int) -> list[Tile]:
    """Tiles that were best at some size on an H100, and their neighbours."""
    few = tokens <= tiles.WORDS_MAX_TOKENS
    blocks = (16,) if few else (16, 32, 64)
    shapes = [(64, 4), (128, 4), (128, 8), (256, 4), (256, 8)]
    steps = (1,) if few else (4, 8)
    found = [
        MatrixTile(m, n, 64, warps, step) for m in blocks for n, warps in shapes for step in steps if m * n < 1 << 14
    ]
    return _once(tiles.layer_rule(tokens, rank, ELEMENT_BYTES), found)


def shrink_tiles(case: Case) -> list[Tile]:
    """Twice and half as many parts of the long sum, wider and narrower blocks, more loads in flight."""
    shape = sites.shape_of(case)
    rule = tiles.linear_shrink_rule(*_shrink_sizes(case), ELEMENT_BYTES)
    splits = {max(1, rule.splits // 2), rule.splits, 2 * rule.splits}
    shapes = [(rule.block_n, 128, 3, 4), (32, 128, 3, 4), (rule.block_n, 256, 2, 8), (rule.block_n, 64, 4, 4)]
    found = [ShrinkTile(n, k, split, stages, warps) for n, k, stages, warps in shapes for split in sorted(splits)]
    return _once(rule, [tile for tile in found if shape.features >= tile.splits * tile.block_k])


def expand_tiles(decode: bool, rank: int, columns: int) -> list[Tile]:
    """Different numbers of column blocks that a program takes one after the other."""
    rule = tiles.linear_expand_rule(decode, columns, rank, ELEMENT_BYTES)
    shapes = [(64, 4), (64, 8), (64, 16), (128, 1), (128, 2), (128, 4), (128, 8), (256, 1)]
    stages = (2,) if decode else (2, 3)
    return _once(rule, [ExpandTile(n, rule.block_k, steps, stage, 4) for n, steps in shapes for stage in stages])


def _shrink_sizes(case: Case) -> tuple[bool, int, int, int]:
    """decode, token_tiles, stacked, in_features: what the library chooses the shrink's tile by."""
    shape, decode = sites.shape_of(case), case.phase == "decode"
    token_tiles = 0 if decode else most_tiles(case.num_tokens, ADAPTERS, PREFILL_BLOCK)
    return decode, token_tiles, shape.slices * case.rank, shape.features


def _once(rule: Tile, others: list[Any]) -> list[Tile]:
    return list(dict.fromkeys([rule, *others]))


def _lookup(plan: Plan, family: str, storage: str) -> Subject:
    contiguous = storage == "vocab_major"
    kernel = tiles.lookup_kernel(plan, contiguous)

    def cells() -> Iterator[Cell]:
        for rank in RANKS:
            for tokens in TOKENS:
                found = lookup_tiles(plan, tokens, rank, contiguous)
                yield Cell(kernel, (rank, tokens), batch_case(tokens, rank), f"{family}-{storage}", found)

    return Subject(kernel, ("max_rank", "tokens"), cells)


def _layer() -> Iterator[Cell]:
    for rank in PRODUCT_RANKS:
        for tokens in LAYER_TOKENS:
            case = batch_case(tokens, rank, "layer", HIDDEN)
            yield Cell("layer", (rank, tokens), case, "csgmv_embed-vocab_major", layer_tiles(tokens, rank))


def _site_cases() -> Iterator[Case]:
    for decode, (requests, length) in SITE_BATCHES.items():
        for site in SITES:
            phase: Any = "decode" if decode else "prefill"
            shape = {"op": "linear", "site": site, "model": "8b", "rank_mix": "pairs", "cache": "cold"}
            yield Case(phase, requests, length, SITE_RANK, adapters=ADAPTERS, **shape)  # type: ignore[arg-type]


def _lora_shrink() -> Iterator[Cell]:
    for case in _site_cases():
        at = _shrink_sizes(case)[1:]
        yield Cell("lora_shrink", at, case, "csgmv_embed-vocab_major", shrink_tiles(case))


def _lora_expand() -> Iterator[Cell]:
    head = batch_case(HEAD_TOKENS, SITE_RANK, "head", HIDDEN)
    for case in [*_site_cases(), head]:
        decode, columns = case.phase == "decode", VOCAB if case is head else sites.shape_of(case).out_features
        if case.site != "down":  # an expand like o's
            at, found = (int(decode), case.rank, columns), expand_tiles(decode, case.rank, columns)
            yield Cell("lora_expand", at, case, "csgmv_embed-vocab_major", found)


PLANS: dict[Plan, str] = {"tokens": "csgmv_embed", "segments": "csgmv_embed_segments"}  # to its contenders
SUBJECTS: tuple[Subject, ...] = (
    *(_lookup(plan, family, storage) for plan, family in PLANS.items() for storage in ("vocab_major", "rank_major")),
    Subject("layer", ("max_rank", "tokens"), _layer),
    Subject("lora_shrink", ("token_tiles", "stacked", "in_features"), _lora_shrink),
    Subject("lora_expand", ("decode", "max_rank", "out_features"), _lora_expand),
)
