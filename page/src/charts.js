// Curves: what passes did to the size, what a decode step reads, and quality where it was measured.

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { data } from "./data.js";
import { el, figure } from "./dom.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function plot(parent, title, xs, series, options = {}) {
  const holder = el("figure", { class: "chart" }, el("figcaption", {}, title));
  parent.append(holder);
  const axis = { stroke: color("--faint"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
  new uPlot({
    width: options.width ?? (innerWidth < 1500 ? 222 : 300),
    height: options.height ?? 130,
    cursor: { drag: { x: false, y: false } },
    legend: { show: options.legend ?? false },
    scales: { x: { time: false, ...options.x }, y: options.y ?? {} },
    axes: [
      { ...axis, size: 28, ...(options.incrs === null ? {} : { incrs: [1, 2, 5, 10] }) },
      { ...axis, size: 52, values: options.yValues },
    ],
    series: [{ label: options.xLabel ?? "x" }, ...series.map(({ label, values, ...rest }) => ({
      label, stroke: color("--accent"), width: 2, points: { size: 6 }, ...rest,
    }))],
  }, [xs, ...series.map((s) => s.values)], holder);
  return holder;
}

const bars = () => uPlot.paths.bars({ size: [0.7, 60] });

function bytesByLevel(parent) {
  const kernels = Object.values(data.decode_bytes);
  if (!kernels.length) return;
  const levels = kernels[0].map((_, level) => kernels.reduce((sum, each) => sum + each[level], 0) / 1e6);
  plot(parent, "MB that a decode step reads, by precision level", levels.map((_, i) => i),
    [{ label: "MB", values: levels, paths: uPlot.paths.stepped({ align: 1 }), fill: color("--fill") }],
    { y: { range: (_, min, max) => [0, max * 1.1] } });
}

/** Kernels by what they have of something, the most first, as bars. */
function shares(parent, title, amounts, kind) {
  const rows = Object.entries(amounts).sort((a, b) => b[1] - a[1]).slice(0, 8);
  if (!rows.length) return;
  const all = Object.values(amounts).reduce((a, b) => a + b, 0);
  const part = (amount) => `${((100 * amount) / all).toFixed(1)} %`;
  parent.append(el("figure", { class: "chart" }, el("figcaption", {}, title),
    el("div", { class: "shares" }, rows.map(([name, amount]) =>
      el("div", { title: `${name}: ${figure(kind, amount)}, ${part(amount)}` },
        el("b", { style: { width: `${(100 * amount) / rows[0][1]}%` } }),
        el("span", {}, name), el("i", {}, part(amount)))))));
}

function bytesByKernel(parent) {
  const amounts = Object.fromEntries(Object.entries(data.decode_bytes).map(([name, levels]) => [name, levels[0]]));
  shares(parent, "where they are read: kernels of a decode step", amounts, "bytes");
}

function timeByKernel(parent) {
  if (data.times) shares(parent, `where the time of ${data.times.function} goes`, data.times.kernels, "microseconds");
}

function sizeByPass(parent) {
  const stages = data.stages.filter((stage) => stage.size?.bytes);
  if (stages.length < 2) return;
  plot(parent, "MB of weights after each pass", stages.map((s) => s.number),
    [{ label: "MB", values: stages.map((s) => s.size.bytes / 1e6), paths: uPlot.paths.stepped({ align: 1 }) }],
    { y: { range: (_, min, max) => [0, max * 1.1] } });
}

function secondsByStage(parent) {
  const stages = data.stages.filter((stage) => stage.seconds);
  if (!stages.length) return;
  plot(parent, "seconds of each stage", stages.map((s) => s.number),
    [{ label: "s", values: stages.map((s) => s.seconds), paths: bars(), fill: color("--fill"), points: { show: false } }],
    { x: { range: (_, min, max) => [min - 0.5, max + 0.5] },  // whole bars at both ends
      y: { range: (_, min, max) => [0, max * 1.1] } });
}

function quality(parent) {
  const rows = data.quality.filter((row) => row.kind === "artifact" && row.score?.kl_mean !== null && row.bytes_per_token)
    .sort((a, b) => a.bytes_per_token - b.bytes_per_token);
  if (!rows.length) return;
  plot(parent, "KL from the float model by MB a token", rows.map((r) => r.bytes_per_token / 1e6),
    [{ label: "KL", values: rows.map((r) => r.score.kl_mean) }],
    { y: { range: (_, min, max) => [0, max * 1.1] }, incrs: null });
}

/** All curves that there are data for. */
export function charts(parent) {
  parent.replaceChildren();
  for (const draw of [quality, bytesByLevel, bytesByKernel, timeByKernel, sizeByPass, secondsByStage]) draw(parent);
}

/** Two histograms over one axis. */
export function histogram({ limit, before, after }) {
  const holder = el("div", { class: "histogram" });
  const xs = before.map((_, i) => -limit + ((2 * i + 1) * limit) / before.length);
  plot(holder, "", xs, [
    { label: "before", values: before, stroke: color("--faint"), fill: color("--fill"), points: { show: false } },
    { label: "after", values: after, points: { show: false }, paths: uPlot.paths.stepped({ align: 0 }) },
  ], { width: 290, height: 120, legend: true, xLabel: "weight", incrs: null });
  return holder;
}
