"""What SGLang takes from sgl_kernel at import: names of names; nothing that can be called by mistake."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest

from bench.contenders.sglang import stand_ins


@pytest.fixture
def provided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stand_ins, "PACKAGES", ("json", "sgl_kernel_of_this_test"))
    before = list(sys.meta_path)
    assert stand_ins.provide() == ["sgl_kernel_of_this_test"]  # a package that loads is left alone
    yield
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.startswith("sgl_kernel_of_this_test")]:
        del sys.modules[name]


def test_modules_below_it_have_any_name_and_names_of_names(provided: None) -> None:
    types = importlib.import_module("sgl_kernel_of_this_test.scalar_type").scalar_types
    assert types.uint4b8 is not None and types.uint4b8.size_bits is not None
    assert not hasattr(types, "__array_interface__")

    class Derived(types.Base):
        pass

    assert Derived.__mro__ == (Derived, object)


def test_a_call_says_what_is_missing(provided: None) -> None:
    module = importlib.import_module("sgl_kernel_of_this_test")
    with pytest.raises(RuntimeError, match=r"sgl_kernel_of_this_test\.silu\.out was called"):
        module.silu.out(1)
