"""Sites of a model that is small enough for Triton's interpreter."""

from __future__ import annotations

import pytest

from bench.workload import sites


def shrink_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of 135m, a tenth as large: widths differ as under grouped-query attention."""
    monkeypatch.setitem(sites.DIMENSIONS, "135m", sites.Dimensions(hidden=64, q=64, kv=16, intermediate=80))
