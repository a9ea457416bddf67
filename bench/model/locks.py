"""Lets only one process at a time write a file or a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.model.records import ResultsError


@contextmanager
def only_writer(path: Path | None) -> Iterator[None]:
    """Within this context no other process of this suite writes `path`. None means that nothing is written.

    Raises ResultsError at once if another process writes it. The lock is the system's, on a file beside `path`. It ends
    with the process that holds it, however that ends, so a killed sweep does not block continuing with its file.
    """
    if path is None:
        yield
        return
    lock = path.resolve().with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock)
    except BlockingIOError as error:
        raise ResultsError(
            f"{path}: another process is writing it; expected it to end first, or another file"
        ) from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """The descriptor of a lock that is held. Raises BlockingIOError if another process holds it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed the file in between: nobody else would find this one
