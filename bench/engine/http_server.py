"""SGLang's HTTP server with the arguments of an engine; they are a line of JSON on stdin.

It is `sglang.launch_server` but for its command line. The processes that it spawns import this module too, before all
else, and are made what the mode says.
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
