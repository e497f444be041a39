// The right of the page: what is selected, a line of IR with its weights and kernels, or a kernel.

import { analysisOf, data, kernelsOf, matrixOf, stageOf, textOf } from "./data.js";
import { histogram } from "./charts.js";
import { bytes, el, fact, figure } from "./dom.js";
import { variableOf, weightsOf } from "./ir.js";

/** One cell a group of input channels: its color tells the bits, its height what 2 bits would lose. */
function groupMap(matrix, name) {
  const losses = analysisOf.get(name)?.loss_2bit;
  const outliers = analysisOf.get(name)?.outliers;
  const most = Math.max(...(losses ?? [1]), 1e-30);
  const cells = matrix.bits.map((bits, group) => {
    const loss = losses?.[group];
    const height = losses ? Math.max(0.08, Math.sqrt(loss / most)) : 1;
    let title = `group ${group}: ${bits} bits`;
    if (losses) title += `, ${loss.toExponential(2)} lost at 2 bits`;
    if (outliers) title += `, ${(100 * outliers[group]).toFixed(1)} % of squares in outliers`;
    return el("i", { class: `bits${bits}`, title, style: { height: `${Math.round(28 * height)}px` } });
  });
  return el("div", { class: "map", role: "img", "aria-label": "bits of groups" }, ...cells);
}

function legend(matrix) {
  const counts = new Map();
  for (const bits of matrix.bits) counts.set(bits, (counts.get(bits) ?? 0) + 1);
  return el("div", { class: "legend" }, [...counts].sort((a, b) => b[0] - a[0]).map(([bits, count]) =>
    el("span", {}, el("i", { class: `bits${bits}` }), ` ${bits} bits: ${count} groups `)));
}

function levelBytes(matrix) {
  const most = Math.max(...matrix.level_bytes);
  return el("div", { class: "levels" }, matrix.level_bytes.map((count, level) =>
    el("div", { title: `level ${level} reads ${count} bytes` },
      el("span", {}, `level ${level}`),
      el("b", { style: { width: `${(60 * count) / most}%` } }),
      el("span", {}, bytes(count)))));
}

function outliersOf(matrix) {
  return /o(\d+)(?:r|$)/.exec(matrix.format)?.[1] ?? 0;
}

function weightCard(name) {
  const matrix = matrixOf.get(name);
  if (!matrix) return el("section", {}, el("h3", {}, name), el("p", {}, "a vector, kept as float32"));
  const index = matrix.names.indexOf(name);
  const [sample, figures] = [matrix.samples?.[index], matrix.figures?.[index]];
  const weights = matrix.rows.reduce((a, b) => a + b, 0) * matrix.columns;
  return el("section", { class: "weight" },
    el("h3", {}, name),
    el("table", {},
      fact("shape", `${matrix.rows[index]} × ${matrix.columns}`),
      fact("format", matrix.format),
      fact("bits", `${((8 * matrix.nbytes) / weights).toFixed(2)} with scales`),
      fact("stored", bytes(matrix.nbytes), matrix.names.length > 1 ? ` with ${matrix.names.length - 1} more` : ""),
      outliersOf(matrix) ? fact("outliers", `${outliersOf(matrix)} for a tile of rows`) : null,
      figures ? fact("lost", `${figures.feedback?.toExponential(1)} of its output`) : null),
    matrix.bits.length ? [el("h4", {}, "groups, as stored"), groupMap(matrix, name), legend(matrix)] : null,
    el("h4", {}, "bytes read by level"), levelBytes(matrix),
    sample?.before ? [el("h4", {}, "weights before and after rounding (first rows)"), histogram(sample)] : null);
}

/** Loops of a kernel with their kinds, from its TIR. */
function loopNest(text) {
  const loops = [...text.matchAll(/^( *)for (.+?) in (?:T\.)?(\w+)\(([^)]*)\)/gm)];
  return loops.slice(0, 14).map((found) =>
    `${" ".repeat(Math.max(0, found[1].length - 4) / 2)}${found[2]}: ${found[3]}(${found[4]})`).join("\n");
}

