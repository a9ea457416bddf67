"use strict";
// Points of results files: a panel a file that has the chosen kind, with a chart and a table of the same figures.
function startPoints() {
  const form = document.querySelector('form[data-of="points"]');
  if (!form) return;
  const all = DATA.runs.flatMap((run) => run.points);
  const titles = new Map(all.map((point) => [point.kind, point.title]));
  const placeOf = new Map(all.map((point) => [point.kind, 100 * DATA.clocks.indexOf(point.clock) + DATA.ops.indexOf(point.op)]));
  const kinds = [...titles].sort((a, b) => placeOf.get(a[0]) - placeOf.get(b[0]));
  const of = (kind) => {
    const points = all.filter((point) => point.kind === kind);
    const contenders = CONTENDERS.filter((name) => points.some((point) => point.contender === name));
    return { figures: figuresOf(points), contenders, chosen: contenders };
  };
  const filter = new Filter(form, { kinds, of }, () => drawPoints(filter));
  form.elements.csv.addEventListener("click", () => download(pointRows(filter), "points.csv"));
  drawPoints(filter);
}

// What points of one kind can show: times, or counts by their names.
function figuresOf(points) {
  if (!points.some((point) => isCounted(point.clock))) {
    const has = (name) => points.some((point) => point[name] !== undefined);
    return Object.entries(DATA.figures).filter(([name]) => has(name)).map(([name, [text]]) => [name, text]);
  }
  const names = [...new Set(points.flatMap((point) => Object.keys(point.counts ?? {})))];
  return names.map((name) => [name, `${name.replaceAll("_", " ")} (counted)`]);
}

const valueOf = (point, figure) => (point?.counts ?? point)?.[figure] ?? null;
const unitOf = (figure, clock) => (isCounted(clock) ? figure.replaceAll("_", " ") : DATA.figures[figure][2]);

function chosenPoints(run, filter) {
  return run.points.filter(
    (point) =>
      point.kind === filter.kind.value && filter.contenders.includes(point.contender) && filter.matches(point.label, point.case),
  );
}

// A panel for each file that has something chosen, with its lines of the chosen figure.
function panelsOf(runs, filter) {
  return runs
    .map((run, place) => ({ run, place, points: chosenPoints(run, filter) }))
    .filter((panel) => panel.points.length)
    .map((panel) => ({ ...panel, ...linesOf(panel.points, filter.figure.value) }));
}

function drawPoints(filter) {
  const figure = filter.figure.value;
  const panels = panelsOf(DATA.runs, filter);
  const range = rangeOf(panels.map((panel) => panel.lines));
  const host = document.querySelector("#points .panels");
  host.replaceChildren();
  for (const panel of panels) host.append(pointsPanel(panel, figure, range));
  host.querySelectorAll(".chart").forEach((chart, index) => chart.draw(panels[index]));
  const count = panels.reduce((sum, panel) => sum + panel.points.length, 0);
  filter.say(count ? `${count} points` : "no point has these words and contenders");
}

// The cases along x, and a line for each contender. An interval is of the time or the value, so it is drawn where that is.
function linesOf(points, figure) {
  const labels = new Map(points.map((point) => [point.case, point.label]));
  const cases = [...labels.keys()];
  const lines = CONTENDERS.map((contender) => {
    const own = new Map(points.filter((point) => point.contender === contender).map((point) => [point.case, point]));
    const ofCases = cases.map((key) => own.get(key));
    const bound = (side) => (figure === "us" || figure === "value" ? ofCases.map((point) => point?.[side] ?? null) : undefined);
    return {
      contender, name: nameOf(contender), ...styleOfContender(contender), points: ofCases,
      ys: ofCases.map((point) => valueOf(point, figure)), lows: bound("low"), highs: bound("high"),
    };
  });
  const shown = lines.filter((line) => line.points.some(Boolean));
  return { cases, labels: cases.map((key) => labels.get(key)), lines: shown };
}

