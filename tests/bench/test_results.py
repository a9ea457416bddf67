"""The results file: atomic, versioned, refused when it is not ours."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from bench import results as store
from bench.case import Case
from bench.results import Code, Point, Results, ResultsError, Round, Run, Schema, Selection

SCHEMA_FILE = Path(store.__file__).with_name("results.schema.json")


def made(points: int = 1) -> Results:
    run = Run("id", "sweep", Selection("smoke"), "2026-01-01T00:00:00+00:00", 1.23456789, ["bench"], 1, "0" * 64, "0")
    code = Code(None, None, None, None, None, None, "0", "0")
    case = Case("decode", 1, 1, 16)
    rounds = [Round(0, 1, [1.0000004, 2 / 3])]
    return Results(
        Schema(), run, code, points=[Point(case, f"c{i}", "graph", i, "ok", rounds=rounds) for i in range(points)]
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


def test_not_a_number_is_written_as_null(tmp_path):
    results = made()
    results.points[0].wall_s = float("nan")
    store.write(tmp_path / "r.json", results)
    assert json.loads((tmp_path / "r.json").read_text())["points"][0]["wall_s"] is None


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


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    store.write(path, made(1))
    before = path.read_bytes()
    monkeypatch.setattr(store.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write(path, made(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_checked_in_schema_is_the_formats_and_accepts_a_file(tmp_path):
    assert json.loads(SCHEMA_FILE.read_text()) == store.json_schema(), (
        "the format changed: bench.results.json_schema() is the new file"
    )
    store.write(tmp_path / "r.json", made())
    data = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    data["points"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