/** Instructions for a byte of weights: what a machine must make in the time of reading one. */
function intensity({ loop, products, weights, tokens, weight_bytes: [read] }) {
  if (!products || !weights) return null;
  const each = Object.values(loop).reduce((a, b) => a + b, 0) / products;
  const byte = (each * weights * tokens) / read;
  return fact("bound by", `memory, where a machine makes more than ${byte.toFixed(2)} instructions in ` +
    `the time of reading a byte (${each.toFixed(3)} a weight and token, ${(read / weights).toFixed(2)} bytes a weight)`);
}

/** What was measured of an op, and what its codes lose; its bytes are on its kernels' cards. */
function figuresOf(functionName, variable) {
  const found = Object.entries(data.figures[functionName] ?? {})
    .filter(([kind, values]) => kind !== "bytes" && variable in values);
  return el("table", {}, found.map(([kind, values]) => fact(kind, figure(kind, values[variable]))));
}

export class Details {
  /** @param onKernel called with the name of a file of a kernel */
  constructor(parent, onKernel) {
    this.parent = parent;
    this.onKernel = onKernel;
  }

  kernelCard(name, note = "") {
    const kernel = data.kernels[name];
    if (!kernel) return el("section", {}, el("h3", {}, name));
    const links = Object.entries(kernel.files).map(([label, file]) =>
      el("button", { class: "link", onclick: () => this.onKernel(file) }, label));
    const calls = Object.entries(kernel.calls).map(([f, count]) => `${f} ${count}`).join(", ");
    const loop = Object.entries(kernel.loop ?? {});
    const own = Object.entries(kernel.own ?? {});
    const reads = data.decode_bytes[name];
    const loops = el("pre", { class: "loops", hidden: true });
    textOf(stageOf(kernel.files.TIR)?.files[kernel.files.TIR]).then((text) => {
      loops.textContent = loopNest(text);
      loops.hidden = !loops.textContent;
    });
    return el("section", { class: "kernel" },
      el("h3", {}, name), note ? el("p", {}, note) : null,
      el("div", {}, links),
      el("table", {},
        fact("calls", calls),
        fact("reads", `${bytes(kernel.weight_bytes[0])} of weights a call`),
        kernel.written_bytes === undefined ? null :
          fact("moves", `reads ${bytes(kernel.read_bytes)}, writes ${bytes(kernel.written_bytes)}`),
        reads ? fact("a decode step", reads.map(bytes).join(", "), " by level") : null,
        kernel.instructions ? fact("instructions", String(kernel.instructions)) : null,
        loop.length ? fact("hot loop", loop.map(([name, n]) => `${name} ${n}`).join(", ")) : null,
        intensity(kernel),
        ...own.map(([name, value]) => fact(name, String(value)))),
      loops);
  }

  /** A line of IR of a function, and how it is shown. */
  line(text, shown, functionName, isLast) {
    const [variable, weights] = [variableOf(text), weightsOf(text)];
    const calls = isLast && variable ? kernelsOf(functionName, variable) : [];
    if (!variable && !weights.length) return;
    const name = /^\s*([\w.]+) = /.exec(shown)?.[1] ?? variable ?? "line";
    this.parent.replaceChildren(
      el("h2", {}, name, name === variable ? "" : el("small", {}, ` ${variable}`)),
      isLast ? figuresOf(functionName, variable) : "",
      ...calls.map((call) => this.kernelCard(call.kernel, call.note)),
      ...weights.map(weightCard));
    if (!calls.length && !weights.length)
      this.parent.append(el("p", {}, isLast ? "another name for a value that is there already" :
        "its kernels are shown in the last stage of the IR"));
  }

  /** A kernel that is shown in the middle. */
  kernel(name) {
    this.parent.replaceChildren(this.kernelCard(name));
  }

  /** All weights, largest first, when nothing is selected. */
  overview() {
    const matrices = [...data.weights].sort((a, b) => b.nbytes - a.nbytes).slice(0, 400);
    this.parent.replaceChildren(el("h2", {}, "weights"), ...matrices.map((matrix) =>
      el("div", { class: "overview", onclick: () => this.weights(matrix.names) },
        el("span", {}, matrix.names.map((n) => n.replace(/\.weight$/, "")).join(" + ")),
        el("small", {}, `${matrix.format} ${bytes(matrix.nbytes)}`),
        matrix.bits.length ? groupMap(matrix, matrix.names[0]) : null)));
  }

  weights(names) {
    const back = el("button", { class: "link", onclick: () => this.overview() }, "all weights");
    this.parent.replaceChildren(back, ...names.map(weightCard));
  }
}
