"""The page: whole, without the network, true to its files; and in a real browser: no error, links and sorting work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from bench.cli import main as cli
from bench.judge.estimate import point_estimate
from bench.model import store
from bench.model.paths import ROOT
from bench.model.records import Results
from bench.show.page import Content, page
from bench.show.tables import case_label, microseconds, short_name

PREPARE, FAULTS = ROOT / "docs" / "results" / "h100-prepare.json", ROOT / "docs" / "results" / "h200-faults.json"
PAIRS = ROOT / "docs" / "experiments" / "h100-self-check-1.json"
HISTORY = ROOT / "docs" / "experiments" / "planted-slow"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


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


def test_a_peer_at_its_own_default_comes_before_its_other_settings() -> None:
    cells = Seen(page(Content(files=[], results=[("prepare", store.read(PREPARE))]))).cells
    compared = [cell for cell in cells if cell.endswith("; prepare")]
    assert compared[:3] == [
        "SGLang csgmv, chunk 16 (default); prepare",
        "SGLang csgmv, chunk 128; prepare",
        "SGLang triton fallback; prepare",
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep, a self-check and a history of one H100, as the command line writes it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *map(str, (PREPARE, PAIRS, HISTORY)), "-k", "graph", "-o", str(path)])
    assert not end.value.code
    return path


def results_page(path: Path) -> tuple[Results, str]:
    results = store.read(path)
    return results, page(Content([(path.name, path.read_bytes())], results=[(path.name, results)]))


def test_it_needs_nothing_but_itself(written: Path) -> None:
    seen = Seen(written.read_text(encoding="utf-8"))
    assert seen.sources and all(source.startswith("data:image/") for source in seen.sources)
    assert seen.links and all(link.startswith("#") or link == "data:," for link in seen.links)
    assert len(set(seen.ids)) == len(seen.ids)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert {"summary", "figures", "tables", "environment", "how", "figure-history", "figure-noise"} <= set(seen.ids)


def test_every_time_and_ratio_of_the_file_is_in_a_table() -> None:
    results, text = results_page(PREPARE)
    cells = Seen(text).cells
    cases = {point.case for point in results.points}
    assert cases
    for point in results.points:
        taken = point_estimate(point)
        assert taken is not None and microseconds(taken.value) in cells
        label = case_label(point.case, cases)
        assert any(cell.startswith(point.case.label) for cell in cells), label
        assert short_name(point.contender) in cells


def test_what_has_no_figure_is_there_with_its_reason() -> None:
    results, text = results_page(FAULTS)
    failed = [point for point in results.points if point.status != "ok"]
    assert failed
    for point in failed:
        assert point.reason and html.escape(point.reason) in text
        assert point.status in Seen(text).cells


def test_text_of_files_is_text_of_the_page() -> None:
    results = msgspec.json.decode(store.encode(store.read(FAULTS)), type=Results)
    results.points[0].status, results.points[0].reason = "error", "<script>alert('x')</script> & more"
    text = page(Content([], results=[("<b>.json", results)]))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "<b>.json" not in text


def test_files_of_two_machines_make_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for files in ((PREPARE, FAULTS), (FAULTS, HISTORY)):
        with pytest.raises(SystemExit) as end:
            cli.main(["report", *map(str, files), "-k", "graph", "-o", str(tmp_path / "r.html")])
        assert end.value.code == 2
        assert "expected one GPU model" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


# --- in a browser --------------------------------------------------------------------------------------------------

PROBE = """<script>
const table = document.querySelector("#tables table.sortable"), header = table.tHead.rows[0].cells[2];
const column = () => Array.from(table.tBodies[0].rows, (row) => row.cells[2].dataset.value);
const seen = { reading: column(), ready: document.documentElement.dataset.ready };
header.querySelector("button").click(); seen.up = column(); seen.aria = header.ariaSort;
header.querySelector("button").click(); seen.down = column();
header.querySelector("button").click(); seen.again = column();
seen.wide = document.documentElement.scrollWidth > window.innerWidth;
seen.images = Array.from(document.images, (image) => image.naturalWidth);
seen.targets = Array.from(document.querySelectorAll('a[href^="#"]'), (a) => document.querySelector(a.hash) !== null);
document.title = JSON.stringify(seen);
</script>"""


def browse(path: Path, folder: Path, width: int) -> tuple[str, str]:
    """(the document after its scripts ran, what the browser logged)."""
    assert CHROMIUM is not None
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    command += [f"--user-data-dir={folder}", f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@needs_browser
@pytest.mark.parametrize("width", [412, 1280], ids=["phone", "desk"])
def test_in_a_browser_it_renders_sorts_and_stays_silent(written: Path, tmp_path: Path, width: int) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(written.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    document, log = browse(probed, tmp_path / "profile", width)
    assert not [line for line in log.splitlines() if "CONSOLE" in line], log
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
    assert title is not None
    seen = json.loads(html.unescape(title[1]))
    assert seen["ready"] == "yes"
    values = [float(value) for value in seen["reading"] if value]
    assert len(values) > 2
    assert [float(value) for value in seen["up"] if value] == sorted(values)
    assert [float(value) for value in seen["down"] if value] == sorted(values, reverse=True)
    assert seen["again"] == seen["reading"] and seen["aria"] == "ascending"
    assert not seen["wide"], "only tables and figures scroll sideways, never the page"
    assert len(seen["images"]) >= 3 and all(natural > 100 for natural in seen["images"])
    assert seen["targets"] and all(seen["targets"])


@needs_browser
def test_the_browser_would_say_if_a_script_failed(written: Path, tmp_path: Path) -> None:
    """The other test's silence means something."""
    broken = tmp_path / "broken.html"
    text = written.read_text(encoding="utf-8").replace("</body>", "<script>nothing.here();</script></body>")
    broken.write_text(text, encoding="utf-8")
    _, log = browse(broken, tmp_path / "profile", 800)
    assert any("CONSOLE" in line and "nothing is not defined" in line for line in log.splitlines())
