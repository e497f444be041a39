// The page that `morendo view` writes: stages on the left, code in the middle, details on the right.

import "./style.css";
import { charts } from "./charts.js";
import { Code } from "./code.js";
import { before, data, functionText, irStages, opsOf, stageOf, textOf } from "./data.js";
import { Details } from "./details.js";
import { el } from "./dom.js";
import { Graph } from "./graph.js";
import { shortFunction, variableOf } from "./ir.js";
import { Stages } from "./stages.js";

const GRAPH = "graph";
const state = {
  stage: null, name: null, file: null,
  other: undefined,  // what is beside the text: a stage, GRAPH, null for nothing, undefined for the stage before
  short: true, whole: false, sync: true, wrap: true,
};

const parts = {
  charts: el("div", { id: "charts" }),
  stages: el("nav", { id: "stages", "aria-label": "stages" }),
  bar: el("div", { id: "bar" }),
  graph: el("div", { id: "graph" }),
  text: el("div", { id: "text" }),
  details: el("aside", { id: "details" }),
  results: el("div", { id: "results" }),
};

const code = new Code(parts.text, (line, shown) => {
  if (!isIR()) return;
  details.line(line, shown, state.name, isLast());
  graph.select(variableOf(line));
});
const graph = new Graph(parts.graph, (op) => {
  code.reveal(op.var);
  graph.select(op.var);
});
const details = new Details(parts.details, showFile);
const stages = new Stages(parts.stages, choose);

/** Show a stage: its IR beside that of the stage before, or one of its files. */
function choose(stage) {
  state.stage = stage;
  if (state.other !== GRAPH) state.other = undefined;
  const names = Object.keys(stage.functions);
  const files = Object.keys(stage.files);
  if (names.length && !names.includes(state.name)) state.name = names.includes("decode") ? "decode" : names[0];
  state.file = files.length && !files.includes(state.file) ? files[0] : state.file;
  stages.mark(stage);
  return draw();
}

function isIR() {
  return state.stage && Object.keys(state.stage.functions).length > 0;
}

/** Kernels, and what was measured, belong to the ops of the last IR. */
function isLast() {
  return state.stage === irStages.at(-1);
}

async function draw() {
  drawBar();
  const { stage } = state;
  code.wrap = state.wrap;
  parts.graph.hidden = !(isIR() && state.other === GRAPH);
  if (isIR()) {
    const shown = state.short ? shortFunction : wholeFunction;
    const other = state.other === undefined ? before(stage) : state.other;
    const [right, left, ops] = await Promise.all([
      functionText(stage, state.name),
      other && other !== GRAPH ? functionText(other, state.name) : null,
      other === GRAPH ? opsOf(stage, state.name) : null]);
    if (stage !== state.stage) return;
    if (left === null) code.single(shown(right), "python");
    else code.pair(shown(left), shown(right), state.whole || left === right, state.sync);
    if (ops) graph.show(ops, isLast() ? data.figures[state.name] : {});
  } else if (state.file) {
    const text = await textOf(stage.files[state.file]);
    if (stage !== state.stage) return;
    code.single(wholeFunction(text), state.file.endsWith(".py") ? "python" : "plain");
    const kernel = state.file.replace(/(\.unscheduled)?\.\w+$/, "");
    if (data.kernels[kernel]) details.kernel(kernel);
  } else code.single(wholeFunction("this stage has no text"), "plain");
}

function wholeFunction(text) {
  return { text, lines: text.split("\n") };
}

