"""The results file: atomic, versioned, refused when it is not ours."""

from __future__ import annotations

import errno
import json
import math
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from bench.model import served, store
from bench.model.case import Case
from bench.model.paths import ROOT
from bench.model.records import Check, Code, Point, Results, ResultsError, Round, Run, Schema, Selection

SCHEMA_FILE = Path(store.__file__).with_name("results.schema.json")

RUN_ID = "00000000-0000-4000-8000-000000000000"
CHECK = Check("oracle", 0.0, 0.0, passed=True)


def made(points: int = 1) -> Results:
    run = Run(
        "00000000-0000-4000-8000-000000000000",
        "sweep",
        Selection("smoke"),
        "2026-01-01T00:00:00+00:00",
        1.23456789,
        ["bench"],
        1,
        "0" * 64,
        "0",
    )
    code = Code(None, None, None, None, None, None, "0", "0")
    case = Case("decode", 1, 1, 16)
    rounds = [Round(0, 1, [1.0000004, 2 / 3])]
    return Results(
        Schema(),
        run,
        code,
        points=[Point(case, f"c{i}", "graph", i, "ok", None, CHECK, rounds=rounds) for i in range(points)],
    )


def write_text(path: Path, change) -> Path:
    store.write(path, made())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_a_file_round_trips_with_six_digits_and_sorted_keys(tmp_path):
    path = tmp_path / "deep" / "r.json"
    store.write(path, made())
    again = store.read(path)
    assert again.points[0].rounds[0].blocks_us == [1.0, 0.666667]
    assert again.points[0].key == made().points[0].key
    text = path.read_text()
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    assert "NaN" not in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused_with_its_place_and_the_old_file_stays(tmp_path, value):
    path, results = tmp_path / "r.json", made(3)
    store.write(path, results)
    before = path.read_bytes()
    results.points[2].rounds = [Round(0, 1, [1.0, value])]
    place = rf"points\[2\].rounds\[0\].blocks_us\[1\] is {value}; expected a finite number"
    with pytest.raises(ResultsError, match=rf"r\.json: cannot be written: {place}"):
        store.write(path, results)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["schema"].update(version="2.0.0"), r"schema.version is 2.0.0; expected 1\.x\.y"),
        (lambda data: data["schema"].update(name="other"), "schema.name is 'other'; expected 'csgmv-bench-results'"),
        (lambda data: data["points"][0].update(status="fine"), r"not a valid results file.*\$.points\[0\]|status"),
        (lambda data: data.pop("schema"), "not a results file"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, words):
    path = write_text(tmp_path / "bad.json", change)
    with pytest.raises(ResultsError, match=f"bad.json: .*({words})"):
        store.read(path)


def test_truncated_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "cut.json"
    store.write(path, made())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ResultsError, match=r"cut\.json"):
        store.read(path)
    with pytest.raises(ResultsError, match=r"none\.json: cannot be read"):
        store.read(tmp_path / "none.json")


def test_keys_of_a_newer_minor_are_ignored(tmp_path):
    path = write_text(
        tmp_path / "new.json", lambda data: data.update(novelty=1, schema={**data["schema"], "version": "1.9.0"})
    )
    assert store.read(path).schema.version == "1.9.0"


def test_an_axis_of_a_newer_minor_is_refused_by_name(tmp_path):
    def newer(data, version="1.9.0"):
        data["schema"]["version"] = version
        data["points"][0]["case"]["novelty"] = 1

    path = write_text(tmp_path / "new.json", newer)
    with pytest.raises(ResultsError) as failure:
        store.read(path)
    for part in (f"{path}: points[0].case", "'novelty'", "format 1.9.0 needs a newer version of this suite"):
        assert part in str(failure.value)
    path = write_text(tmp_path / "same.json", lambda data: newer(data, store.SCHEMA_VERSION))
    with pytest.raises(ResultsError, match=r"same\.json: not a valid results file: .*novelty"):
        store.read(path)


@pytest.mark.parametrize("text", [b'"c0"', b'"csgmv-bench-results"'])
def test_a_file_in_another_encoding_is_refused(tmp_path, text):
    path = tmp_path / "latin.json"
    store.write(path, made())
    path.write_bytes(path.read_bytes().replace(text, b'"caf\xe9"', 1))
    with pytest.raises(ResultsError, match=r"latin\.json: not a"):
        store.read(path)


@pytest.mark.parametrize("fails", ["fsync", "replace", "encode"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, fails):
    refused = ResultsError if fails == "encode" else partial(OSError, errno.ENOSPC)

    def fail(*_):
        raise refused("No space left on device")

    path = tmp_path / "r.json"
    store.write(path, made(1))
    before = path.read_bytes()
    monkeypatch.setattr({"fsync": store.os, "replace": Path, "encode": store}[fails], fails, fail)
    with pytest.raises(ResultsError, match=r"r\.json: cannot be written: No space left on device"):
        store.write(path, made(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    store.write(path, made(1))
    before = path.read_bytes()
    monkeypatch.setattr(store.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(path, made(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file/r\.json: cannot be written: (Not a directory|File exists)"):
        store.write(tmp_path / "file" / "r.json", made())
    with pytest.raises(ResultsError, match="cannot be written: Not a directory"):
        store.write(tmp_path / "file" / "deep" / "r.json", made())


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda file: file.name)
def test_the_published_files_are_read_and_fit_the_schema(file):
    if "-engine" in file.stem:  # a record of bench serve
        assert served.read(file).processes
        return
    assert store.read(file).points
    jsonschema.validate(json.loads(file.read_bytes()), json.loads(SCHEMA_FILE.read_bytes()))


def test_the_checked_in_schema_is_the_formats_and_accepts_a_file(tmp_path):
    assert json.loads(SCHEMA_FILE.read_text()) == json.loads(json.dumps(store.json_schema())), (
        "the format changed: bench.model.store.json_schema() is the new file"
    )
    store.write(tmp_path / "r.json", made())
    data = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    data["points"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
