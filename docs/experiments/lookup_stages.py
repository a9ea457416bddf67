"""Why the lookup takes what it takes: the kernel with stages left out, and what its neighbours in a graph do to it.

    python docs/experiments/lookup_stages.py OUT.json        (an NVIDIA GPU; about a minute)

stages    us a graph node of: a kernel that does nothing; zeros stored by the lookup's grid; the same with each token's
          id and word loaded first (one trip to memory); the whole lookup (a second, dependent trip); a copy of as many
          contiguous rows (no ids). Rotating over 20 index sets, so 16384 tokens of rank 256 come from memory. Each
          kernel once as an ordinary launch and, where the GPU has it, as a programmatic dependent launch.
between   us a contender adds to a graph in which ordinary kernels alternate with it, against a chain of itself.
"""

# Kernels are untyped.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import contenders
from bench.clocks import graph
from bench.clocks.anchors import empty_kernel
from bench.model.case import Case
from bench.workload.tensors import make_workload
from csgmv_embed import EmbeddingBatch
from csgmv_embed.launch import tiles

VOCAB, SLOTS, SETS, NODES, BLOCKS = 128256, 8, 20, 60, 10
STAGES = {"store": 0, "ids, store": 1, "lookup": 2, "copy": 3}


@triton.jit
def staged(
    ids, words, table, out, tokens, vocab,
    RANK: tl.constexpr, TILE: tl.constexpr, STAGE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, RANK)
    live = rows < tokens
    place = tl.multiple_of(rows.to(tl.int64) * RANK, 8)[:, None] + column[None, :]
    values = tl.zeros((TILE, RANK), tl.bfloat16)
    if STAGE == 3:
        values = tl.load(table + place, mask=live[:, None], other=0.0)
    if STAGE == 1 or STAGE == 2:
        token_ids = tl.load(ids + rows, mask=live, other=0)
        word = tl.load(words + rows, mask=live, other=0)
        if STAGE == 1:
            values = ((token_ids + word)[:, None] + column[None, :]).to(tl.bfloat16)
        else:
            row = tl.multiple_of(((word >> 16).to(tl.int64) * vocab + token_ids) * RANK, 8)
            values = tl.load(table + row[:, None] + column[None, :], mask=live[:, None], other=0.0)
    tl.store(out + place, values, mask=live[:, None])


def node_us(launch, sets: int = SETS) -> float:
    captured = graph.capture(launch, index_sets=sets, nodes=NODES)
    return round(median(graph.sample(captured, blocks=BLOCKS, block_ms=1.0, flush=None)), 3)


def stages() -> list[dict[str, object]]:
    records = []
    has_pdl = torch.cuda.get_device_capability()[0] >= 9
    for rank in (64, 256):
        table = torch.empty(SLOTS, VOCAB, rank, dtype=torch.bfloat16, device="cuda").normal_()
        for tokens in (1, 32, 256, 512, 4096, 16384):
            ids = [torch.randint(0, VOCAB, (tokens,), device="cuda") for _ in range(SETS)]
            outs = [torch.empty(tokens, rank, dtype=torch.bfloat16, device="cuda") for _ in range(SETS)]
            words = EmbeddingBatch.build(
                None, [token % SLOTS for token in range(tokens)], [rank] * SLOTS
            ).token_adapters
            config = tiles.choose_lookup("tokens", tokens, rank, True, 2, torch.cuda.get_device_name())
            record: dict[str, object] = {"rank": rank, "tokens": tokens}
            for name, stage in STAGES.items():
                for pdl in (False, True) if has_pdl else (False,):

                    def launch(k, stage=stage, pdl=pdl):
                        # a copy reads other rows in each set, as the lookup does
                        source = table.view(-1)[k * tokens * rank :] if stage == 3 else table
                        staged[(triton.cdiv(tokens, config.block_m),)](
                            ids[k], words, source, outs[k], tokens, VOCAB, rank, config.block_m, stage, pdl,
                            num_warps=config.num_warps, launch_pdl=pdl,
                        )  # fmt: skip
                        return outs[k]

                    record[f"{name}, programmatic" if pdl else name] = node_us(launch)
            records.append(record)
            print(record, flush=True)
    return records


def between() -> list[dict[str, object]]:
    target = torch.zeros(4096, device="cuda")

    def empty() -> None:
        empty_kernel[(1,)](target)

    def add() -> None:
        target.add_(1.0)

    alone = {run: node_us(lambda k, run=run: (run(), target)[1], 1) for run in (empty, add)}
    records = []
    for case in (Case("decode", 1, 1, 64), Case("decode", 256, 1, 64), Case("prefill", 8, 512, 64)):
        workload = make_workload(case, seed=1, index_sets=SETS, device=torch.device("cuda", 0))
        for name in ("csgmv_embed-vocab_major", "csgmv_embed_pdl-vocab_major", "sglang_csgmv-chunk16", "sglang_triton"):
            contender = contenders.build(name)
            if contender.unavailable():
                continue
            launch = contender.setup(workload, static=True)
            record: dict[str, object] = {"case": case.label, "contender": name, "chain": node_us(launch)}
            for neighbour, own_us in alone.items():
                both_us = node_us(lambda k, n=neighbour, launch=launch: (n(), launch(k))[1])
                record[f"after {neighbour.__name__}"] = round(both_us - own_us, 3)
            records.append(record)
            print(record, flush=True)
    return records


if __name__ == "__main__":
    empty_us = node_us(lambda k, t=torch.zeros(1, device="cuda"): (empty_kernel[(1,)](t), t)[1], 1)
    found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "empty_node_us": empty_us,
        "stages": stages(),
        "between": between(),
    }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
