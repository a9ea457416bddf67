"""The report's formats, each against that format's own schema, parser or grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import msgspec
import pytest

from bench.model.verdict import Report, Subject, Verdict
from bench.show import exports, gate, gate_formats, gate_markdown
from tests.support.gate import AA, OURS, Outcome, aa, jittered, ours, saved, scaled, work_results

Run = Callable[..., Outcome]

# bencher.dev/bmf.json in draft 2020-12, stricter: a name of at most 1024 characters, and no other key.
METRIC = {
    "type": "object",
    "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
    "required": ["value"],
    "additionalProperties": False,
}
BENCHER = {
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z0-9-]{1,64}$"},
        "additionalProperties": METRIC,
        "minProperties": 1,
    },
}
# What Google Benchmark's own compare.py and Bencher's reader of it take from the file.


@pytest.fixture
def report(tmp_path: Path, run: Run) -> Callable[[str], str]:
    """A run with a slow, a fast, an erroneous and thirteen passing points, in a format."""
    slow, fast, bad = (point.key for point in ours(aa())[:3])
    after = scaled(jittered(aa()), 1.1, lambda point: point.key == slow)
    after = scaled(after, 0.8, lambda point: point.key == fast)
    for point in after.points:
        if point.key == bad:
            point.status, point.reason = "crashed", "worker ended with signal SIGSEGV: 50% done,\n a <b> & |c|"
    path = saved(tmp_path / "after.json", after)

    def make(name: str) -> str:
        done = run("gate", "--baseline", AA, path, "-f", name)
        assert done.code == 3
        return done.out

    return make


def test_bencher_metric_format(report: Callable[[str], str]) -> None:
    content = json.loads(report("bencher"))
    jsonschema.validate(content, BENCHER)
    assert len(content) == 15, "a point without a time has no metric"
    for name, measures in content.items():
        metric = measures["latency"]
        assert name.startswith(f"{OURS}|graph|")
        assert 1000 < metric["value"] < 10_000, "nanoseconds"
        assert metric["lower_value"] < metric["value"] < metric["upper_value"]


def test_bencher_metric_format_of_counts(tmp_path: Path, run: Run) -> None:
    files = saved(tmp_path / "a.json", work_results()), saved(tmp_path / "b.json", work_results(load_sectors=200))
    done = run("gate", "--clock", "work", "--baseline", *files, "-f", "bencher")
    assert done.code == 1
    content = json.loads(done.out)
    jsonschema.validate(content, BENCHER)
    assert len(content) == 3
    assert {"value": 200.0} in [measures.get("load-sectors") for measures in content.values()]


def test_json_is_complete_and_has_no_nan(report: Callable[[str], str]) -> None:
    content = json.loads(report("json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (content["name"], content["exit_code"]) == ("csgmv-bench-gate", 3)
    assert len(content["verdicts"]) == 16
    again = msgspec.convert({key: value for key, value in content.items() if key != "exit_code"}, Report)
    assert int(again.exit_code) == 3


def test_junit(report: Callable[[str], str]) -> None:
    root = ElementTree.fromstring(report("junit"))
    assert root.tag == "testsuites"
    (suite,) = root
    allowed = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
    assert set(suite.attrib) == allowed
    cases = list(suite)
    assert all(case.tag == "testcase" and set(case.attrib) == {"classname", "name", "time"} for case in cases)
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{kind}"))
    assert int(suite.attrib["tests"]) == len(cases) == 16
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    assert [len(case) for case in cases].count(1) == 2, "at most one outcome a case: unconfirmed and error"
    (error,) = suite.findall("testcase/error")
    assert "50% done, a <b> & |c|" in " ".join((error.text or "").split())


def judged(*verdicts: Verdict, refusals: list[str] | None = None) -> Report:
    here = Subject("here", None, False, "")
    return Report("against", here, here, {}, list(verdicts), refusals=refusals or [])


CASE = msgspec.to_builtins(ours(aa())[0].case)


def verdict(status: str, **options: object) -> Verdict:
    return msgspec.convert({"case": CASE, "contender": OURS, "clock": "graph", "status": status,
                            "reason": "because"} | options, Verdict)  # fmt: skip


def test_junit_of_a_confirmed_regression_is_a_failure_and_of_an_unjudged_run_an_error() -> None:
    def suite(made: Report) -> ElementTree.Element:
        return ElementTree.fromstring(exports.junit(made, lambda item: "again"))[0]

    failing = suite(judged(verdict("slow", confirmed=True), verdict("pass")))
    assert (failing.attrib["failures"], failing.attrib["errors"]) == ("1", "0")
    refused = suite(judged(verdict("pass"), refusals=["the GPU is another\x00 one"]))
    assert (refused.attrib["failures"], refused.attrib["errors"]) == ("0", "1")
    unsure = suite(judged(verdict("inconclusive"), verdict("pass")))
    assert (unsure.attrib["skipped"], unsure.attrib["errors"]) == ("1", "1"), "must not look green"
    quiet = suite(judged(verdict("pass")))
    assert (quiet.attrib["failures"], quiet.attrib["errors"], quiet.attrib["skipped"]) == ("0", "0", "0")


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """As the runner of GitHub Actions reads a line of output: ActionCommand.TryParseV2, with its escapes."""
    assert line.startswith("::")
    head, found, data = line[2:].partition("::")
    assert found
    command, _, listed = head.partition(" ")
    properties = {}
    for pair in listed.split(","):
        name, found, value = pair.strip().partition("=")
        assert found
        for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            value = value.replace(escaped, plain)
        properties[name] = value
    for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        data = data.replace(escaped, plain)
    return command, properties, data


def test_github_annotations(report: Callable[[str], str]) -> None:
    found = [parsed(line) for line in report("github").splitlines()]
    assert [command for command, _, _ in found] == ["error", "error", "notice", "error"]
    assert all(set(properties) == {"title"} for _, properties, _ in found)
    slow, bad, fast, whole = found
    assert slow[1]["title"].startswith("slow: csgmv_embed-vocab_major|graph|adapters=8|")
    assert "python -m bench gate --against" in slow[2]
    assert "50% done," in bad[2]
    assert fast[1]["title"].startswith("fast: ")
    assert whole[1]["title"] == "bench gate baseline" and "CANNOT JUDGE" in whole[2]


def test_annotations_escape_what_the_runner_would_take_for_syntax() -> None:
    text = "a: 100%, b\r\nc::d%0A"
    made = judged(verdict("error", reason=text, contender="x:y,z%"))
    line = exports.github(made, text, lambda item: "again").splitlines()[0]
    assert parsed(line) == (
        "error",
        {"title": f"error: {exports.name_of(made.verdicts[0])}"},
        f"{text}\nagain",
    )


def cells(line: str) -> list[str]:
    """A row of a GitHub table: split at bars that are not escaped."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_tables_keep_their_columns(report: Callable[[str], str]) -> None:
    lines = report("markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 16
    assert {len(cells(row)) for row in rows} == {9}
    assert not any("adapters=" in row for row in rows), "a case is named by what tells it from the others"
    assert "slow" in rows[2] and "error" in rows[3] and "fast" in rows[4]
    assert any("\\<b\\>" in row for row in rows)
    fence = lines.index("```sh")
    assert lines[fence + 1].startswith("python -m bench gate --against")


def test_markdown_stays_within_githubs_limit_and_says_what_is_missing() -> None:
    made = judged(*[verdict("slow", confirmed=True, reason=f"{number} {'x' * 2000}") for number in range(1000)])
    text = gate_markdown.markdown(made)
    assert len(text.encode()) <= 1 << 20
    (left,) = re.findall(r"(\d+) more points are not shown", text)
    assert int(left) + text.count("| slow |") == 1000
    assert text.count("```") % 2 == 0


def test_formats_go_to_files_and_the_table_to_the_terminal(tmp_path: Path, run: Run) -> None:
    after = saved(tmp_path / "after.json", jittered(aa()))
    files = {name: tmp_path / "new" / f"{name}.out" for name in gate_formats.FORMATS if name != "table"}
    options = [part for name, path in files.items() for part in ("-f", f"{name}={path}")]
    done = run("gate", "--baseline", AA, after, *options)
    assert done.code == 0
    assert "gate baseline: pass" in done.out
    assert all(path.stat().st_size > 100 for path in files.values())
    assert "\x1b" not in done.out


def test_a_format_that_cannot_be_written_is_2(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    after = saved(tmp_path / "after.json", jittered(aa()))
    done = run("gate", "--baseline", AA, after, "-f", f"json={tmp_path}/file/x.json")
    assert done.code == 2
    assert "cannot be written" in done.err


def test_versions_and_commits_of_sglang_are_compared_again_as_they_were() -> None:
    def again(before: Subject, after: Subject) -> str:
        made = judged(verdict("slow", confirmed=True))
        made.use, made.before, made.after = "against-sglang", before, after
        (command,) = gate.commands(made)
        return command

    def side(label: str, sha: str) -> Subject:
        return Subject(label, sha, False, "")

    versions = again(side("0.5.17", "3" * 40), side("0.5.20", "4" * 40))
    assert " gate --against-sglang 0.5.17 --sglang 0.5.20 --clock graph " in versions
    old, new = "3" * 40, "4" * 40
    commits = again(side(old[:9], old), side(new[:9], new))
    assert f" history bisect --sglang-checkout CHECKOUT --commits {old}..{new} -c " in commits


def test_the_summary_is_one_line_and_names_the_worst_point(report: Callable[[str], str]) -> None:
    last = report("table").splitlines()[-1]
    assert last.startswith("gate baseline: CANNOT JUDGE (1 slow, 1 error, 1 fast, 13 pass; worst +")


HOSTILE = "x\n::error::a\r\n##[error]b\x1b[31m\x1b]0;t\x07\u2028::stop-commands::c\x00\x85]]>&<\ud800\uffff"


@pytest.mark.parametrize("name", sorted(gate_formats.FORMATS))
def test_no_text_reaches_past_its_line(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = Subject(HOSTILE, None, False, HOSTILE)
    case = ours(aa())[0].case
    verdicts = [
        Verdict(case, HOSTILE, "graph", status, HOSTILE, before_us=1.0, after_us=2.0, ratio=2.0, confirmed=True)
        for status in ("slow", "error", "inconclusive", "skipped")
    ]
    made = Report("against", here, here, {"gpu": HOSTILE}, verdicts, [HOSTILE], [HOSTILE], [HOSTILE])
    file = tmp_path / "report"
    gate_formats.emit(made, [gate_formats.Format(name, None), gate_formats.Format(name, file)])
    for text in (capsys.readouterr().out, file.read_text(encoding="utf-8")):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
        commands = [line for line in text.split("\n") if line.strip().startswith("::")]
        assert all(re.match(r"::(error|warning|notice) title=[^:]*::", line) for line in commands)
        assert name == "github" or not commands
        if name == "junit":
            ElementTree.fromstring(text.encode())
