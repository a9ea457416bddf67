"""NVTX ranges never disturb a measurement, with the library or without."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from bench.clocks import markers


@pytest.mark.parametrize("absent", [False, True])
def test_a_span_runs_its_body_and_lets_errors_through(monkeypatch, absent):
    if absent:
        monkeypatch.setitem(sys.modules, "nvtx", None)
    module = importlib.reload(markers)
    assert (module._domain is None) == absent
    ran = []
    with module.span("point|graph|rank=16", payload=3), module.span("sample"):
        ran.append(1)
    assert ran == [1]
    with pytest.raises(ValueError, match="inside"), module.span("setup"):
        raise ValueError("inside")


class Domain:
    def __init__(self):
        self.calls = []

    def get_event_attributes(self, message=None, color=None, category=None, payload=None):
        """As nvtx's own: registers the message, which has to be a string; without a tool nvtx takes anything."""
        assert isinstance(message, str)
        return f"registered {message}", payload

    def push_range(self, attributes):
        self.calls.append(attributes)

    def pop_range(self):
        self.calls.append("pop")


def test_a_range_is_registered_and_carries_its_index(monkeypatch):
    domain = Domain()
    monkeypatch.setattr(markers, "_domain", domain)
    with markers.span("point", payload=7), markers.span("sample"):
        pass
    assert domain.calls == [("registered point", 7), ("registered sample", None), "pop", "pop"]


def test_nvtx_s_own_domain_takes_what_a_span_gives_it(monkeypatch):
    """The real class, which nvtx only hands out when a tool is attached; elsewhere a dummy takes anything."""
    library = pytest.importorskip("nvtx._lib.lib")
    domain = object.__new__(library.Domain)  # Domain() would be the dummy
    domain.handle = library.DomainHandle("csgmv_bench_test")
    domain.__init__("csgmv_bench_test")
    monkeypatch.setattr(markers, "_domain", domain)
    ran = []
    with markers.span("point|graph|rank=16", payload=3), markers.span("sample"):
        ran.append(1)
    assert ran == [1]


def test_an_nvtx_whose_domain_has_no_ranges_is_given_them_by_name(monkeypatch):
    """Before 0.2.12: what nsys 2022 and 2023 need."""
    seen = []

    @contextmanager
    def annotate(message=None, color=None, domain=None, category=None, payload=None):
        seen.append((message, domain, payload))
        yield

    monkeypatch.setattr(markers, "_domain", object())
    monkeypatch.setattr(markers, "nvtx", SimpleNamespace(annotate=annotate), raising=False)
    with markers.span("point", payload=7), markers.span("sample"):
        pass
    assert seen == [("point", markers.DOMAIN, 7), ("sample", markers.DOMAIN, None)]
