"""Fields and tables taken at random out of a sound record: never a traceback, no other figure without a named lack."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engine.trace import TraceError, attributed
from bench.model.serving import Load
from profiles import kineto, nsys_database
from profiles.capture import CaptureFailed
from tests.support import nsys_schema
from tests.support.fake_engine import kernel

NAMES = ("_fwd_grouped_kernel_stage1", "nvjet_sm90", "_chunked_lora_shrink_kernel", "_chunked_lora_expand_kernel")
ENGINE = [kernel(NAMES[place % 4], 10.0 * place, 5.0 + place) for place in range(16)]
LOAD = Load("decode", 32, 16)
KINETO: list[dict[str, Any]] = [
    {"ph": "X", "cat": "user_annotation", "name": "a", "ts": 100, "dur": 50},
    {"ph": "X", "cat": "user_annotation", "name": "b", "ts": 200, "dur": 50},
    *(
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": ts, "dur": 2, "args": {"correlation": ts}}
        for ts in (110, 120, 210, 300)
    ),
    *(
        {"ph": "X", "cat": "kernel", "name": "k", "ts": ts + 300, "dur": 3.5, "args": {"correlation": ts}}
        for ts in (110, 120, 210, 300)
    ),
]
NEEDED = {
    "NVTX_EVENTS": ("start", "end", "globalTid", "domainId", "eventType"),
    "CUPTI_ACTIVITY_KIND_RUNTIME": ("start", "globalTid", "correlationId"),
    "CUPTI_ACTIVITY_KIND_KERNEL": ("start", "end", "correlationId", "globalPid"),
    "CUDA_GRAPH_NODE_EVENTS": ("start", "globalTid", "graphNodeId"),
}
CASES = settings(max_examples=60, deadline=None)
taken = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from(("ph", "cat", "name", "ts", "dur"))), min_size=1, max_size=4
)


def without(events: list[dict[str, Any]], fields: list[tuple[int, str]]) -> list[dict[str, Any]]:
    found = copy.deepcopy(events)
    for place, name in fields:
        found[place % len(found)].pop(name, None)
    return found


def of_engine(events: list[dict[str, Any]]) -> tuple[Any, Counter[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.trace.json"
        path.write_text(json.dumps({"traceEvents": events}))
        found = attributed(path, LOAD, targets="ends", layers=1)
    return (found.kernels, found.span_us, found.passes), Counter(found.lacking)


@CASES
@given(taken)
def test_of_an_engines_trace(fields: list[tuple[int, str]]) -> None:
    figures, lacking = of_engine(ENGINE)
    try:
        less, said = of_engine(without(ENGINE, fields))
    except TraceError:
        return  # which says why
    assert less == figures or said - lacking


@CASES
@given(taken)
def test_of_a_trace_of_torch(fields: list[tuple[int, str]]) -> None:
    lacking: Counter[str] = Counter()
    found = kineto.kernels(without(KINETO, fields), lacking)
    assert found == kineto.kernels(KINETO) or lacking


@CASES
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3),
       st.integers(0, 99), st.sampled_from(("ph", "cat", "name", "ts", "dur", "args")))  # fmt: skip
def test_of_any_value_in_a_field(value: object, place: int, name: str) -> None:
    torchs, engines = copy.deepcopy(KINETO), copy.deepcopy(ENGINE)
    torchs[place % len(torchs)][name] = engines[place % len(engines)][name] = value
    kineto.kernels(torchs)
    try:
        of_engine(engines)
    except TraceError:
        return


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nsys_schema.build(tmp_path_factory.mktemp("nsys") / "sound.sqlite")


@CASES
@given(data=st.data())
def test_of_a_capture_of_nsys(sound: Path, data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(sorted(NEEDED)))
    column = data.draw(st.sampled_from(NEEDED[table]))
    drop = data.draw(st.sampled_from(("field", "table")))
    before = nsys_database.attribute(sound)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(sound, folder))
        connection = sqlite3.connect(path)
        with connection:
            if drop == "table":
                connection.execute(f"DROP TABLE {table}")
            else:
                # The schema of the export allows no empty start; another version's may.
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                rows = connection.execute(f"SELECT * FROM {table}").fetchall()
                place = data.draw(st.integers(0, len(rows) - 1))
                changed = [None if name == column else value for name, value in zip(columns, rows[place], strict=True)]
                rows[place] = tuple(changed)
                connection.execute(f"DROP TABLE {table}")
                connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
                marks = ", ".join("?" * len(columns))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.close()
        try:
            after = nsys_database.attribute(path)
        except CaptureFailed:
            return  # which says why
    same = (after.ranges, after.unattributed, after.kernels) == (before.ranges, before.unattributed, before.kernels)
    assert same or Counter(after.lacking) - Counter(before.lacking)
