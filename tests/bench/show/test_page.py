"""The page: whole, without the network, true to its files."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.cli import main as cli
from bench.cli.selection import planned
from bench.cli.series import views
from bench.judge.estimate import point_estimate
from bench.model import config, store
from bench.model.paths import ROOT
from bench.model.records import Results, Selection
from bench.model.registry import without_version
from bench.show.looks import LOOKS, MARKERS, looks, mode_looks
from bench.show.page import facts
from bench.show.page.content import Content
from bench.show.page.render import data, page
from plots import style

DOCS = ROOT / "docs"
PREPARE, FAULTS = DOCS / "results" / "h100-prepare.json", DOCS / "results" / "h200-faults.json"
QUICK, PEERS = DOCS / "results" / "h200-quick.json", DOCS / "results" / "h200-peers.json"
PAIRS, PLANTED = DOCS / "experiments" / "h100-self-check-1.json", DOCS / "experiments" / "planted-slow"
COUNTED = ROOT / "bench" / "baselines" / "work-triton-3.6.json"


class Seen(HTMLParser):
    """Ids, links, sources, and the cells of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []
        self._in_cell = tag in ("td", "th") or self._in_cell
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._in_cell and self.cells:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")


def written(path: Path, *arguments: str | Path) -> tuple[str, dict[str, Any]]:
    """The page that the command line writes of these files, and the data in it."""
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *map(str, arguments), "-o", str(path)])
    assert not end.value.code
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return text, json.loads(found[1])


def contents(path: Path) -> tuple[Results, Content]:
    results = store.read(path)
    return results, Content([(path.name, path.read_bytes())], results=[(path.name, results)])


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    text, _ = written(tmp_path / "r.html", PREPARE, FAULTS, PAIRS, PLANTED)
    seen = Seen(text)
    assert not seen.sources
    assert seen.links and all(link.startswith("#") or link == "data:," for link in seen.links)
    assert len(set(seen.ids)) == len(seen.ids)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert {"summary", "points", "standing", "failed", "verdicts", "history", "origin"} <= set(seen.ids)
    assert "Permission is hereby granted" in text, "the chart library's licence"


def test_a_part_of_which_there_is_nothing_is_not_there(tmp_path: Path) -> None:
    text, _ = written(tmp_path / "r.html", PLANTED, "-k", "graph")
    assert not {"points", "standing", "failed", "verdicts"} & set(Seen(text).ids)


def test_the_page_of_the_whole_profile_is_under_six_megabytes(tmp_path: Path) -> None:
    text, _ = written(tmp_path / "r.html", DOCS / "results" / "h200-full.json")
    assert len(text.encode()) < 6e6


@pytest.mark.parametrize("path", [PREPARE, PEERS, COUNTED], ids=lambda path: path.stem)
def test_every_point_of_a_file_is_on_the_page_with_its_rounds(path: Path) -> None:
    results, content = contents(path)
    (run,) = data(content)["runs"]
    points = {(item["case"], item["contender"], item["clock"]): item for item in run["points"]}
    assert len(points) == len(results.points) > 10
    for point in results.points:
        item = points[point.case.key, point.contender, point.clock]
        taken = point_estimate(point)
        assert item.get("us") == (taken.value if taken and point.status == "ok" else None)
        assert len(item.get("rounds", [])) == len(point.rounds)
        assert (item.get("counts") is not None) == (point.work is not None)
        assert item["status"] == "ok" or item["reason"] == point.reason
    assert {item["op"] for item in run["points"]} == {point.case.op for point in results.points}


def test_the_command_of_a_point_chooses_this_point_alone() -> None:
    (run,) = data(contents(QUICK)[1])["runs"]
    loaded = config.load(config.DEFAULT_PATH)
    for item in run["points"][::10]:
        words = shlex.split(item["again"])
        assert words[:4] == ["python", "-m", "bench", "sweep"]
        given = dict(zip(words[4::2], words[5::2], strict=True))
        chosen = Selection(given["-p"], [], [given["-k"]], [given["-c"]], [given["--case"]])
        (point,) = planned(loaded, chosen).points
        assert (point.case.key, point.contender, point.clock) == (item["case"], item["contender"], item["clock"])


def test_the_product_without_lora_competes_with_nobody() -> None:
    _, content = contents(PEERS)
    (run,) = data(content)["runs"]
    of_base = [item for item in run["points"] if item["contender"] == "base"]
    assert of_base and not any("to_ours" in item for item in of_base)
    cells = Seen(page(content)).cells
    costs = [cell for cell in cells if cell.startswith("LoRA costs +")]
    assert len(costs) == len({item["op"] for item in of_base})


def test_a_peer_at_its_own_default_comes_before_its_other_settings() -> None:
    cells = Seen(page(contents(PREPARE)[1])).cells
    places = [cells.index(name) for name in ("SGLang csgmv, chunk 16 (default)", "SGLang csgmv, chunk 128")]
    assert places == sorted(places)


