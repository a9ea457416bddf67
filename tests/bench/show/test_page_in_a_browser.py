"""The page in Chromium, on a desk and on a phone: no error, filters, what lies below a figure, links, sorting."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from bench.cli import main as cli
from bench.model.paths import ROOT

DOCS = ROOT / "docs"
FILES = [
    *(
        DOCS / "results" / name
        for name in ("h100-eager.json", "h200-eager.json", "h200-faults.json", "h200-peers.json")
    ),
    ROOT / "bench" / "baselines" / "work-triton-3.6.json",
    DOCS / "experiments" / "h100-self-check-1.json",
    DOCS / "experiments" / "planted-slow",
    DOCS / "results" / "h200-engine.json",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

# Drives the page as a reader would; what it saw is posted to the page that frames it.
PROBE = r"""
const tell = async () => {
  const settle = () => new Promise((done) => setTimeout(done, 60));
  const all = (query) => Array.from(document.querySelectorAll(query));
  const seen = { ready: document.documentElement.dataset.ready };
  const wide = () => document.documentElement.scrollWidth > window.innerWidth;
  const form = document.querySelector('form[data-of="points"]'), { kind, figure, words } = form.elements;
  const change = async (field, value, event) => {
    field.value = value; field.dispatchEvent(new Event(event)); await settle();
  };
  const rows = () => all("#points table.sortable tbody tr").length;
  const titles = () => all("#points .panel h3").map((title) => title.textContent);
  const sizes = () => all("#points .chart canvas").map((canvas) => [canvas.width, canvas.height]);

  const drawnAs = (query) => all(`${query} svg.swatch`).map((made) => {
    const [line, mark] = Array.from(made.children);
    const color = line.getAttribute("stroke").toLowerCase();
    const shape = `${mark.getAttribute("fill").toLowerCase()} ${mark.getAttribute("d")}`;
    return [`${color} ${line.getAttribute("stroke-dasharray")}`, shape];
  });
  const canvas = CanvasRenderingContext2D.prototype;
  const { fill, stroke } = canvas, { Path2D } = window;
  const lined = new Set(), filled = new Set();
  window.Path2D = class extends Path2D { constructor(...of) { super(...of); this.text = of[0]; } };
  canvas.fill = function (path) { filled.add(`${this.fillStyle} ${path?.text}`); return fill.apply(this, arguments); };
  canvas.stroke = function (...of) {
    if (of.length) lined.add(`${this.strokeStyle} ${this.getLineDash().join(" ")}`); // an interval has no path
    return stroke.apply(this, of);
  };
  await change(kind, kind.value, "change");
  Object.assign(canvas, { fill, stroke }); window.Path2D = Path2D;
  seen.chips = drawnAs('form[data-of="points"]');
  seen.legend = drawnAs("#points .panel:first-child .u-legend");
  seen.drawnLines = [...lined]; seen.drawnMarks = [...filled];
  seen.historyChips = drawnAs('form[data-of="history"]');
  seen.historyLegend = drawnAs("#history .u-legend");

  seen.kinds = Array.from(kind.options, (option) => option.text);
  seen.drawn = {};
  for (const option of Array.from(kind.options)) {
    await change(kind, option.value, "change");
    const caption = all("#points .panel p.soft").at(-1).textContent;
    seen.drawn[option.text] = { titles: titles(), rows: rows(), sizes: sizes(), figures: figure.length, caption };
  }
  await change(kind, "decode|eager", "change");
  seen.all = rows();
  await change(words, "r64", "input");
  seen.r64 = all("#points table.sortable tbody td:first-child").map((cell) => cell.textContent);
  const boxes = all('form[data-of="points"] .chip input');
  boxes.slice(1).forEach((box) => box.click());
  await settle();
  seen.headsOfOne = all("#points table.sortable thead th").map((head) => head.textContent);
  await change(words, "no such words", "input");
  seen.none = [rows(), form.querySelector("output").textContent];
  await change(words, "", "input");

  const table = document.querySelector("#points table.sortable"), header = table.tHead.rows[0].cells[2];
  const column = () => Array.from(table.tBodies[0].rows, (row) => Number(row.cells[2].dataset.value));
  seen.reading = column(); header.querySelector("button").click();
  seen.up = column(); header.querySelector("button").click(); seen.down = column();
  const csv = [];
  URL.createObjectURL = (blob) => { csv.push(blob.text()); return "data:,"; };
  form.elements.csv.click();
  seen.csv = await csv[0];

  const over = document.querySelector("#points .u-over"), box = over.getBoundingClientRect();
  const move = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
  const act = (...kinds) => kinds.forEach((kind) => over.dispatchEvent(new MouseEvent(kind, move)));
  act("mouseenter", "mousemove"); await settle();
  seen.tip = document.querySelector("#points .tip").innerText;
  const detail = document.getElementById("detail"), text = () => detail.querySelector(".body").innerText;
  const until = async (open) => {
    for (let turn = 0; turn < 50 && detail.open !== open; turn += 1) await settle();
    await settle();
  };
  const close = async () => { detail.querySelector(".close").click(); await until(false); };
  act("mousedown", "mouseup", "click"); await until(true);
  seen.point = [detail.open, location.hash, text(), detail.querySelectorAll("canvas").length, wide()];
  await close();
  seen.closed = [detail.open, location.hash];

  location.hash = "verdict-0-0"; await until(true);
  seen.verdict = [text(), detail.querySelectorAll("canvas").length];
  await close();
  const engines = document.querySelector('form[data-of="engines"]');
  seen.engineKinds = Array.from(engines.elements.kind.options, (option) => option.text);
  seen.engineFigures = Array.from(engines.elements.figure.options, (option) => option.text);
  seen.engineRows = all("#engines .panels table.sortable tbody tr").map((row) => row.textContent);
  seen.engineSizes = all("#engines canvas").map((canvas) => [canvas.width, canvas.height]);
  engines.elements.csv.click();
  seen.engineCsv = await csv[1];
  await change(engines.elements.figure, "to_none", "change");
  seen.overNone = document.querySelector("#engines .panels table.sortable tbody tr").textContent;
  document.querySelector("#engines .panels td a").click(); await until(true);
  seen.engine = [location.hash, text(), wide()];
  await close();
  const widths = (bar) => Array.from(bar.querySelectorAll("i"), (part) => part.offsetWidth);
  seen.bars = all(".stack").map((bar) => [bar.querySelector("div").clientWidth, ...widths(bar)]);
  const history = document.querySelector('form[data-of="history"]');
  seen.historyKinds = Array.from(history.elements.kind.options, (option) => option.text);
  seen.lines = all("#history .u-legend .u-series").length;
  const changed = document.querySelector("#history .changes a");
  changed.click(); await until(true);
  seen.commit = text(); await close();
  seen.links = all('a[href^="#"]').map((link) => link.getAttribute("href")).filter((address) => {
    if (document.querySelector(address)) return false;
    const [kind, ...places] = address.slice(1).split("-");
    return !OPENERS[kind]?.(...places.map(Number));
  });
  seen.wide = wide(); seen.width = window.innerWidth;
  parent.postMessage(JSON.stringify(seen), "*");
};
document.addEventListener("DOMContentLoaded", () => setTimeout(tell, 50));
"""
BROKEN = "<script>nothing.here();</script>"
# A window is 500 px wide at least, a frame is not; what lies outside the window is not drawn.
FRAMES = """<title></title><body style="margin:0">
<script>
const seen = [];
addEventListener("message", (event) => { seen.push(event.data); document.title = `[${seen}]`; });
</script>
<iframe src="page.html" style="border:0;width:390px;height:800px"></iframe>
<iframe src="page.html" style="border:0;width:1280px;height:800px"></iframe>
<iframe src="broken.html"></iframe></body>"""


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """What the probe saw by width, and what the browser logged: of the page as the command line writes it."""
    folder = tmp_path_factory.mktemp("page")
    page = folder / "page.html"
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *map(str, FILES), "-o", str(page)])
    assert not end.value.code
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{PROBE}</script></body>"))
    (folder / "broken.html").write_text(BROKEN)
    (folder / "frames.html").write_text(FRAMES)
    assert CHROMIUM is not None
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1900", "--enable-logging=stderr"]
    command += ["--dump-dom", "--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [*command, (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    seen = json.loads(html.unescape(title[1]) or "[]")
    return {item["width"]: item for item in seen}, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_only_error_is_that_of_the_broken_page(browsed: tuple[dict[int, dict[str, Any]], list[str]]) -> None:
    (line,) = browsed[1]
    assert "nothing is not defined" in line, "the browser says when a script fails"


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_a_reader_finds_what_the_files_hold(browsed: tuple[dict[int, dict[str, Any]], list[str]], width: int) -> None:
    assert width in browsed[0], browsed[1]
    seen = browsed[0][width]
    assert seen["ready"] == "yes"
    assert not seen["wide"], "only tables scroll sideways, never the page"
    assert seen["links"] == [], "addresses of nothing"
    every_kind_is_drawn(seen)
    lines_look_alike_wherever_they_are_named(seen)
    filters_choose(seen)
    what_lies_below_is_shown(seen)
    engines_are_drawn(seen)


def lines_look_alike_wherever_they_are_named(seen: dict[str, Any]) -> None:
    """As the lines and marks of a chart, its legend and the filter are drawn: the same, and no two alike."""
    legend, chips, history = ([tuple(look) for look in seen[name]] for name in ("legend", "chips", "historyLegend"))
    for looks in (legend, chips, history):
        assert len(set(looks)) == len(looks) > 3
    assert set(legend) <= set(chips)
    assert {line for line, _ in legend} <= set(seen["drawnLines"])
    assert {mark for _, mark in legend} <= set(seen["drawnMarks"])
    assert history[0] in [tuple(look) for look in seen["historyChips"]]


def every_kind_is_drawn(seen: dict[str, Any]) -> None:
    ops = {kind.split(",")[0] for kind in seen["kinds"]}
    assert {"embedding lookup", "embedding layer", "lm_head", "LoRA of a linear layer", "expand"} <= ops
    assert set(seen["drawn"]) == set(seen["kinds"])
    assert seen["kinds"][0] == "embedding lookup, decode: CUDA graph" and "counted" in seen["kinds"][-1]
    for kind, drawn in seen["drawn"].items():
        assert drawn["rows"] and drawn["figures"], kind
        assert len(drawn["sizes"]) == len(drawn["titles"]) and all(min(size) > 200 for size in drawn["sizes"]), kind
        assert all(title.endswith(kind) for title in drawn["titles"])
        assert ("not times" in drawn["caption"]) == ("counted" in kind)
    eager = seen["drawn"]["embedding lookup, decode: called from Python"]["titles"]
    assert [title.split(":")[0] for title in eager] == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]


def engines_are_drawn(seen: dict[str, Any]) -> None:
    assert seen["engineKinds"][0] == "decode: step" and "prefill: prefill rate" in seen["engineKinds"]
    assert seen["engineFigures"] == ["value", "over csgmv's", "over that without LoRA"]
    assert len(seen["engineRows"]) == 5 and all(row.count(" %)") == 4 for row in seen["engineRows"])
    assert [min(size) > 200 for size in seen["engineSizes"]] == [True]
    assert seen["engineCsv"].startswith(
        "file,gpu,commit,case,mode,figure,status,value,unit,processes,spread,to_reference"
    )
    assert len(seen["engineCsv"].splitlines()) == 1 + 20 and seen["overNone"].startswith("111.622.43")
    address, text, wide = seen["engine"]
    assert address == "#engine-0-0" and "Processes" in text and "-p 8b -m csgmv -m none -l decode" in text and not wide
    assert len(seen["bars"]) == 10
    for width, *parts in seen["bars"]:
        assert width > 100 and 0 < sum(parts) <= width + len(parts), "rounded to whole pixels"


def filters_choose(seen: dict[str, Any]) -> None:
    assert seen["all"] > len(seen["r64"]) > 0 and all("r64" in label for label in seen["r64"])
    assert seen["headsOfOne"] == ["case", "bound, us", "ours-vocab"] * 2
    assert seen["none"] == [0, "no point has these words and contenders"]
    assert len(seen["reading"]) > 2
    assert seen["up"] == sorted(seen["reading"]) and seen["down"] == sorted(seen["reading"], reverse=True)
    head, *rows = seen["csv"].splitlines()
    assert head.startswith("file,gpu,commit,case,contender,clock,status,median_us,low_us,high_us,floor_us")
    assert len(rows) == seen["all"] and all("csmv" not in row and "csgmv_embed-vocab_major" in row for row in rows)


def what_lies_below_is_shown(seen: dict[str, Any]) -> None:
    assert "ours, vocab-major table" in seen["tip"] and "95 % interval" in seen["tip"]
    is_open, address, text, charts, wide = seen["point"]
    assert (is_open, charts, wide) == (True, 1, False) and address.startswith("#point-0-")
    assert (
        "Rounds" in text and "python -m bench sweep -p quick" in text and "-k eager -c csgmv_embed-vocab_major" in text
    )
    assert seen["closed"] == [False, ""]
    text, charts = seen["verdict"]
    assert charts == 1 and "Rounds of both sides" in text and "python -m bench gate --self-check" in text
    assert [kind.rpartition(": ")[2] for kind in seen["historyKinds"]] == [
        "CUDA graph",
        "counted work of one launch, no time",
    ]
    assert seen["lines"] == 8
    assert "tuning: a clearer docstring" in seen["commit"] and "python -m bench history run --commits" in seen["commit"]
    assert "changed between" in seen["commit"] and "worse: +" in seen["commit"]
