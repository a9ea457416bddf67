"""Times of single calls that an engine's processes write to files, 16 bytes each, for the process that asks to read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

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