function pointsPanel(panel, figure, range) {
  const { run, points, lines } = panel;
  const [first] = points;
  const about = `${run.name}, commit ${run.commit}${run.dirty ? " + uncommitted changes" : ""}, ${run.date}`;
  const usual = run.usual[first.kind];
  const chart = element("div", { class: "chart" });
  chart.draw = () => drawChart(chart, {
    labels: panel.labels, lines: lines.filter((line) => line.ys.some((value) => value !== null)), range,
    unit: unitOf(figure, first.clock),
    tip: (line, place) => pointTip(drawn(lines)[line].points[place], figure),
    pick: (line, place) => openDetail(addressOf(panel, drawn(lines)[line].points[place])),
  });
  return element(
    "section", { class: "panel" },
    element("h3", {}, `${isCounted(first.clock) ? "" : `${run.gpu}: `}${first.title}`),
    element("p", { class: "soft" }, about + (usual ? `; ${usual}` : "")),
    chart, pointsTable(panel, figure),
    element("p", { class: "soft" }, captionOf(first, figure, points)),
  );
}

const drawn = (lines) => lines.filter((line) => line.ys.some((value) => value !== null));
const addressOf = (panel, point) => `point-${panel.place}-${panel.run.points.indexOf(point)}`;

function captionOf(first, figure, points) {
  if (isCounted(first.clock)) return "Counts of one launch, exact and without a GPU. They are not times. Lines only lead the eye.";
  const parts = ["Lines only lead the eye from case to case."];
  if (figure === "us") parts.push("Bars are 95 % intervals of the mean over rounds.");
  if (points.some((point) => point.to_floor < 1)) {
    parts.push(`* is below its bound: ${DATA.below[first.clock === "eager" ? 1 : 0]}.`);
  }
  return parts.join(" ");
}

function pointTip(point, figure) {
  const value = valueOf(point, figure);
  if (isCounted(point.clock)) return [nameOf(point.contender), point.label, `${number(value)} ${unitOf(figure, point.clock)}`];
  const within = interval(point.low, point.high);
  return [
    nameOf(point.contender),
    point.label,
    point.us !== undefined && `${number(point.us)} us${within && `, 95 % interval ${within}`}`,
    point.to_ours !== undefined && `${number(point.to_ours)} times ours`,
    point.to_floor !== undefined && `${number(point.to_floor)} times its bound, ${number(point.floor)} us`,
    figure === "host_us" && `${number(value)} us of host time`,
  ];
}

function pointsTable(panel, figure) {
  const counted = isCounted(panel.points[0].clock);
  const heads = ["case", ...(counted ? [] : ["bound, us"]), ...panel.lines.map((line) => shortOf(line.contender))];
  const rows = panel.cases.map((key, row) => {
    const of = panel.lines.map((line) => line.points[row]);
    const floor = of.find((point) => point?.floor !== undefined)?.floor;
    const bound = counted ? [] : [{ text: number(floor), value: floor ?? "" }];
    return [panel.labels[row], ...bound, ...of.map((point) => (point ? pointCell(panel, point, figure) : ""))];
  });
  const [name, unit] = counted ? [figure.replaceAll("_", " "), "counted"] : DATA.figures[figure];
  return table(heads, rows, `${name}, ${unit}`);
}

function pointCell(panel, point, figure) {
  const value = valueOf(point, figure);
  const below = point.to_floor < 1 && !isCounted(point.clock) ? "*" : "";
  const text = value === null ? DATA.marks[point.status] ?? "-" : number(value) + below;
  return element("a", { href: `#${addressOf(panel, point)}`, "data-value": value ?? "", title: point.reason }, text);
}

function pointRows(filter) {
  return DATA.runs.flatMap((run) =>
    chosenPoints(run, filter).map((point) => ({
      file: run.name, gpu: run.gpu, commit: run.commit, case: point.case, contender: point.contender, clock: point.clock,
      status: point.status, median_us: point.us, low_us: point.low, high_us: point.high, floor_us: point.floor,
      to_floor: point.to_floor, to_ours: point.to_ours, host_us: point.host_us, reason: point.reason, ...point.counts,
    })),
  );
}