function choice(label, values, chosen, onChange) {
  const select = el("select", { "aria-label": label, onchange: (event) => onChange(event.target.value) },
    values.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  return el("label", {}, `${label} `, select);
}

function toggle(label, key, title) {
  const box = el("input", { type: "checkbox", checked: state[key], onchange: (event) => {
    state[key] = event.target.checked;
    draw();
  } });
  return el("label", { title }, box, ` ${label}`);
}

function drawBar() {
  const { stage } = state;
  const functions = Object.keys(stage.functions).map((name) => [name, name]);
  const files = Object.keys(stage.files).map((name) => [name, name]);
  const other = state.other === undefined ? before(stage) : state.other;
  const others = [["", "nothing"], [GRAPH, "the graph"], ...irStages.filter((s) => s !== stage).map((s) => [String(s.number), s.name])];
  const pair = isIR() && other && other !== GRAPH;
  parts.bar.replaceChildren(
    isIR() ? choice("function", functions, state.name, (name) => { state.name = name; draw(); }) :
      files.length ? choice("file", files, state.file, (file) => { state.file = file; draw(); }) : "",
    isIR() ? choice("beside", others, other === GRAPH ? GRAPH : other ? String(other.number) : "", (number) => {
      state.other = number === GRAPH ? GRAPH : irStages.find((s) => String(s.number) === number) ?? null;
      draw();
    }) : "",
    isIR() ? toggle("short", "short", "variables named by what they are, types as comments; without, the text parses with `morendo opt`") : "",
    pair ? toggle("whole", "whole", "show what is equal too") : "",
    pair ? toggle("in step", "sync", "select the same weight on the other side") : "",
    toggle("wrap", "wrap", "break long lines"),
    isIR() ? el("button", { onclick: () => { code.foldLayers(); graph.fold(false); }, title: "fold the layers" }, "fold") : "",
    isIR() ? el("button", { onclick: () => { code.unfold(); graph.fold(true); } }, "unfold") : "",
    el("button", { onclick: () => code.find(), title: "Ctrl-F in the text" }, "find"));
}

/** Go to a file, such as the TIR of a kernel. */
function showFile(file) {
  state.file = file;
  choose(stageOf(file));
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** All stages and functions or files in which a text stands. */
async function find(wanted) {
  parts.results.replaceChildren();
  if (wanted.length < 2) return;
  const pattern = new RegExp(escaped(wanted), "gi");
  const found = [];
  for (const stage of data.stages) {
    for (const [kind, texts] of [["name", stage.functions], ["file", stage.files]]) {
      for (const [name, number] of Object.entries(texts)) {
        const count = (await textOf(number)).match(pattern)?.length ?? 0;
        if (count || name.toLowerCase().includes(wanted.toLowerCase()))
          found.push({ stage, kind, name, count });
      }
    }
  }
  if (document.getElementById("search").value !== wanted) return;
  parts.results.replaceChildren(
    el("p", {}, `${found.length} texts`),
    ...found.slice(0, 60).map(({ stage, kind, name, count }) =>
      el("button", { class: "link result", onclick: () => { state[kind] = name; choose(stage); } },
        `${stage.name} / ${name} (${count})`)));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  charts(parts.charts);
}

function header() {
  const facts = Object.entries(data.facts).filter(([key]) => key !== "model").map(([k, v]) => `${k} ${v}`);
  let timer;
  const search = el("input", {
    id: "search", type: "search", placeholder: "search all texts  ( / )", oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => find(event.target.value), 200);
    } });
  return el("header", {},
    el("h1", {}, data.title), el("span", { class: "facts" }, facts.join(" · ")),
    search,
    el("button", { id: "curves", onclick: () => parts.charts.toggleAttribute("hidden") }, "curves"),
    el("button", { id: "all-weights", onclick: () => details.overview() }, "weights"),
    el("button", { id: "theme", onclick: () =>
      setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark") }, "light / dark"),
    el("span", { class: "keys" }, "j k step · g graph · / search"));
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "j" || event.key === "k") choose(Stages.next(state.stage, event.key === "j" ? 1 : -1));
  else if (event.key === "g" && isIR()) {
    state.other = state.other === GRAPH ? undefined : GRAPH;
    draw();
  } else if (event.key === "/") document.getElementById("search").focus();
  else return;
  event.preventDefault();
});

const left = el("div", { id: "left" }, parts.results, parts.stages);
const middle = el("div", { id: "middle" }, parts.bar, el("main", { id: "code" }, parts.graph, parts.text));
document.body.append(header(), parts.charts, el("div", { id: "columns" }, left, middle, parts.details));
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
details.overview();
if (data.stages.length) choose(irStages.at(-1) ?? data.stages[0]).then(() => document.body.setAttribute("data-ready", ""));
