"""The gate's report in the formats of CI systems and dashboards."""

from __future__ import annotations

import json
from collections.abc import Callable
from xml.etree import ElementTree

import msgspec

from bench.model.case import point_name
from bench.model.verdict import Exit, Report, Verdict

NANOSECONDS = 1000.0  # in a us
ANNOTATIONS = {"slow": "error", "error": "error", "inconclusive": "warning", "fast": "notice"}
# Characters that XML 1.0 cannot hold, not even escaped.
_NO_XML = {code: "?" for code in range(32) if code not in (9, 10, 13)} | {0xFFFE: "?", 0xFFFF: "?"}
for _surrogate in range(0xD800, 0xE000):
    _NO_XML[_surrogate] = "?"

Reproduce = Callable[[Verdict], str]


def plain_json(report: Report) -> str:
    """The whole report as JSON, with its own format name and version."""
    content = msgspec.to_builtins(report) | {"exit_code": int(report.exit_code)}
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def name_of(item: Verdict) -> str:
    return point_name(item.case, item.contender, item.clock)


def junit(report: Report, reproduce: Reproduce) -> str:
    """One test case for each point: slow and confirmed is a failure, an error is an error, not judged is skipped.

    The reasons why the whole run could not be judged are errors of a test case of their own, so that it does not look
    green.
    """
    suite = ElementTree.Element("testsuite", name=f"bench gate {report.use}", timestamp=report.started_utc[:19])
    cases = [_junit_case(item, reproduce) for item in report.verdicts]
    for reason in report.refusals:
        case = ElementTree.Element("testcase", classname="gate", name="comparable", time="0")
        _child(case, "error", "cannot judge", reason)
        cases.append(case)
    unjudged = report.exit_code is Exit.CANNOT_JUDGE and not any(case.find("error") is not None for case in cases)
    if unjudged:
        case = ElementTree.Element("testcase", classname="gate", name="verdict", time="0")
        _child(case, "error", "cannot judge", "points are unjudged or unconfirmed: see the skipped ones")
        cases.append(case)
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    suite.attrib |= {
        "tests": str(len(cases)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
        "time": f"{report.duration_s:.3f}",
    }
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_case(item: Verdict, reproduce: Reproduce) -> ElementTree.Element:
    each = {"classname": f"{item.contender}.{item.clock}", "name": item.case.key, "time": "0"}
    case = ElementTree.Element("testcase", each)
    if item.status == "slow" and item.confirmed:
        _child(case, "failure", "slow", f"{item.reason}\n{reproduce(item)}")
    elif item.status == "error":
        _child(case, "error", "error", f"{item.reason}\n{reproduce(item)}")
    elif item.status in ("slow", "inconclusive", "skipped"):
        _child(case, "skipped", None, f"{item.status}: {item.reason}")
    return case


def _child(case: ElementTree.Element, tag: str, kind: str | None, text: str) -> None:
    text = text.translate(_NO_XML)
    child = ElementTree.SubElement(case, tag, message=text.splitlines()[0] if text else "")
    if kind is not None:
        child.set("type", kind)
        child.text = text


def bencher(report: Report) -> str:
    """Bencher Metric Format: the new side's figures, `latency` in ns and counts by their own names."""
    content: dict[str, dict[str, dict[str, float]]] = {}
    for item in report.verdicts:
        if item.after_us is not None:
            content[name_of(item)] = {"latency": _metric(item)}
        elif report.counted and item.status in ("pass", "fast", "slow"):
            content[name_of(item)] = {"changed-figures": {"value": float(len(item.changes))}} | {
                change.figure.replace("_", "-"): {"value": float(change.after)} for change in item.changes
            }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _metric(item: Verdict) -> dict[str, float]:
    """The interval of the ratio, put around the new value: the old one's share of the noise is in it."""
    assert item.after_us is not None
    metric = {"value": item.after_us * NANOSECONDS}
    if item.ratio and item.low is not None and item.high is not None:
        metric["lower_value"] = metric["value"] * item.low / item.ratio
        metric["upper_value"] = metric["value"] * item.high / item.ratio
    return metric


def github(report: Report, summary: str, reproduce: Reproduce) -> str:
    """Workflow commands: one annotation for each point that is not a plain pass, and one for the run."""
    lines = []
    for item in report.verdicts:
        level = ANNOTATIONS.get(item.status)
        if level:
            again = f"\n{reproduce(item)}" if item.blocks else ""
            lines.append(_annotation(level, f"{item.status}: {name_of(item)}", item.reason + again))
    level = "notice" if report.exit_code is Exit.PASS else "error"
    lines.append(_annotation(level, f"bench gate {report.use}", "\n".join([summary, *report.refusals])))
    return "\n".join(lines) + "\n"


def _annotation(level: str, title: str, message: str) -> str:
    return f"::{level} title={_escape_property(title)}::{_escape(message)}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")
