"use strict";
// One chart: lines over named places, with intervals, a legend, what a mark says and what a touch of it opens.
// labels: of the places along x; lines: {name, color, marker, dash, ys, lows, highs, rings}; tip(line, place): lines of text.
function drawChart(host, { labels, lines, unit, range, tip, pick }) {
  const places = labels.map((_, place) => place);
  labels = withoutCommonStart(labels);
  const logarithmic = range[0] > 0 && range[1] / range[0] > 8;
  const axis = { stroke: inkOf("--ink"), grid: { stroke: inkOf("--line"), width: 1 }, ticks: { stroke: inkOf("--line") } };
  const longest = Math.max(0, ...labels.map((label) => label.length));
  const tooltip = element("div", { class: "tip", hidden: "" });
  let near = null;
  const options = {
    width: host.clientWidth || 320,
    height: 300 + Math.min(130, longest * 5),
    legend: { live: false },
    scales: {
      x: { time: false, range: [-0.5, labels.length - 0.5] },
      y: { distr: logarithmic ? 3 : 1, range: logarithmic ? [range[0] / 1.2, range[1] * 1.2] : padded(range) },
    },
    axes: [
      {
        ...axis, rotate: 55, size: 24 + Math.min(150, longest * 5.2), space: 14, incrs: [1, 2, 5, 10, 20, 50, 100],
        values: (_, splits) => splits.map((place) => labels[place] ?? ""),
      },
      {
        ...axis, label: unit + (logarithmic ? " (log scale)" : ""), labelSize: 18, size: 56,
        values: (_, splits, __, ___, step) => splits.map((value) => tick(value, step, logarithmic)),
      },
    ],
    series: [
      { label: "" },
      ...lines.map((line) => ({
        label: line.name, stroke: line.color, dash: line.dash, width: 1.2, spanGaps: true,
        points: { show: false, size: 6, fill: line.color },
      })),
    ],
    cursor: { drag: { x: false, y: false }, y: false },
    hooks: {
      draw: [(plot) => { drawIntervals(plot, lines); drawMarks(plot, lines); drawRings(plot, lines); }],
      setCursor: [(plot) => { near = nearest(plot, lines); showTip(plot, tooltip, near, tip); }],
    },
  };
  const plot = new uPlot(options, [places, ...lines.map((line) => line.ys)], host);
  const legend = plot.root.querySelectorAll(".u-legend .u-series");
  lines.forEach((line, index) => legend[index].querySelector(".u-marker").replaceWith(swatch(line)));
  plot.over.append(tooltip);
  plot.over.addEventListener("click", () => { if (near) pick(...near); });
  new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: options.height });
  }).observe(host);
  return plot;
}

// What all of several labels begin with stands in the title.
function withoutCommonStart(labels) {
  const words = labels.map((label) => label.split(" "));
  let common = 0;
  while (labels.length > 1 && words.every((of) => of.length > common + 1 && of[common] === words[0][common])) common += 1;
  return words.map((of) => of.slice(common).join(" "));
}

// As many decimals as tell neighbours apart; of a logarithmic axis the round values alone.
function tick(value, step, logarithmic) {
  if (value === null) return "";
  if (!logarithmic) return value.toFixed([0, 1, 2, 3, 4].find((digits) => Math.abs(Number(step.toFixed(digits)) - step) < 1e-9) ?? 5);
  const leading = value / 10 ** Math.floor(Math.log10(value) + 1e-9);
  return [1, 2, 5].some((round) => Math.abs(leading - round) < 1e-6) ? number(value) : "";
}

function padded([low, high]) {
  const room = (high - low || high || 1) * 0.08;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

// The least and the largest value of all lines of all charts that are to be compared by eye.
function rangeOf(charts) {
  const values = charts.flatMap((lines) => lines.flatMap((line) => [line.ys, line.lows ?? [], line.highs ?? []].flat()));
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
}

function drawIntervals(plot, lines) {
  lines.forEach((line, index) => {
    if (!line.lows || !plot.series[index + 1].show) return;
    plot.ctx.save();
    plot.ctx.strokeStyle = line.color;
    plot.ctx.lineWidth = 2 * devicePixelRatio;
    plot.ctx.beginPath();
    line.lows.forEach((low, place) => {
      if (low == null || line.highs[place] == null) return;
      const x = plot.valToPos(place, "x", true);
      plot.ctx.moveTo(x, plot.valToPos(low, "y", true));
      plot.ctx.lineTo(x, plot.valToPos(line.highs[place], "y", true));
    });
    plot.ctx.stroke();
    plot.ctx.restore();
  });
}

function drawMarks(plot, lines) {
  lines.forEach((line, index) => {
    if (!plot.series[index + 1].show) return;
    const shape = new Path2D(SHAPES[line.marker]), size = 3.4 * devicePixelRatio;
    line.ys.forEach((value, place) => {
      if (value === null || value === undefined) return;
      plot.ctx.save();
      plot.ctx.fillStyle = line.color;
      plot.ctx.translate(plot.valToPos(place, "x", true), plot.valToPos(value, "y", true));
      plot.ctx.scale(size, size);
      plot.ctx.fill(shape);
      plot.ctx.restore();
    });
  });
}

function drawRings(plot, lines) {
  lines.forEach((line, index) => {
    if (!plot.series[index + 1].show) return;
    for (const place of line.rings ?? []) {
      if (line.ys[place] == null) continue;
      plot.ctx.save();
      plot.ctx.strokeStyle = inkOf("--ink");
      plot.ctx.lineWidth = 2 * devicePixelRatio;
      plot.ctx.beginPath();
      plot.ctx.arc(
        plot.valToPos(place, "x", true), plot.valToPos(line.ys[place], "y", true), 7 * devicePixelRatio, 0, 2 * Math.PI,
      );
      plot.ctx.stroke();
      plot.ctx.restore();
    }
  });
}

// [line, place] of the mark that is closest to the pointer among those at its place; null outside.
function nearest(plot, lines) {
  const { idx: place, top } = plot.cursor;
  if (place === null || place === undefined || top < 0) return null;
  let found = null, least = Infinity;
  lines.forEach((line, index) => {
    const value = line.ys[place];
    if (value === null || value === undefined || !plot.series[index + 1].show) return;
    const away = Math.abs(plot.valToPos(value, "y") - top);
    if (away < least) [found, least] = [[index, place], away];
  });
  return found;
}

function showTip(plot, tooltip, near, tip) {
  tooltip.hidden = !near;
  if (!near) return;
  const [first, ...rest] = tip(...near);
  tooltip.replaceChildren(element("strong", {}, first), ...rest.filter(Boolean).map((text) => element("div", {}, text)));
  const x = plot.valToPos(near[1], "x"), width = plot.over.clientWidth;
  tooltip.style.maxWidth = `${Math.min(320, width - 8)}px`;
  tooltip.style.left = `${Math.max(0, Math.min(x + 12, width - tooltip.offsetWidth - 4))}px`;
  tooltip.style.top = `${Math.max(0, plot.cursor.top - tooltip.offsetHeight - 12)}px`;
}
