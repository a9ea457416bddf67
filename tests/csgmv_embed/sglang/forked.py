"""Processes like a server's at its start, without the ten seconds of imports: this script has made them, and forks.

Each line it reads is a JSON list: a script, additions to the environment, files for stdout and stderr. It answers with
the exit status.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

# Nothing of SGLang's LoRA: what of that is imported when is what the scripts are about.
import sglang.srt.layers.vocab_parallel_embedding
import sglang.srt.model_loader  # noqa: F401


def status_of(script: str, environment: dict[str, str], *outputs: str) -> int:
    """Run a script in this process; the exit status an interpreter would have."""
    for descriptor, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    try:
        exec(script, {"__name__": "__main__"})
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = status_of(*json.loads(line))
        sys.stdout.flush()
        os._exit(status)  # taking the interpreter down is seconds of work for nothing
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
