"""The start of a side's worker: `python -m bench.execute.pair_start READ_FD WRITE_FD`.

It does here, once, what Triton would do in each fork before its first launch: hash its compiler and import its backend.
These take two thirds of the second that a fork's first point takes. The hash is computed in parallel with the imports,
which it would otherwise lengthen by a third.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

# Another version of Triton has other names for these: a fork's first point takes a second longer then.
ABSENT = (ImportError, AttributeError, OSError)


def main() -> None:
    """Import everything, then serve."""
    hashing = threading.Thread(target=hash_triton, daemon=True)
    hashing.start()
    worker = importlib.import_module("bench.execute.pair_worker")
    hashing.join()  # nothing else may run where processes are forked
    import_backends()
    worker.serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))


def hash_triton() -> None:
    """Compute the key of Triton's cache, which Triton keeps."""
    with suppress(*ABSENT):
        importlib.import_module("triton.runtime.cache").triton_key()


def import_backends() -> None:
    """Import each backend's compiler and driver."""
    with suppress(*ABSENT):
        for backend in importlib.import_module("triton.backends").backends.values():
            importlib.import_module(backend.compiler.__module__)
            importlib.import_module(backend.driver.__module__)


if __name__ == "__main__":
    main()
