"""NVTX ranges: one domain, one registered range for each point and for each of its phases. Silent without nvtx.

A point's range carries the point's index in the run as payload, so that a profile can be joined with the results file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DOMAIN = "csgmv_bench"
PHASES = ("setup", "verify", "warmup", "sample")

try:
    import nvtx

    _domain: Any = nvtx.get_domain(DOMAIN)
except ImportError:
    _domain = None


@contextmanager
def span(name: str, payload: int | None = None) -> Iterator[None]:
    """A push/pop range called `name` in the domain.

    nvtx registers the string, so that nsys can start capturing at it.
    """
    if _domain is None:
        yield
        return
    if not hasattr(_domain, "push_range"):  # nvtx before 0.2.12, whose ranges alone nsys before 2024 keeps
        with nvtx.annotate(message=name, domain=DOMAIN, payload=payload):
            yield
        return
    _domain.push_range(_domain.get_event_attributes(message=name, payload=payload))
    try:
        yield
    finally:
        _domain.pop_range()
