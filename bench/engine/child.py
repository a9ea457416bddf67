"""The process of an engine: `python -m bench.engine.child READ_FD WRITE_FD`.

The processes that an engine spawns import this module too, before all else: what is done at its top is done in each.
"""

from __future__ import annotations

import importlib
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

import msgspec

from bench.engine import preparation
from bench.engine.drive import Opener, drive
from bench.engine.messages import Job, Message, Prepared, PrepareJob

if __name__ == "__mp_main__":  # a scheduler, say; none of what is hooked runs in the first process
    if os.environ.get("CSGMV_EMBED_DISABLE") == "0":
        # By hand: an installed distribution's entry point does the same, and a checkout has none.
        import csgmv_embed.sglang

        csgmv_embed.sglang.install()
    preparation.install()


def work(receiver: Connection, sender: Connection) -> None:
    """Do the one job that is asked for."""
    job: Job = msgspec.json.decode(receiver.recv_bytes(), type=Job)

    def tell(message: Message) -> None:
        sender.send_bytes(msgspec.json.encode(message))

    if isinstance(job, PrepareJob):
        tell(prepared(job))
        return
    module, _, name = job.opener.partition(":")
    opener: Opener = getattr(importlib.import_module(module), name)
    drive(job, opener, tell)


def prepared(job: PrepareJob) -> Prepared:
    """Write what an engine loads, and look at the machine, in a process that is gone before an engine starts."""
    import torch

    from bench.engine import weights
    from bench.model.environment import collect_environment

    began = monotonic()
    model, adapters, config = weights.prepare(job.setup, Path(job.cache))
    environment = collect_environment("cuda" if torch.cuda.is_available() else "cpu")
    return Prepared(
        str(model),
        [str(folder) for folder in adapters],
        config["num_hidden_layers"],
        config["vocab_size"],
        environment,
        monotonic() - began,
    )


if __name__ == "__main__":
    work(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
