"""What else is in a graph node's time: the gap between replays, idle spells, streams used, another process on the GPU.

    python docs/experiments/graph_clock.py OUT.json        (an NVIDIA GPU; about a minute)

nodes    us a node, by the number of nodes in the graph; a gap between replays shows as g / nodes.
idle     us a node by block after a spell without work, ms.
streams  us a node of the same graphs by the number of further streams on which the process has worked before.
pair     us a node of this process while another one that has a context on the GPU idles, works in turn, and has gone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import contenders
from bench.case import Case
from bench.clocks import graph
from bench.clocks.anchors import empty_kernel
from bench.environment import nvml_device
from bench.workload import make_workload

SETS, BLOCKS, BLOCK_MS = 20, 10, 1.0
CASES = {
    "decode 1, rank 64": Case("decode", 1, 1, 64),
    "decode 256, rank 64": Case("decode", 256, 1, 64),
    "prefill 8 x 512, rank 64": Case("prefill", 8, 512, 64),
}
CONTENDERS = (
    "csgmv_embed-vocab_major",
    "csgmv_embed_pdl-vocab_major",
    "sglang_csgmv-chunk16",
    "sglang_triton",
    "torch_gather",
)


def empty_launch() -> Callable[[int], torch.Tensor]:
    target = torch.empty(1, device="cuda")

    def launch(_: int) -> torch.Tensor:
        empty_kernel[(1,)](target)
        return target

    return launch


def launches(names: tuple[str, ...] = CONTENDERS) -> dict[str, Callable[[int], torch.Tensor]]:
    found: dict[str, Callable[[int], torch.Tensor]] = {"empty kernel": empty_launch()}
    for label, case in CASES.items():
        workload = make_workload(case, seed=1, index_sets=SETS, device=torch.device("cuda", 0))
        for name in names:
            found[f"{name}, {label}"] = contenders.build(name).setup(workload, static=True)
    return found


def captured(launch: Callable[[int], torch.Tensor], nodes: int = 60) -> graph.CapturedGraph:
    return graph.capture(launch, index_sets=SETS, nodes=nodes, exact=True)


def blocks_us(of: graph.CapturedGraph, blocks: int = BLOCKS) -> list[float]:
    return [round(value, 4) for value in graph.sample(of, blocks=blocks, block_ms=BLOCK_MS, flush=None)]


def by_nodes(all_launches: dict[str, Callable[[int], torch.Tensor]]) -> dict[str, Any]:
    return {
        name: {nodes: median(blocks_us(captured(launch, nodes))) for nodes in (20, 60, 240, 960)}
        for name, launch in all_launches.items()
    }


def by_streams(of_label: dict[str, graph.CapturedGraph]) -> list[dict[str, float]]:
    """From here on the process has worked on many streams, which only a switch of the GPU to another process undoes."""
    launch, rows = empty_launch(), []
    for _ in range(9):
        rows.append({label: median(blocks_us(of)) for label, of in of_label.items()})
        with torch.cuda.stream(torch.cuda.Stream()):
            launch(0)
        torch.cuda.synchronize()
    return rows


def by_idle(launch: Callable[[int], torch.Tensor]) -> dict[str, Any]:
    """Blocks right after capture, at once again, and after each idle spell; the last ones in a long busy stretch."""
    of = captured(launch)
    found: dict[str, Any] = {"first": blocks_us(of), "again": blocks_us(of)}
    for idle_ms in (1, 10, 100, 1000):
        time.sleep(idle_ms / 1000)
        found[f"after {idle_ms} ms"] = blocks_us(of)
    found["busy 300 ms"] = blocks_us(of, 300)[::15]
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(60):
        square @ square
    found["after matrix products"] = blocks_us(of)
    return found


def other(pipe: Connection) -> None:
    """The other process: a context, then its own lookups each time it is asked."""
    of = captured(launches(CONTENDERS[:1])["csgmv_embed-vocab_major, decode 1, rank 64"])
    pipe.send(blocks_us(of))
    while pipe.recv():
        pipe.send(blocks_us(of))


def pair(of_label: dict[str, graph.CapturedGraph]) -> list[dict[str, Any]]:
    """This process's blocks: alone, with an idle neighbour, in turn with it, and after it has gone."""
    rows: list[dict[str, Any]] = []

    def note(state: str, neighbour: list[float] | None = None) -> None:
        times = {label: blocks_us(of, 4) for label, of in of_label.items()}
        rows.append({"state": state, "us": times, "neighbour_us": neighbour, "clocks_mhz": clocks()})

    note("alone")
    note("alone")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=other, args=(there,))
    process.start()
    first = here.recv()
    note("neighbour has run", first)
    note("neighbour idles")
    for turn in range(4):
        here.send(True)
        note(f"after the neighbour's turn {turn}", here.recv())
        note("no turn between")
    time.sleep(1.0)
    note("neighbour idle for a second")
    here.send(False)
    process.join()
    note("neighbour gone")
    time.sleep(1.0)
    note("gone for a second")
    return rows


def clocks() -> dict[str, int]:
    nvml, handle = nvml_device()  # type: ignore[misc]
    kinds = {"sm": nvml.NVML_CLOCK_SM, "mem": nvml.NVML_CLOCK_MEM, "video": nvml.NVML_CLOCK_VIDEO}
    return {name: int(nvml.nvmlDeviceGetClockInfo(handle, kind)) for name, kind in kinds.items()}


def main() -> None:
    torch.cuda.init()
    every = launches()
    lookup = every["csgmv_embed-vocab_major, decode 1, rank 64"]
    both = {"empty kernel": captured(every["empty kernel"]), "lookup": captured(lookup)}
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "nodes": by_nodes(every),
        "idle": {"lookup": by_idle(lookup), "empty kernel": by_idle(every["empty kernel"])},
        "streams": by_streams(both),
        "pair": pair(both),
    }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
