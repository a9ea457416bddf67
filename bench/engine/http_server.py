"""SGLang's HTTP server with the arguments of an engine, which it reads as a line of JSON from stdin.

It is `sglang.launch_server` without the command line. The processes that it spawns import this module first, which
applies the mode in each of them.
"""

from __future__ import annotations

import os
import sys

import msgspec

from bench.engine import spawned

if __name__ == "__mp_main__":
    spawned.ready()


def main() -> None:
    """Serve until the process is ended."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    try:
        run_server(ServerArgs(**msgspec.json.decode(sys.stdin.buffer.readline())))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
