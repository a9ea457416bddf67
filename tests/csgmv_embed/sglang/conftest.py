"""The plugin is loaded for a module of tests, through its entry point; a test switches it on with `plugin_on`."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.contenders.sglang import stand_ins
from csgmv_embed.sglang import runtime
from csgmv_embed.sglang.settings import Settings
from tests.support import real_sglang as support

if importlib.util.find_spec("sglang") is None:
    collect_ignore_glob = ["*test_*.py"]  # of the folders below too

os.environ.setdefault("SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "0")  # its cache keys forget the rank


@pytest.fixture(scope="module")
def loaded(
    tmp_path_factory: pytest.TempPathFactory, record_testsuite_property: Callable[[str, object], None]
) -> Iterator[Any]:
    """What the self-check found after SGLang loaded its plugins; the hooks are left off, and undone at the end."""
    from csgmv_embed.sglang import status

    site = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's imports are not ours to mend
        if support.server_classes() is not None:
            stand_ins.provide()
        if (reason := support.server_classes()) is not None:
            pytest.skip(f"{support.NOT_HERE}: {reason}")
        support.entry_point_files(site)
        path = pytest.MonkeyPatch()
        path.syspath_prepend(site)
        support.load_plugin()
    found, active = status(), runtime.active
    record_testsuite_property("sglang", f"{found.sglang} of {sys.modules['sglang'].__file__}")
    runtime.activate(None)
    yield found, active
    if active is not None:
        support.unload_plugin(active.release)
    path.undo()


@pytest.fixture
def plugin_on(loaded: Any) -> Iterator[Callable[..., None]]:
    """Switch the hooks on with these settings, and off at the end of the test."""
    release = loaded[1].release
    yield lambda **settings: runtime.activate(runtime.Active(release, Settings(**settings)))
    runtime.activate(None)


@pytest.fixture(scope="module")
def group_of_one(loaded: Any) -> None:
    support.start_process_group()


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    with support.on_the_cpu(support.server_args()):
        yield
