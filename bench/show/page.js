"use strict";
// A header sorts its column upwards, then downwards, then puts the rows back in the order of reading.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const reading = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[header.ariaSort || "none"];
      headers.forEach((other) => { other.ariaSort = null; });
      header.ariaSort = next === "none" ? null : next;
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const upwards = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what has no figure stays last
        const difference = isNaN(x) || isNaN(y) ? String(x).localeCompare(String(y)) : Number(x) - Number(y);
        return next === "descending" ? -difference : difference;
      };
      body.replaceChildren(...(next === "none" ? reading : Array.from(reading).sort(upwards)));
    });
  });
}
document.documentElement.dataset.ready = "yes";
