"use strict";
// What the parts of the page share: the data, elements, numbers, sorting, CSV.
const DATA = JSON.parse(document.getElementById("data").textContent);
const CONTENDERS = Object.keys(DATA.contenders).sort((a, b) => (b === DATA.ours) - (a === DATA.ours));
const nameOf = (contender) => DATA.contenders[contender][0];
const shortOf = (contender) => DATA.contenders[contender][1];
const isCounted = (clock) => clock === "work";

const inkOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A contender's colour, marker and dash, in every chart. What is black in print has the colour of the text.
function styleOfContender(contender) {
  const look = DATA.contenders[contender][2];
  return look.color === DATA.ink ? { ...look, color: inkOf("--ink") } : look;
}

// Looks of several lines: of those that are alike all but the first get another marker, then another dash.
function toldApart(looks) {
  const key = ({ color, marker, dash }) => `${color} ${marker} ${dash}`, taken = new Set();
  return looks.map((own) => {
    const others = DATA.dashes.flatMap((dash) => DATA.markers.map((marker) => ({ ...own, marker, dash })));
    const found = [own, ...others].find((look) => !taken.has(key(look))) ?? own;
    taken.add(key(found));
    return found;
  });
}

// Markers by matplotlib's names, around 0 and 1 in size, as paths of SVG that a canvas fills too.
const SHAPES = {
  "o": "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z",
  ".": "M-.5 0A.5 .5 0 1 0 .5 0A.5 .5 0 1 0 -.5 0Z",
  "s": "M-.9 -.9H.9V.9H-.9Z",
  "^": "M-1.1 .9H1.1L0 -1.1Z",
  "v": "M-1.1 -.9H1.1L0 1.1Z",
  "D": "M0 -1.2L1.2 0L0 1.2L-1.2 0Z",
  "d": "M0 -1.3L.7 0L0 1.3L-.7 0Z",
  "P": "M-.4 -1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
  "X": "M-1.1 -.6L-.6 -1.1L0 -.5L.6 -1.1L1.1 -.6L.5 0L1.1 .6L.6 1.1L0 .5L-.6 1.1L-1.1 .6L-.5 0Z",
  "*": "M0 -1.4L.34 -.46L1.33 -.43L.54 .18L.82 1.13L0 .57L-.82 1.13L-.54 .18L-1.33 -.43L-.34 -.46Z",
  "_": "M-1.2 -.35H1.2V.35H-1.2Z",
};

// A short piece of a line with its marker, for legends and filters.
function swatch({ color, marker, dash }) {
  const part = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const made = part("svg", { class: "swatch", width: 34, height: 14, "aria-hidden": "true" });
  made.append(
    part("path", { d: "M0 7H34", stroke: color, "stroke-width": 1.5, "stroke-dasharray": dash.join(" ") }),
    part("path", { d: SHAPES[marker], fill: color, transform: "translate(17 7) scale(4)" }),
  );
  return made;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Three significant digits; counts in full.
function number(value) {
  if (value === null || value === undefined) return "-";
  if (Number.isInteger(value) && value >= 100) return value.toLocaleString("en");
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return Number.isInteger(value) || Math.abs(value) < 1e-3 ? String(value) : value.toPrecision(3);
}

const interval = (low, high) => (low == null || high == null ? "" : `${number(low)} to ${number(high)}`);

function table(heads, rows, caption) {
  const cell = (content) =>
    content instanceof Node
      ? element("td", { "data-value": content.dataset.value }, content)
      : element("td", { "data-value": content?.value }, content?.text ?? content ?? "");
  const made = element(
    "table", { class: "sortable" },
    caption ? element("caption", {}, caption) : null,
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
  );
  sortable(made);
  return element("div", { class: "scroll", tabindex: 0 }, made);
}

// A header sorts its column upwards, then downwards, then puts the rows back in the order of reading.
function sortable(made) {
  const body = made.tBodies[0], reading = Array.from(body.rows), headers = Array.from(made.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = element("button", { type: "button" }, ...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[header.ariaSort || "none"];
      headers.forEach((other) => { other.ariaSort = null; });
      header.ariaSort = next === "none" ? null : next;
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const upwards = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const [none, other] = [x === "" || x === "-", y === "" || y === "-"];
        if (none || other) return none - other; // what has no figure stays last
        const difference = isNaN(x) || isNaN(y) ? String(x).localeCompare(String(y)) : Number(x) - Number(y);
        return next === "descending" ? -difference : difference;
      };
      body.replaceChildren(...(next === "none" ? reading : Array.from(reading).sort(upwards)));
    });
  });
}

function asCsv(rows) {
  const names = [...new Set(rows.flatMap(Object.keys))];
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(cell).join(",") + "\n").join("");
}

function download(rows, name) {
  const url = URL.createObjectURL(new Blob([asCsv(rows)], { type: "text/csv" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A form that chooses a kind, a figure, cases by words and contenders; `choices` says what there is to choose from.
class Filter {
  constructor(form, choices, redraw) {
    this.form = form;
    this.choices = choices;
    this.redraw = redraw;
    this.kind = form.elements.kind;
    this.figure = form.elements.figure;
    this.kind.append(...choices.kinds.map(([value, text]) => element("option", { value }, text)));
    this.kind.addEventListener("change", () => { this.ofKind(); this.redraw(); });
    this.figure.addEventListener("change", redraw);
    form.elements.words.addEventListener("input", redraw);
    form.addEventListener("submit", (event) => event.preventDefault());
    this.ofKind();
  }

  ofKind() {
    const { figures, contenders, chosen } = this.choices.of(this.kind.value);
    this.figure.replaceChildren(...figures.map(([value, text]) => element("option", { value }, text)));
    const chip = (contender) => {
      const look = styleOfContender(contender);
      const box = element("input", {
        type: "checkbox", value: contender, checked: chosen.includes(contender), onchange: () => this.redraw(),
      });
      return element("label", { class: "chip", title: contender, style: `--c: ${look.color}` }, box, swatch(look), nameOf(contender));
    };
    this.form.querySelector(".chips").replaceChildren(...contenders.map(chip));
  }

  get contenders() {
    return Array.from(this.form.querySelectorAll(".chips input:checked"), (box) => box.value);
  }

  // Whether every word that was typed is in one of these texts.
  matches(...texts) {
    const text = texts.join(" ").toLowerCase();
    return this.form.elements.words.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  say(text) {
    this.form.querySelector("output").textContent = text;
  }
}
