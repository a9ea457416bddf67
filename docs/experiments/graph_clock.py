"""The two states of a process in which a graph node takes different times, and what leads from one to the other.

    python docs/experiments/graph_clock.py OUT.json        (an NVIDIA GPU; a quarter of a minute)

Each row: what this process, or another one, has done since the row before, and then us a node of two graphs that were
captured first: of empty kernels, and of a decode lookup of one token at rank 64.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import contenders
from bench.clocks import graph
from bench.clocks.anchors import capture_empty, empty_launch
from bench.contenders.base import Launch
from bench.model.case import Case
from bench.model.environment import collect_code
from bench.workload.tensors import make_workload

NODES, BLOCKS, BLOCK_MS = 60, 6, 1.0
ELSEWHERE = "import torch; torch.zeros(1, device='cuda').add_(1).item()"

fill_queues = graph.fill_queues
graph.fill_queues = lambda: None  # the clock does this before it samples: here it is what is looked at


def lookup_launch() -> Launch:
    workload = make_workload(Case("decode", 1, 1, 64), seed=1, index_sets=20, device=torch.device("cuda", 0))
    return contenders.build("csgmv_embed-vocab_major").setup(workload, static=True)


def work_on_a_stream() -> None:
    launch = empty_launch()
    with torch.cuda.stream(torch.cuda.Stream()):
        launch(0)
    torch.cuda.synchronize()


def main() -> None:
    lookup = lookup_launch()  # keeps the tensors that the graph reads
    followed = {"empty kernel": capture_empty(NODES), "lookup": graph.capture(lookup, index_sets=20, nodes=NODES)}
    rows: list[dict[str, object]] = []

    def after(done: str, do: Callable[[], object] = lambda: None) -> None:
        do()
        times = {
            f"{name}_us": round(median(graph.sample(of, blocks=BLOCKS, block_ms=BLOCK_MS, flush=None)), 4)
            for name, of in followed.items()
        }
        rows.append({"after": done, **times})

    after("two captures")
    for number in range(1, 9):
        after(f"work on {number} more streams", work_on_a_stream)
    after("work of another process", lambda: subprocess.run([sys.executable, "-c", ELSEWHERE], check=True))
    after("the same again", lambda: subprocess.run([sys.executable, "-c", ELSEWHERE], check=True))
    after("a dozen captures", lambda: [capture_empty(NODES) for _ in range(12)])
    after("fill_queues", fill_queues)
    after("work of another process", lambda: subprocess.run([sys.executable, "-c", ELSEWHERE], check=True))
    after("fill_queues", fill_queues)
    report = {"gpu": torch.cuda.get_device_name(), "commit": collect_code().sha, "nodes": NODES, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
