"""Which launch configuration is fastest here: times each candidate at each size and keeps the best. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec
import torch

from bench import contenders
from bench.clocks import graph
from bench.contenders.base import Contender
from bench.contenders.ours.lookup import CHUNK_SIZE
from bench.model.case import ELEMENT_BYTES, STORAGES, Case, DType, Storage
from bench.model.records import ResultsError
from bench.workload import oracle
from bench.workload.tensors import Workload, make_workload
from csgmv_embed.launch import tiles
from csgmv_embed.launch.tiles import LaunchConfig, Plan, TunedRow

RANKS = (8, 16, 64, 256)
TOKENS = (1, 32, 256, 2048, 16384)
PLANS: dict[Plan, str] = {"tokens": "csgmv_embed", "segments": "csgmv_embed_segments"}  # to its contenders
DTYPES: tuple[DType, ...] = ("bfloat16",)  # adapters are served in two bytes; the rule serves the rest
VOCAB, ADAPTERS, SEED = 128256, 8, 1
NODES, BLOCKS, BLOCK_MS = 40, 5, 0.4
INDEX_SETS = 8
WORTH = 0.98  # a candidate replaces the rule's configuration if it takes at most this share of its time


class TunedTable(msgspec.Struct):
    """The file `csgmv_embed/tuned/<GPU>.json`."""

    gpu: str
    commit: str | None
    command: str
    vocab: int
    adapters: int
    rows: list[dict[str, Any]]


def encode(table: TunedTable) -> bytes:
    """The file's bytes, a line a row so that two tables diff well."""
    fields = msgspec.structs.asdict(table)
    rows = b",\n".join(msgspec.json.encode(row) for row in fields.pop("rows"))
    head = msgspec.json.format(msgspec.json.encode(fields), indent=1).rstrip(b"\n}")
    return head + b',\n "rows": [\n' + rows + b"\n ]\n}\n"


def as_fields(row: TunedRow) -> dict[str, Any]:
    """A row as the file holds it, by names."""
    return {**row._asdict(), "config": row.config._asdict()}


def tune() -> Iterator[TunedRow]:
    """One row a plan, storage, dtype, rank and number of tokens. Raises ResultsError if any gives wrong rows."""
    for dtype in DTYPES:
        for rank in RANKS:
            tables: dict[str, torch.Tensor] = {}
            for tokens in TOKENS:
                for storage in STORAGES:
                    # one token each, or the same number for every request: only the tokens matter to a tile
                    shape = ("decode", tokens, 1) if tokens < 1024 else ("prefill", 8, tokens // 8)
                    case = Case(*shape, rank, adapters=ADAPTERS, vocab=VOCAB, dtype=dtype)  # type: ignore[arg-type]
                    workload = make_workload(
                        case, seed=SEED, index_sets=INDEX_SETS, device=torch.device("cuda", torch.cuda.current_device())
                    )
                    workload.tables = tables
                    expected = oracle.exact(workload, 0)
                    for plan in PLANS:
                        yield _best(workload, expected, plan, storage)


def candidates(plan: Plan, tokens: int, rank: int, rows_contiguous: bool) -> list[LaunchConfig]:
    """The rule's configuration first, then every other one worth timing."""
    block_rank = min(rank, tiles.MAX_BLOCK_N)
    if rows_contiguous:
        shapes = [
            LaunchConfig(elements // block_rank, block_rank, warps)
            for elements in (32, 64, 128, 256, 512, 1024, 2048, 4096)
            for warps in (1, 2, 4, 8)
            if elements >= max(block_rank, 32 * warps) and elements <= 1024 * warps
        ]
    else:
        shapes = [
            LaunchConfig(block_tokens, width, warps)
            for block_tokens in (4, 8, 16, 32, 64, 128)
            for width in ((4, 8, 16, 32, 64) if plan == "tokens" else (8, 16, 32, 64, 128, 256))
            for warps in (1, 4)
            if width <= rank and 32 * warps <= block_tokens * width <= 1024 * warps
        ]
    most = max(8, 2 * tokens) if plan == "tokens" else CHUNK_SIZE  # no segment is longer
    useful = [tile for tile in shapes if tile.block_m <= most]
    return list(dict.fromkeys([tiles.rule(tokens, rank, rows_contiguous), *useful]))


def _best(workload: Workload, expected: torch.Tensor, plan: Plan, storage: Storage) -> TunedRow:
    case = workload.case
    contiguous = storage == "vocab_major"
    first, *others = candidates(plan, case.num_tokens, case.rank, contiguous)
    contender = contenders.build(f"{PLANS[plan]}-{storage}")
    rule_us = _time_us(contender, workload, expected, first)
    timed = {config: _time_us(contender, workload, expected, config) for config in others}
    best = min(timed, key=timed.__getitem__, default=first)
    if best == first or timed[best] > WORTH * rule_us:
        best = first
    best_us = timed.get(best, rule_us)
    element_bytes = ELEMENT_BYTES[case.dtype]
    return TunedRow(
        plan, contiguous, element_bytes, case.rank, case.num_tokens, best, round(best_us, 3), round(rule_us, 3)
    )


def _time_us(contender: Contender, workload: Workload, expected: torch.Tensor, config: LaunchConfig) -> float:
    """Median of the blocks of one graph, after a check of the first index set."""
    with tiles.forced(config):
        launch = contender.setup(workload, static=False)
        if not torch.equal(launch(0), expected):
            raise ResultsError(f"{config} gives wrong rows at {workload.case.label}; expected those of the oracle")
        captured = graph.capture(launch, index_sets=INDEX_SETS, nodes=NODES)
        return median(graph.sample(captured, blocks=BLOCKS, block_ms=BLOCK_MS, flush=None))