def test_what_has_no_figure_is_there_with_its_reason() -> None:
    results, content = contents(FAULTS)
    cells = Seen(page(content)).cells
    failed = [point for point in results.points if point.status != "ok"]
    assert {point.status for point in failed} == {"wrong", "crashed"}
    for point in failed:
        assert point.reason in cells and point.status in cells


def test_counted_work_says_that_it_is_no_time() -> None:
    _, content = contents(COUNTED)
    assert "<h1>LoRA kernels: counted work of a launch, no times</h1>" in page(content)
    assert all("no time" in item["title"] for item in data(content)["runs"][0]["points"])


def test_text_of_files_is_text_of_the_page() -> None:
    results = msgspec.json.decode(store.encode(store.read(FAULTS)), type=Results)
    results.points[0].status, results.points[0].reason = "error", "</script><script>alert('x')</script> & more"
    text = page(Content([], results=[("<b>.json", results)]))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "<b>.json" not in text


def test_files_of_two_machines_stand_side_by_side(tmp_path: Path) -> None:
    text, found = written(tmp_path / "r.html", PREPARE, DOCS / "results" / "h200-prepare.json")
    gpus = ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    assert [run["gpu"] for run in found["runs"]] == gpus
    assert "<h1>LoRA kernels on NVIDIA H100 80GB HBM3 and NVIDIA H200</h1>" in text
    cells = Seen(text).cells
    assert all(gpu in cells for gpu in gpus), "a column for each"


def test_each_gpu_of_a_run_has_its_own_anchors() -> None:
    results, content = contents(ROOT / "docs/results/h200-quick.json")
    (anchor,) = [item for item in results.anchors if item.name == "copy_bandwidth"]
    other = msgspec.structs.replace(anchor, gpu=1, values=[value / 2 for value in anchor.values])
    results.anchors = [msgspec.structs.replace(anchor, gpu=0), other]
    ((_, told),) = facts.runs_of(content)
    (first, second) = (float(told[f"copy_bandwidth of GPU {gpu}"].split()[0]) for gpu in (0, 1))
    assert second == pytest.approx(first / 2, rel=1e-3)


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_bytes(PREPARE.read_bytes())
    _, found = written(tmp_path / "r.html", tmp_path / "one" / "x.json", tmp_path / "other" / "x.json")
    assert len({run["name"] for run in found["runs"]}) == 2


def test_a_history_has_every_clock_of_its_store_with_each_commits_subject(tmp_path: Path) -> None:
    _, found = written(tmp_path / "r.html", PLANTED)
    assert [line["clock"] for line in found["lines"]] == ["graph", "work"]
    for line, history in zip(found["lines"], views(PLANTED, None, [], None), strict=True):
        assert {commit["subject"] for commit in line["commits"]} <= {commit.subject for commit in history.line}
        figures = [figure for point in line["points"] for figure in point["figures"].values()]
        assert len(figures) == sum(len(era.series) for era in history.eras)
        changes = [change for figure in figures for change in figure["changes"]]
        assert len(changes) == len(history.changes) > 0
        assert {change["size"] for change in changes}
    timed = found["lines"][0]["points"]
    assert all(rounds for point in timed for rounds in point["rounds"].values())
    assert all("COMMIT~1..COMMIT" in shlex.split(point["again"]) for point in timed)


def test_each_contender_has_its_colour_of_the_plots_and_no_two_look_alike() -> None:
    contents_of = [contents(path)[1].results[0] for path in (DOCS / "results" / "h200-full.json", PEERS, PREPARE)]
    shown = data(Content([], results=contents_of))["contenders"]
    drawn = {name: look for name, (_, _, look) in shown.items()}
    assert len(set(drawn.values())) == len(drawn) > 15
    known = {name for name in drawn if without_version(name) in LOOKS}
    colors = {name: style.look(name)["color"] for name in known}
    assert colors == {name: drawn[name].color for name in known}
    assert not set(colors.values()) & {look.color for name, look in drawn.items() if name not in known}


def test_of_looks_that_repeat_the_marker_changes_then_the_dash() -> None:
    names = [f"of-elsewhere-{number}" for number in range(100)]
    found = [*looks(["base", *names]).values()]
    assert len(set(found)) == len(found) and {look.dash for look in found} > {()}
    modes = mode_looks(["plugin-ab", "plugin-ba"])
    assert len({look.color for look in modes.values()}) == 1 and len({look.marker for look in modes.values()}) == 2


def test_every_marker_has_a_shape_on_the_page() -> None:
    script = (ROOT / "bench" / "show" / "page" / "templates" / "common.js").read_text(encoding="utf-8")
    assert set(re.findall(r'^  "(.)": "M', script, re.MULTILINE)) == {*MARKERS}


def test_a_verdict_has_the_rounds_of_both_sides_and_the_command_that_shows_it_again(tmp_path: Path) -> None:
    _, found = written(tmp_path / "r.html", PAIRS)
    (report,) = found["reports"]
    judged = [item for item in report["verdicts"] if item["status"] != "skipped"]
    assert judged and all(item["rounds"] and "bench gate" in item["again"] for item in judged)
    assert all(len(round_) == 5 for item in judged for round_ in item["rounds"])
