"""What lm_head costs where none, half or all of the adapters have LoRA there.

    python docs/experiments/head_share.py OUT.json        (an NVIDIA GPU; about half a minute)

The base product of an 8B model's lm_head (hidden 4096, vocabulary 128256, bf16) alone, and with LoRA in place behind
it, both in a CUDA graph of their own. Eight adapters take turns among the rows. A slot without LoRA at lm_head has
rank 0 in the batch, as the plugin plans it. What LoRA costs is a difference of two medians, us; the product reads 1 GB
of weights, so nothing of the tables of one call is in the L2 at the next.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.clocks import graph
from bench.contenders.base import Launch
from bench.model.environment import collect_code
from csgmv_embed import EmbeddingBatch, lora_linear

HIDDEN, VOCAB, SLOTS, NODES, TURNS, BLOCKS = 4096, 128256, 8, 6, 10, 4
SHARES = {"none": 0, "half": 4, "all": 8}  # of the eight adapters, how many have LoRA at lm_head


def medians_us(launches: dict[str, Launch]) -> dict[str, float]:
    """Of a call of each, in graphs of their own whose blocks take turns."""
    captured = {name: graph.capture(launch, index_sets=1, nodes=NODES) for name, launch in launches.items()}
    samples: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(TURNS):
        for name, item in captured.items():
            samples[name] += graph.sample(item, blocks=BLOCKS, block_ms=5.0, flush=None)
    return {name: median(values) for name, values in samples.items()}


def batch_of(rows: int, rank: int, having: int) -> EmbeddingBatch:
    """A decode batch whose rows use the slots in turn; slots that have nothing here are spread evenly."""
    ranks = [rank if slot * having // SLOTS != (slot + 1) * having // SLOTS else 0 for slot in range(SLOTS)]
    batch = EmbeddingBatch.allocate(max_tokens=rows, slots=SLOTS, tiles=True, device="cuda")
    batch.refill([1] * rows, [row % SLOTS for row in range(rows)], ranks, [1.0] * SLOTS)
    return batch


def costs(rows: int, rank: int) -> dict[str, float | int]:
    """us of the product alone, and what LoRA adds for each share."""
    generator = torch.Generator("cuda").manual_seed(rows + rank)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda", generator=generator).bfloat16() * 0.02

    x, weight = draw(rows, HIDDEN), draw(VOCAB, HIDDEN)
    a_table, b_table, out = draw(SLOTS, rank, HIDDEN), draw(SLOTS, VOCAB, rank), draw(rows, VOCAB)

    def served(batch: EmbeddingBatch | None) -> Launch:
        def launch(_: int) -> torch.Tensor:
            torch.mm(x, weight.T, out=out)
            return out if batch is None else lora_linear(x, a_table, b_table, out, batch)

        return launch

    batches = {name: batch_of(rows, rank, having) for name, having in SHARES.items()}
    found = medians_us({name: served(batch) for name, batch in ({"base": None} | batches).items()})
    cost = {name: found[name] - found["base"] for name in SHARES}
    half = (cost["half"] - cost["none"]) / (cost["all"] - cost["none"])
    return {"rows": rows, "rank": rank, "base": found["base"], **cost, "half_of_all": half}


def main(path: Path) -> None:
    rows = [costs(count, rank) for rank in (16, 64) for count in (32, 128)]
    code = collect_code()
    device = torch.cuda.get_device_name()
    path.write_text(json.dumps({"gpu": device, "commit": code.short, "rows": rows}, indent=1), encoding="utf-8")
    for row in rows:
        print({name: round(value, 3) for name, value in row.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
