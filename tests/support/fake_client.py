"""bench_serving's place taken: what it once wrote, with as many requests and tokens as it is asked."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

from bench.engine import peer_client

RECORD = Path(__file__).parents[1] / "bench" / "engine" / "data" / "bench_serving.jsonl"
FAULTS = "FAKE_CLIENT"  # words with commas between them, one a run: ok, fail, raise, silent, die


def main() -> None:
    """As cli_main: reads sys.argv, writes a line to the file that it names."""
    told = dict(pairwise(sys.argv))
    sys.stdout.write("Serving Benchmark Result\n")  # as it does; it must not reach the pipe of answers
    fault = faults.pop(0) if faults else "ok"
    if fault == "die":
        os._exit(1)
    if fault == "raise":
        raise ValueError("Warmup failed")
    if fault == "silent":
        return
    prompts = int(told["--num-prompts"])
    record = json.loads(RECORD.read_text())
    record |= {"completed": prompts - (fault == "fail")}
    record |= {"total_output_tokens": prompts * int(told["--random-output-len"])}
    Path(told["--output-file"]).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    faults = os.environ.get(FAULTS, "").split(",")
    peer_client.serve(main)
