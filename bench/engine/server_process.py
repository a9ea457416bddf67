"""The process of SGLang's HTTP server, from outside: started, waited for, asked, ended; its log says why it died."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from signal import SIGTERM
from socket import socket
from time import monotonic, sleep
from typing import Any

import msgspec

from bench.engine.processes import COMMON, ending, last_words

HOST, POLL_S = "127.0.0.1", 0.2
WORDS = 900  # characters of its log that a reason quotes: an engine's reason quotes this one in turn
BODY = 300  # of what it says of a request that it refuses
END_S, DYING_S = 60.0, 0.3  # for it to end by itself; to be gone once its connections are
# What a server asks of itself, and bench_serving of it, goes through no proxy.
DIRECT = {"NO_PROXY": HOST, "no_proxy": HOST}


class RequestRefused(Exception):
    """A request came to no answer; the message says why."""


class ServerDied(RuntimeError):
    """The server has ended, or does not answer; the message has the end of its log."""


class Server:
    """One server, which answers a request within `answer_s`. Use as a context manager: its end is the server's."""

    def __init__(
        self, module: str, given: Mapping[str, Any], answer_s: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port, self._answer_s = int(given["port"]), answer_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **COMMON, **DIRECT, **(environment or {})},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended before it read: `until_ready` says so
            self._process.stdin.write(msgspec.json.encode(given) + b"\n")
            self._process.stdin.close()

    def until_ready(self, timeout_s: float) -> None:
        """Wait for it to be healthy. Raises ServerDied if it ends before, or is not in time."""
        end = monotonic() + timeout_s
        while monotonic() < end:
            self.check("before it answered")
            with suppress(OSError, HTTPException), self._open(f"{self._url}/health", timeout_s=5) as answer:
                if answer.status == 200:
                    return
            sleep(POLL_S)
        raise ServerDied(f"the server did not answer within {timeout_s:g} s{self.words()}")

    def check(self, when: str) -> None:
        """Raises ServerDied if it has ended."""
        if (code := self._process.poll()) is not None:
            raise ServerDied(f"the server ended with {ending(code)} {when}{self.words()}")

    def check_after_failure(self) -> None:
        """Raises ServerDied if a request failed because it died: its connections close before it is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_S)
        self.check("while it was asked")

    def post(self, verb: str, body: Mapping[str, Any]) -> bytes:
        """What it answers. Raises RequestRefused, or ServerDied if it does not answer."""
        request = urllib.request.Request(
            f"{self._url}/{verb}", msgspec.json.encode(body), {"Content-Type": "application/json"}
        )
        try:
            with self._open(request, timeout_s=self._answer_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())
            raise RequestRefused(f"{verb}: HTTP status {error.code}: {said[:BODY]}") from None
        except TimeoutError:
            raise ServerDied(f"the server did not answer {verb} within {self._answer_s:g} s{self.words()}") from None
        except (OSError, HTTPException) as error:
            self.check_after_failure()
            raise RequestRefused(f"{verb}: {error}") from None

    def words(self) -> str:
        """The end of its log."""
        return last_words(self._log, WORDS)

    def end(self) -> None:
        """Ask it to end, so that what watches its processes sees them end."""
        self._process.send_signal(SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)

    @property
    def _url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def _open(self, request: str | urllib.request.Request, timeout_s: float) -> Any:
        """Asks this machine, whatever proxies the environment names."""
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])
