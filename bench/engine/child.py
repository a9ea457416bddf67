"""The process of an engine: `python -m bench.engine.child READ_FD WRITE_FD`.

The processes that an engine spawns import this module first, so the code at its top runs in each of them.
"""

from __future__ import annotations

import importlib
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any

import msgspec

from bench.engine import cross_check, spawned
from bench.engine.drive import Opener, drive
from bench.engine.messages import CrossJob, Job, Message, Prepared, PrepareJob, ServeJob, Warm, WarmJob
from bench.model.records import Anchor

NODES, BLOCK_MS = 100, 1.0  # of the graph of empty kernels

if __name__ == "__mp_main__":  # a scheduler, say; none of what is hooked runs in the first process
    spawned.ready()


def work(receiver: Connection, sender: Connection) -> None:
    """Do the one job that is asked for. If asked, import for it first."""

    def asked() -> Job:
        job: Job = msgspec.json.decode(receiver.recv_bytes(), type=Job)
        return job

    def tell(message: Message) -> None:
        sender.send_bytes(msgspec.json.encode(message))

    job = asked()
    if isinstance(job, WarmJob):
        _module(job.opener).warm()
        tell(Warm((monotonic_ns() - job.spawned_ns) / 1000))
        job = asked()
    if isinstance(job, PrepareJob):
        tell(prepared(job))
    elif isinstance(job, ServeJob):
        opener: Opener = getattr(_module(job.opener), job.opener.partition(":")[2])
        drive(job, opener, tell)
    elif isinstance(job, CrossJob):
        cross_check.run(job, tell)


def _module(opener: str) -> Any:
    return importlib.import_module(opener.partition(":")[0])


def prepared(job: PrepareJob) -> Prepared:
    """Write what an engine loads, and look at the machine, in a process that ends before an engine starts."""
    import torch

    from bench.engine import weights
    from bench.model.environment import collect_environment

    began = monotonic()
    model, adapters, config = weights.prepare(job.setup, Path(job.cache))
    on_gpu = torch.cuda.is_available()
    environment = collect_environment("cuda" if on_gpu else "cpu")
    written_s = monotonic() - began
    anchors = _anchors() if job.anchors and on_gpu else []
    return Prepared(
        str(model),
        [str(folder) for folder in adapters],
        config["num_hidden_layers"],
        config["vocab_size"],
        environment,
        written_s,
        anchors,
    )


def _anchors() -> list[Anchor]:
    """What floors are made of: an empty node of a graph, and the bandwidth of a copy."""
    from bench.clocks import anchors

    empty = anchors.empty_graph_us(anchors.capture_empty(NODES), BLOCK_MS)
    return [
        Anchor("empty_kernel_graph", "us", [empty]),
        Anchor("copy_bandwidth", "bytes/us", [anchors.copy_bytes_per_us()]),
    ]


if __name__ == "__main__":
    work(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
