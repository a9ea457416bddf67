"use strict";
// Figures of engines: a panel a file that has the chosen figure, with a chart and a table, a line and a column a mode.
function startEngines() {
  const form = document.querySelector('form[data-of="engines"]');
  if (!form) return;
  const all = DATA.engines.flatMap((run) => run.points);
  const kinds = [...new Map(all.map((point) => [point.kind, point.title]))];
  const references = [...new Set(DATA.engines.map((run) => run.reference))].join(" or ");
  const names = { value: "value", to_reference: `over ${references}'s`, to_none: "over that without LoRA" };
  const of = (kind) => {
    const points = all.filter((point) => point.kind === kind);
    const modes = CONTENDERS.filter((name) => points.some((point) => point.contender === name));
    const has = (name) => points.some((point) => point[name] !== undefined);
    return { figures: Object.entries(names).filter(([name]) => has(name)), contenders: modes, chosen: modes };
  };
  const filter = new Filter(form, { kinds, of }, () => drawEngines(filter));
  form.elements.csv.addEventListener("click", () => download(engineRows(filter), "engines.csv"));
  drawEngines(filter);
}

function drawEngines(filter) {
  const figure = filter.figure.value;
  const panels = panelsOf(DATA.engines, filter);
  const host = document.querySelector("#engines .panels");
  host.replaceChildren(...panels.map((panel) => enginePanel(panel, figure)));
  host.querySelectorAll(".chart").forEach((chart) => chart.draw());
  const count = panels.reduce((sum, panel) => sum + panel.points.length, 0);
  filter.say(count ? `${count} figures` : "no figure has these words and modes");
}

// Each file in a unit of its own, so that none is drawn to another's axis.
function enginePanel(panel, figure) {
  const { run, points, lines } = panel, [first] = points;
  const about = `${run.name}, commit ${run.commit}${run.dirty ? " + uncommitted changes" : ""}, ${run.date}; ${run.setup}`;
  const unit = figure === "value" ? first.unit : `times ${figure === "to_none" ? "that without LoRA" : `${run.reference}'s`}`;
  const at = (line, place) => drawn(lines)[line].points[place];
  const chart = element("div", { class: "chart" });
  chart.draw = () => drawChart(chart, {
    labels: panel.labels, lines: drawn(lines), range: rangeOf([lines]), unit,
    tip: (line, place) => engineTip(run, at(line, place)),
    pick: (line, place) => openDetail(engineAddress(panel, at(line, place))),
  });
  const rows = panel.cases.map((key, row) => [
    panel.labels[row], ...lines.map((line) => (line.points[row] ? engineCell(panel, line.points[row], figure) : "")),
  ]);
  return element(
    "section", { class: "panel" },
    element("h3", {}, `${run.gpu}: ${first.title}`), element("p", { class: "soft" }, about),
    chart, table(["load", ...lines.map((line) => line.name)], rows, `${first.title}, ${unit}; in brackets how far processes lie apart`),
    element("p", { class: "soft" }, "Lines only lead the eye from load to load. Bars reach from the least process to the greatest."),
  );
}

const engineAddress = (panel, point) => `engine-${panel.place}-${panel.run.points.indexOf(point)}`;
// Of processes that are far apart their values stand for the figure, and no mean and spread.
const valueWords = (point) => point.far ?? `${number(point.value)} ${point.unit}`;
const apart = (point) => (point.spread === undefined || point.far ? "" : `${(100 * point.spread).toFixed(1)} %`);

function engineCell(panel, point, figure) {
  const value = point[figure] ?? null, spread = figure === "value" && value !== null && apart(point);
  const known = figure === "value" && point.far ? point.far : number(value) + (spread ? ` (${spread})` : "");
  const text = value === null ? DATA.marks[point.status] ?? "-" : known;
  return element("a", { href: `#${engineAddress(panel, point)}`, "data-value": value ?? "", title: point.reason }, text);
}

function engineTip(run, point) {
  return [
    nameOf(point.contender), point.label,
    point.value !== undefined && `${valueWords(point)}${apart(point) && `, processes ${apart(point)} apart`}`,
    point.to_reference !== undefined && `${point.to_reference.toFixed(3)} times ${run.reference}'s`,
    point.to_none !== undefined && `${point.to_none.toFixed(3)} times that without LoRA`,
  ];
}

function engineDetail(place, index) {
  const run = DATA.engines[place], point = run?.points[index];
  if (!point) return null;
  const times = (value) => (value === undefined ? null : value.toFixed(3));
  const rows = (point.repeats ?? []).map(([repeat, value]) => [String(repeat), exact(value)]);
  return [
    element("h3", {}, nameOf(point.contender)), element("p", {}, `${point.title}: ${point.label}`),
    listed([
      ["on", run.gpu], ["commit", `${run.commit}, ${run.date}, ${run.name}`], ["engine", run.setup],
      ["status", point.status], ["reason", point.reason],
      ["value", point.value !== undefined ? `${valueWords(point)}, ${point.far ? "its processes: far apart" : "geometric mean of its processes"}` : null],
      ["processes apart", apart(point)], [`over ${run.reference}'s`, times(point.to_reference)],
      ["over that without LoRA", times(point.to_none)], ["answers", point.answers], ["case", point.case],
    ]),
    ...(rows.length ? [element("h4", {}, "Processes"), table(["repeat", `median, ${point.unit}`], rows)] : []),
    command(`Measure it again, beside ${run.reference}, at commit ${run.commit}`, point.again),
  ];
}

function engineRows(filter) {
  return DATA.engines.flatMap((run) =>
    chosenPoints(run, filter).map((point) => ({
      file: run.name, gpu: run.gpu, commit: run.commit, case: point.case, mode: point.contender, figure: point.title,
      status: point.status, value: point.value, unit: point.unit, processes: (point.repeats ?? []).length, spread: point.spread,
      to_reference: point.to_reference, reference: run.reference, to_none: point.to_none, answers: point.answers, reason: point.reason,
    })),
  );
}
