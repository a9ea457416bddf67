"""Times of single calls that an engine's processes write to files, for the process that asks to read.

Calls of one kind that come with every step take 16 bytes each. The few that have a name take a line each.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

RECORD = struct.Struct("<qq")  # began, took: ns


class Stamps:
    """A file of this process in a folder, named by what is timed and made at the first call."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._descriptor: int | None = None

    def add(self, began_ns: int, took_ns: int) -> bool:
        """Write one call down. Whether it was the first of this process."""
        first = self._descriptor is None
        if self._descriptor is None:
            path = self._folder / f"{self._name}-{os.getpid()}"
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(self._descriptor, RECORD.pack(began_ns, took_ns))
        return first


def between(folder: Path, name: str, began_ns: int, ended_ns: int) -> list[float]:
    """Times, in us, of the calls of all processes that began between two moments."""
    found = []
    for file in sorted(folder.glob(f"{name}-*")):
        data = file.read_bytes()
        whole = data[: len(data) // RECORD.size * RECORD.size]  # a record may be cut off
        found += [
            took / 1000 for began, took in RECORD.iter_unpack(whole) if began_ns <= began <= ended_ns and took > 0
        ]
    return found


class Named(msgspec.Struct):
    """A call that has a name: a method of a start, a kernel that was compiled."""

    method: str  # or the kernel
    began_ns: int
    took_ns: int


def write_named(folder: Path, kind: str, call: Named) -> None:
    """Add a line to this process's file of the kind."""
    with (folder / f"{kind}-{os.getpid()}").open("ab") as file:
        file.write(msgspec.json.encode(call) + b"\n")


def named(folder: Path, kind: str) -> Iterator[list[Named]]:
    """The named calls of a kind, process by process."""
    for file in sorted(folder.glob(f"{kind}-*")):
        calls = []
        for line in file.read_bytes().splitlines():
            try:
                calls.append(msgspec.json.decode(line, type=Named))
            except msgspec.DecodeError:  # a line that was cut off
                continue
        yield calls
