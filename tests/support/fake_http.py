"""A server that is healthy and answers each request at once, in the place of SGLang's."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = "FAKE_HTTP"  # a word: die, die-asked, die-later, refuse, hang, abort


class Handler(BaseHTTPRequestHandler):
    """Says yes."""

    def do_GET(self) -> None:
        self._say(b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(os.environ["FAKE_HTTP_SAW"]).open("a") as file:
            file.write(json.dumps(body | {"path": self.path}) + "\n")
        fault = os.environ.get(FAULTS)
        if fault == "die-asked":
            sys.stderr.write("CUDA error: an illegal memory access\n")
            sys.stderr.flush()
            os._exit(1)
        if fault == "die-later":
            threading.Timer(0.1, os._exit, [1]).start()
        if fault == "hang":
            sys.stderr.write("waiting for a lock\n")
            sys.stderr.flush()
            time.sleep(60)
        if fault == "refuse":
            self._say(b'{"error": "LoRA adapter a0 is not loaded"}', 400)
            return
        tokens = body.get("sampling_params", {}).get("max_new_tokens", 0)
        ended = {"type": "abort", "message": "out of memory"} if fault == "abort" else {"type": "length"}
        answer = {"meta_info": {"completion_tokens": tokens, "finish_reason": ended}}
        self._say(json.dumps([answer] * len(body.get("input_ids", []))).encode())

    def _say(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    Path(os.environ["FAKE_HTTP_SAW"]).write_text(json.dumps(given) + "\n")
    if os.environ.get(FAULTS) == "die":
        sys.exit("no kernel image is available")
    ThreadingHTTPServer((given["host"], given["port"]), Handler).serve_forever()
