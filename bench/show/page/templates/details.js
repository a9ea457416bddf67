"use strict";
// What lies below one figure: an address such as #point-0-12 opens it, so that it can be linked to.
const detail = document.getElementById("detail");
const OPENERS = { point: pointDetail, verdict: verdictDetail, commit: commitDetail, engine: engineDetail };

function openDetail(address) {
  location.hash = address;
}

function follow() {
  const [kind, ...places] = location.hash.slice(1).split("-");
  const made = OPENERS[kind] && places.length ? OPENERS[kind](...places.map(Number)) : null;
  if (!made) {
    if (detail.open) detail.close();
    return;
  }
  detail.querySelector(".body").replaceChildren(...made);
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
  detail.querySelectorAll(".chart").forEach((chart) => chart.draw?.());
}

// At once, and not when the element says that it is closed: by then the address may be another one's.
function closeDetail() {
  history.replaceState(null, "", location.pathname + location.search);
  detail.close();
}

detail.querySelector(".close").addEventListener("click", closeDetail);
detail.addEventListener("click", (event) => { if (event.target === detail) closeDetail(); });
detail.addEventListener("cancel", closeDetail);
window.addEventListener("hashchange", follow);

const listed = (facts) =>
  element("div", { class: "scroll" }, element("table", { class: "words" }, ...facts.filter(([, value]) => value !== undefined && value !== null && value !== "").map(
    ([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
  )));

function command(title, text) {
  const copy = element("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text);
    copy.textContent = "Copied";
  });
  return element("div", {}, element("h4", {}, title), element("pre", { class: "command" }, text), copy);
}

const links = (items) => (items.length ? element("span", {}, ...items.map(([item, place, index]) => verdictLink(item, place, index))) : null);

function pointDetail(place, index) {
  const run = DATA.runs[place], point = run?.points[index];
  if (!point) return null;
  const within = interval(point.low, point.high);
  const counts = Object.entries(point.counts ?? {}).map(([name, value]) => [name.replaceAll("_", " "), number(value)]);
  return [
    element("h3", {}, nameOf(point.contender)), element("p", {}, `${point.title}: ${point.label}`),
    listed([
      ["on", isCounted(point.clock) ? "no GPU: counted, not timed" : run.gpu], ["commit", `${run.commit}, ${run.date}, ${run.name}`],
      ["status", point.status], ["reason", point.reason],
      ["time", point.us !== undefined ? `${number(point.us)} us${within && `, 95 % interval ${within} us`}` : null],
      ["host time", point.host_us !== undefined ? `${number(point.host_us)} us` : null],
      ["bound", point.floor !== undefined ? `${number(point.floor)} us, ${point.floor_kind}; ${number(point.to_floor)} times it` : null],
      ["beside ours", point.to_ours !== undefined ? `${number(point.to_ours)} times our time` : null],
      ["verified", point.check], ["cache", point.cache], ["launches in a graph", point.nodes], ["case", point.case], ...counts,
      ["gate", links(verdictsOf(point, point.clock))],
    ]),
    ...roundsPart(point.rounds ?? [], point.contender),
    command(`Measure it again, at commit ${run.commit}`, point.again),
  ];
}

const exact = (value) => value.toPrecision(5); // rounds differ by little

// A chart and a table: the median of each round, between its fastest and its slowest block.
function roundsPart(rounds, contender) {
  if (!rounds.length) return [];
  const chart = element("div", { class: "chart" });
  const lines = [{ name: "median of a round's blocks, us", ...styleOfContender(contender), ys: rounds.map((round) => round[2]), lows: rounds.map((round) => round[3]), highs: rounds.map((round) => round[4]) }];
  const label = (round, place) => `process ${round[0]}, round ${place + 1}`;
  chart.draw = () => drawChart(chart, {
    labels: rounds.map(label), lines, unit: "us", range: rangeOf([lines]), pick: () => {},
    tip: (_, place) => [label(rounds[place], place), `${number(rounds[place][2])} us`, `blocks ${interval(rounds[place][3], rounds[place][4])}`],
  });
  const rows = rounds.map((round, place) => [label(round, place), String(round[1]), exact(round[2]), `${exact(round[3])} to ${exact(round[4])}`, round[5] ?? "-", round[6] ?? ""]);
  return [
    element("h4", {}, "Rounds"), rounds.length > 1 ? chart : null,
    rounds.length > 1 && rounds.some((round) => round[3] < round[4])
      ? element("p", { class: "soft" }, "Bars reach from the fastest block of a round to the slowest.") : null,
    table(["round", "layout", "median, us", "blocks, us", "SM MHz", "clock lowered by"], rows),
  ].filter(Boolean);
}

function verdictDetail(place, index) {
  const report = DATA.reports[place], item = report?.verdicts[index];
  if (!item) return null;
  const [before, after] = report.sides;
  const same = DATA.runs.flatMap((run, at) => run.points.map((point, number) => [point, at, number])
    .filter(([point]) => point.case === item.case && point.contender === item.contender && point.clock === item.clock));
  return [
    element("h3", {}, `${item.status}: ${nameOf(item.contender)}`), element("p", {}, `${item.op}, ${item.label}, ${item.clock_words}`),
    listed([
      ["verdict", item.reason], ["decided on", item.confirmed ? "fresh rounds or exact counts: certain" : "what was there: not confirmed"],
      [before, item.before ? `${number(item.before)} us` : null], [after, item.after ? `${number(item.after)} us` : null],
      ["change", item.ratio ? `${item.change}, 95 % interval ${item.interval}` : null],
      ["would see", item.detectable ? `a slowdown from ${item.sees} on` : null],
      ["counts", item.counts?.join("; ")], ["case", item.case], ["report", `${report.name}, ${report.gpu}`],
      ["points", same.length ? element("span", {}, ...same.map(([, at, number]) => element("a", { href: `#point-${at}-${number}` }, DATA.runs[at].name))) : null],
    ]),
    ...pairsPart(item, before, after),
    command("See it again", item.again),
  ];
}

// Both sides are the same contender: the one before has another marker and a dash.
function pairsPart({ rounds = [], contender }, before, after) {
  if (!rounds.length) return [];
  const chart = element("div", { class: "chart" });
  const label = (round, place) => `${round[0]} ${round[1]}.${place + 1}`;
  const look = styleOfContender(contender), old = { ...look, marker: look.marker === "o" ? "s" : "o", dash: DATA.dashes[1] };
  const lines = [[before, 3, old], [after, 4, look]].map(([name, at, own]) => ({ name, ...own, ys: rounds.map((round) => round[at]) }));
  chart.draw = () => drawChart(chart, {
    labels: rounds.map(label), lines, unit: "us", range: rangeOf([lines]), pick: () => {},
    tip: (line, place) => [label(rounds[place], place), `${lines[line].name}: ${number(lines[line].ys[place])} us`],
  });
  const rows = rounds.map((round, place) => [label(round, place), exact(round[3]), exact(round[4]), `${(100 * (round[4] / round[3] - 1)).toFixed(2)} %`]);
  return [element("h4", {}, "Rounds of both sides, us"), chart, table(["round", before, after, "change"], rows)];
}

function commitDetail(place, index, at) {
  const line = DATA.lines[place], point = line?.points[index], commit = line?.commits[at];
  if (!point || !commit) return null;
  const figures = Object.entries(point.figures).flatMap(([name, figure]) => {
    const value = figure.values.find((found) => found[0] === at);
    if (!value) return [];
    const within = interval(value[2], value[3]), change = figure.changes.find((found) => found.at === at);
    const text = value[1] == null ? `${value[4]}: ${value[5]}` : `${number(value[1])}${within && `, 95 % interval ${within}`}`;
    return [[name === "us" ? "time, us" : name.replaceAll("_", " "), text + (change ? `; ${change.worse ? "worse" : "better"}: ${change.size}` : "")]];
  });
  const neighbours = Object.values(point.figures).flatMap((figure) => figure.changes).find((change) => change.at === at);
  return [
    element("h3", {}, `${commit.short}: ${commit.subject}`), element("p", {}, `${nameOf(point.contender)}, ${point.op}, ${point.label}`),
    listed([
      ["commit", commit.sha], ["date", commit.date], ["measured on", isCounted(line.clock) ? "no GPU: counted, not timed" : line.gpu],
      ["changed between", neighbours ? `${neighbours.before} and ${neighbours.after ?? "the end of the line"}` : null],
      ["put down to", neighbours ? neighbours.suspects.join(", ") : null], ...figures, ["case", point.case],
      ["gate", links(verdictsOf(point, line.clock))],
    ]),
    ...roundsPart(point.rounds[at] ?? [], point.contender),
    command("Measure it again", point.again.replaceAll("COMMIT", commit.sha.length >= 40 ? commit.sha : commit.short)),
  ];
}

// All parts are there: the static tables sort, the charts are drawn, an address of a detail opens it.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.sortable").forEach(sortable);
  startPoints();
  startEngines();
  startVerdicts();
  startHistory();
  follow();
  document.documentElement.dataset.ready = "yes";
});
