"""What all tests share: the interpreter where there is no GPU, the device, markers, hypothesis, the last line."""

from __future__ import annotations

import os
import sys
from collections import Counter

import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    assert "triton" not in sys.modules, "triton reads TRITON_INTERPRET when it is imported"
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from bench.clocks.work.quick import quicken  # noqa: E402

pytest.register_assert_rewrite("tests.support")
if os.environ.get("TRITON_INTERPRET") == "1":
    quicken()
settings.register_profile("local", deadline=None, max_examples=40)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if HAS_CUDA else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_CUDA:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line of what was skipped and what it would have needed."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        said = [f"{count} {reason.removeprefix('Skipped: ')}" for reason, count in reasons.most_common()]
        terminalreporter.write_line(f"{reasons.total()} skipped: {'; '.join(said)}")
