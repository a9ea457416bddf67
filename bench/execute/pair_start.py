"""How a side's worker starts: `python -m bench.execute.pair_start READ_FD WRITE_FD`.

What Triton does once in a process before its first launch is done here, so that no fork does it again: hashing its
compiler and importing its backend take two thirds of the second that a fork's first point takes. The hash is made
beside the imports, which it would lengthen by a third.
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
    """The key of its cache, which Triton keeps."""
    with suppress(*ABSENT):
        importlib.import_module("triton.runtime.cache").triton_key()


def import_backends() -> None:
    """Each backend's compiler and driver."""
    with suppress(*ABSENT):
        for backend in importlib.import_module("triton.backends").backends.values():
            importlib.import_module(backend.compiler.__module__)
            importlib.import_module(backend.driver.__module__)


if __name__ == "__main__":
    main()
