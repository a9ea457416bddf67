"""Every committed record is read by the reader of its format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.model import history, pairs, served, store
from bench.model.paths import ROOT
from profiles import records as profiles

READERS: dict[str, Callable[[Path], object]] = {
    store.SCHEMA_NAME: store.read,
    pairs.PAIRS_NAME: pairs.read,
    history.HISTORY_NAME: history.read,
    profiles.PROFILE_NAME: profiles.read,
    served.SERVE_NAME: served.read,
}


def format_of(path: Path) -> str | None:
    content = json.loads(path.read_bytes())
    schema = content.get("schema") if isinstance(content, dict) else None
    return schema["name"] if isinstance(schema, dict) and "name" in schema else None


FOLDERS = ("docs", "bench/baselines", "history", "profiles")
COMMITTED = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.json")) if format_of(path)]


def test_each_format_has_committed_records() -> None:
    assert {format_of(path) for path in COMMITTED} | {served.SERVE_NAME} == set(READERS)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_committed_record_is_read(path: Path) -> None:
    READERS[str(format_of(path))](path)
