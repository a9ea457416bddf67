"use strict";
// Histories: a panel for each stretch of equal conditions, a line for each case of each chosen contender.
const MOST_LINES = 24;
const RELATIVE = "relative"; // shows a small step of every line, where times of several sizes hide it

function startHistory() {
  const form = document.querySelector('form[data-of="history"]');
  if (!form) return;
  const kinds = [...new Map(DATA.lines.map((line) => [line.title, line.title]))];
  const of = (kind) => {
    const points = linesOfKind(kind).flatMap((line) => line.points);
    const contenders = CONTENDERS.filter((name) => points.some((point) => point.contender === name));
    return { figures: historyFigures(points), contenders, chosen: points.length > MOST_LINES ? contenders.slice(0, 1) : contenders };
  };
  const filter = new Filter(form, { kinds, of }, () => drawHistory(filter));
  form.elements.csv.addEventListener("click", () => download(historyRows(filter), "history.csv"));
  drawHistory(filter);
}

const linesOfKind = (kind) => DATA.lines.filter((line) => line.title === kind);

// Those that changed most come first.
function historyFigures(points) {
  const changes = {};
  for (const point of points) {
    for (const [name, figure] of Object.entries(point.figures)) changes[name] = (changes[name] ?? 0) + figure.changes.length;
  }
  const text = (name) => (name === "us" ? DATA.figures.us[0] : `${name.replaceAll("_", " ")} (counted)`);
  const said = (count) => (count ? `, ${count} change${count > 1 ? "s" : ""}` : "");
  const names = Object.entries(changes).sort((a, b) => b[1] - a[1]).map(([name, count]) => [name, text(name) + said(count)]);
  return changes.us === undefined ? names : [[RELATIVE, "time of one call, beside the first commit" + said(changes.us)], ...names];
}

const figureOf = (filter) => (filter.figure.value === RELATIVE ? "us" : filter.figure.value);

function chosenLines(line, filter) {
  return line.points
    .map((point, index) => ({ point, index, figure: point.figures[figureOf(filter)] }))
    .filter(({ point, figure }) => figure && filter.contenders.includes(point.contender) && filter.matches(point.label, point.op, point.case));
}

function drawHistory(filter) {
  const panels = linesOfKind(filter.kind.value)
    .map((line) => ({ line, place: DATA.lines.indexOf(line), chosen: chosenLines(line, filter) }))
    .filter((panel) => panel.chosen.length);
  let left = 0;
  for (const panel of panels) {
    const changing = [...panel.chosen].sort((a, b) => b.figure.changes.length - a.figure.changes.length);
    left += Math.max(0, changing.length - MOST_LINES);
    const shown = changing.slice(0, MOST_LINES), looks = toldApart(shown.map(({ point }) => styleOfContender(point.contender)));
    panel.lines = shown.map((chosen, index) => historyLine(panel.line, chosen, looks[index], filter.figure.value === RELATIVE));
  }
  const range = rangeOf(panels.map((panel) => panel.lines));
  const host = document.querySelector("#history .panels");
  host.replaceChildren(...panels.map((panel) => historyPanel(panel, filter.figure.value, range)));
  host.querySelectorAll(".chart").forEach((chart) => chart.draw());
  document.querySelector("#history .changes").replaceChildren(...panels.map(changesOf));
  const count = panels.reduce((sum, panel) => sum + panel.lines.length, 0);
  filter.say(left ? `${count} lines, those that change first; ${left} more fit the choice: narrow it` : `${count} lines`);
}

function historyLine(line, { point, index, figure }, look, relative) {
  const first = figure.values.find((value) => value[1] != null)?.[1];
  const scaled = (value) => (relative && value != null ? 100 * (value / first - 1) : value ?? null);
  const column = (at) => {
    const found = line.commits.map(() => null);
    for (const value of figure.values) found[value[0]] = scaled(value[at]);
    return found;
  };
  return {
    name: `${point.label}, ${shortOf(point.contender)}`, ...look, point, index, figure,
    ys: column(1), lows: column(2), highs: column(3), rings: figure.changes.map((change) => change.at),
  };
}

function historyPanel({ line, place, lines }, figure, range) {
  const chart = element("div", { class: "chart" });
  const unit = figure === RELATIVE ? "% beside the first commit" : figure.replaceAll("_", " ");
  chart.draw = () => drawChart(chart, {
    labels: line.commits.map((commit) => commit.short), lines, range, unit,
    tip: (index, at) => historyTip(line, lines[index], at, figure === RELATIVE ? "us" : unit),
    pick: (index, at) => openDetail(`commit-${place}-${lines[index].index}-${at}`),
  });
  const missing = line.missing ? `; ${line.missing} commits of the line were not measured` : "";
  return element(
    "section", { class: "panel" }, element("h3", {}, line.title),
    element("p", { class: "soft" }, `${line.era}${missing}`), chart,
  );
}

function historyTip(line, { figure, name }, at, unit) {
  const commit = line.commits[at], [, value, low, high] = figure.values.find((found) => found[0] === at);
  const within = interval(low, high);
  const change = figure.changes.find((found) => found.at === at);
  return [
    `${commit.short} ${commit.date}`, commit.subject, name,
    `${number(value)} ${unit}${within && `, 95 % interval ${within}`}`,
    change && `${change.worse ? "worse" : "better"}: ${change.size}`,
  ];
}

// Every change of the chosen lines and figure, with its verdict: the interval, or both counts.
function changesOf({ line, place, lines }) {
  const rows = lines.flatMap(({ point, index, figure }) =>
    figure.changes.map((change) => {
      const commit = line.commits[change.at];
      const gate = verdictsOf(point, line.clock).map(([item, report, verdict]) => verdictLink(item, report, verdict));
      return [
        element("a", { href: `#commit-${place}-${index}-${change.at}` }, change.suspects.length > 1 ? `one of ${change.suspects.join(", ")}` : commit.short),
        change.worse ? "worse" : "better", change.size, `${point.label}, ${shortOf(point.contender)}`,
        commit.subject, `${change.before} to ${change.after ?? "the end"}`, ...(DATA.reports.length ? [element("span", {}, ...gate)] : []),
      ];
    }),
  );
  if (!rows.length) return element("p", {}, "The chosen lines change nowhere.");
  const heads = ["commit", "level", "change", "point", "subject", "between", ...(DATA.reports.length ? ["gate"] : [])];
  const made = table(heads, rows, `Changes of level: ${line.title}`);
  made.firstChild.classList.add("reasons");
  return made;
}

function historyRows(filter) {
  return linesOfKind(filter.kind.value).flatMap((line) =>
    chosenLines(line, filter).flatMap(({ point, figure }) =>
      figure.values.map(([at, value, low, high, status, reason]) => ({
        history: line.name, gpu: line.gpu, clock: line.clock, commit: line.commits[at].sha, date: line.commits[at].date,
        subject: line.commits[at].subject, case: point.case, contender: point.contender, figure: figureOf(filter), value,
        low, high, status: status ?? "ok", reason,
      })),
    ),
  );
}
