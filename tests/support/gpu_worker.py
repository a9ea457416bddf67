"""A worker of a GPU that is not there, in the place of one: `python -m tests.support.gpu_worker READ_FD WRITE_FD`.

It sees the GPU that its environment names, and takes TOOK_S a point. A GPU that is gone has a file of its name in the
folder that GONE names: no worker starts on it.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from bench.execute.isolate import Answer, Ask, Hello, Start, Worker
from bench.model.records import Anchor, Check, Environment, Point, Round

GONE, TOOK_S = "TEST_GONE", 0.02


class GpuWorker(Worker):
    """Its parent's side."""

    module = "tests.support.gpu_worker"


def serve(receiver: Connection, sender: Connection) -> None:
    """Say hello, then answer until the parent closes the pipe."""
    start = msgspec.json.decode(receiver.recv_bytes(), type=Start)
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    if (Path(os.environ[GONE]) / gpu).exists():
        raise SystemExit(f"no device {gpu}")
    environment = Environment({"gpu": "Fake GPU"}, "key", {"gpu_uuid": gpu})
    sender.send_bytes(msgspec.json.encode(Hello(environment, [Anchor("copy", "B/us", [1.0])])))
    while True:
        try:
            ask = msgspec.json.decode(receiver.recv_bytes(), type=Ask)
        except EOFError:
            return
        time.sleep(TOOK_S)
        planned = ask.planned
        point = Point(planned.case, planned.contender, planned.clock, ask.index, "ok", check=Check("", 0.0, 0.0, True))
        point.rounds = [Round(start.process, start.process, [1.0 + os.getpid() / 1e6])]  # whose it is
        sender.send_bytes(msgspec.json.encode(Answer(point)))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
