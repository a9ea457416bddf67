"use strict";
// Reports of the gate: what each came to, in short and point by point.
function startVerdicts() {
  const short = document.getElementById("verdict-summary");
  DATA.reports.forEach((report, place) => {
    short.append(element("h3", {}, `Gate ${report.name}: ${report.meaning}`), element("p", {}, report.summary));
    for (const reason of report.refusals) short.append(element("p", { class: "bad" }, `Not judged: ${reason}`));
    const blocking = report.verdicts.map((item, index) => [item, index]).filter(([item]) => item.blocks);
    short.append(element("ul", {}, ...blocking.slice(0, 20).map(([item, index]) => element("li", {}, verdictLink(item, place, index)))));
    if (blocking.length > 20) short.append(element("p", {}, `${blocking.length - 20} more stand below.`));
    document.querySelector("#verdicts .reports").append(reportPart(report, place));
  });
}

const verdictLink = (item, place, index) =>
  element(
    "a", { href: `#verdict-${place}-${index}` },
    `${item.status}: ${nameOf(item.contender)}, ${item.label}, ${item.clock_words}${item.ratio ? `, ${item.change}` : ""}`,
  );

function reportPart(report, place) {
  const host = element("div"), words = element("input", { type: "search", placeholder: "case, contender or verdict" });
  const csv = element("button", { type: "button", onclick: () => download(chosenVerdicts().map(([item]) => verdictRow(item)), "verdicts.csv") }, "Download CSV");
  const chosenVerdicts = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    const text = (item) => [item.label, item.op, nameOf(item.contender), item.contender, item.status, item.case].join(" ").toLowerCase();
    return report.verdicts.map((item, index) => [item, index]).filter(([item]) => wanted.every((word) => text(item).includes(word)));
  };
  const draw = () => {
    const rows = chosenVerdicts().map(([item, index]) => [
      element("a", { href: `#verdict-${place}-${index}` }, `${item.label}, ${item.op}`),
      shortOf(item.contender), item.clock, item.status,
      { text: item.change, value: item.ratio ?? "" }, { text: item.interval, value: item.low ?? "" },
      { text: item.sees, value: item.detectable ?? "" }, item.reason,
    ]);
    const heads = ["point", "contender", "clock", "verdict", "change", "95 %", "sees", "reason"];
    const made = table(heads, rows, `${report.sides[0]} against ${report.sides[1]}${report.usual && `; ${report.usual}`}`);
    made.firstChild.classList.add("reasons");
    host.replaceChildren(made);
  };
  words.addEventListener("input", draw);
  draw();
  const title = `${report.name}${report.gpu === "no GPU" || report.counted ? "" : ` on ${report.gpu}`}${report.counted ? ": counted work, no times" : ""}`;
  return element(
    "div", {},
    element("h3", {}, title), element("p", { class: "soft" }, report.summary),
    ...report.notes.map((note) => element("p", { class: "soft" }, `Note: ${note}`)),
    element("div", { class: "filter" }, element("label", {}, "Points ", words), csv), host,
  );
}

const verdictRow = (item) => ({
  case: item.case, contender: item.contender, clock: item.clock, verdict: item.status, before_us: item.before,
  after_us: item.after, ratio: item.ratio, low: item.low, sees: item.detectable, reason: item.reason,
});

// Addresses of the verdicts on the same point, in every report.
function verdictsOf(point, clock) {
  return DATA.reports.flatMap((report, place) =>
    report.verdicts
      .map((item, index) => [item, place, index])
      .filter(([item]) => item.case === point.case && item.contender === point.contender && item.clock === clock),
  );
}
