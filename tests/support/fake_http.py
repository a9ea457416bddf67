"""A server that is healthy and answers each request at once, in the place of SGLang's."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = "FAKE_HTTP"  # a word: die


class Handler(BaseHTTPRequestHandler):
    """Says yes."""

    def do_GET(self) -> None:
        self._say(b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(os.environ["FAKE_HTTP_SAW"]).open("a") as file:
            file.write(json.dumps(body | {"path": self.path}) + "\n")
        self._say(b"[]")

    def _say(self, body: bytes) -> None:
        self.send_response(200)
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
