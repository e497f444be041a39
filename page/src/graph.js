// The ops of a function as a drawing: layers folded into one box each until they are clicked.

import { Graph as Layout, layout } from "@dagrejs/dagre";

import { el, figure, svg } from "./dom.js";
import { shortWeight } from "./ir.js";

const CROWD = 3;  // what more boxes read is written into them: a line to each says nothing
const MOST = 600;  // ops drawn at once: layout takes two seconds for so many, and grows with the square
const WIDEST = 34;  // characters of a line in a box

/** Figures that add up over the ops of a layer; of the others a layer has the largest. */
const SUMS = new Set(["bytes", "microseconds"]);

const layerBox = (layer) => `layer ${layer}`;
const cut = (text) => (text.length > WIDEST ? `${text.slice(0, WIDEST - 1)}…` : text);

let pen;

function widthOf(text) {
  pen ??= document.createElement("canvas").getContext("2d");
  pen.font = "11px system-ui, sans-serif";
  return pen.measureText(text).width;
}

/** "q_proj + k_proj": the last parts of the names of weights. */
function weightLine(op) {
  return op.weights.map((name) => shortWeight(name).split(".").at(-1)).join(" + ");
}

function lineThrough(points) {
  const middle = (a, b) => `${(a.x + b.x) / 2},${(a.y + b.y) / 2}`;
  const at = (point) => `${point.x},${point.y}`;
  const bends = points.slice(1, -1).map((point, i) => `Q${at(point)} ${middle(point, points[i + 2])}`);
  return `M${at(points[0])}L${middle(points[0], points[1])}${bends.join("")}L${at(points.at(-1))}`;
}

export class Graph {
  /** @param parent element, @param onOp called with an op that is clicked */
  constructor(parent, onOp) {
    this.parent = parent;
    this.onOp = onOp;
    this.open = new Set();  // layers that are unfolded
    this.kind = "bits";
    this.scale = 1;
    this.chosen = null;
    this.ops = [];
    this.figures = {};
    this.area = el("div", { class: "area" });
  }

  /** Draw a function; figures: values of variables by kind. */
  show(ops, figures) {
    const bits = Object.fromEntries(ops.filter((op) => op.bits !== null).map((op) => [op.var, op.bits]));
    this.ops = ops;
    this.figures = { bits, ...figures };
    if (!(this.kind in this.figures)) this.kind = "bits";
    const kinds = Object.keys(this.figures).filter((kind) => Object.keys(this.figures[kind]).length);
    const select = el("select", { "aria-label": "figures", onchange: (event) => {
      this.kind = event.target.value;
      this.draw();
    } }, kinds.map((kind) => el("option", { value: kind, selected: kind === this.kind }, kind)));
    const zoom = (factor, text) => el("button", { title: "zoom", onclick: () => this.zoom(factor) }, text);
    const color = kinds.length ? el("label", {}, "show ", select) : null;
    const tools = el("div", { class: "tools" }, color, zoom(1 / 1.25, "−"), zoom(1.25, "+"));
    this.parent.replaceChildren(tools, this.area);
    this.draw();
    this.start();
  }

  /** Show the chosen op, or else the first one. */
  start() {
    const first = this.area.querySelector(".chosen") ?? this.area.querySelector(".node");
    first?.scrollIntoView({ block: "nearest", inline: "center" });
  }

  /** Fold all layers, or unfold as many as can be drawn. */
  fold(open) {
    this.open = new Set();
    const layers = new Set(this.ops.map((op) => op.layer).filter((layer) => layer !== null));
    if (open) for (const layer of layers) if (this.fits(layer)) this.open.add(layer);
    this.draw();
    this.start();
  }

  /** Whether one more layer can be unfolded. */
  fits(layer) {
    return this.ops.filter((op) => op.layer === layer || this.open.has(op.layer)).length <= MOST;
  }

  zoom(factor) {
    this.scale = Math.min(Math.max(this.scale * factor, 0.2), 3);
    this.size();
  }

  size() {
    const drawing = this.area.querySelector("svg");
    if (!drawing) return;
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ");
    drawing.setAttribute("width", width * this.scale);
    drawing.setAttribute("height", height * this.scale);
  }

  /** The box that an op is in: its own, or that of its folded layer. */
  boxOf(op) {
    return op.layer === null || this.open.has(op.layer) ? op.var : layerBox(op.layer);
  }

  value(ops) {
    const values = ops.map((op) => this.figures[this.kind]?.[op.var]).filter((value) => value !== undefined);
    if (!values.length) return null;
    return SUMS.has(this.kind) ? values.reduce((a, b) => a + b, 0) : Math.max(...values);
  }

  /** Boxes by their names, each with its ops, and the edges between them. */
  boxes() {
    const of = new Map(this.ops.map((op) => [op.var, this.boxOf(op)]));
    const boxes = new Map();
    const readers = new Map();
    for (const op of this.ops) {
      const name = of.get(op.var);
      if (!boxes.has(name)) boxes.set(name, { name, ops: [], from: new Set(), crowd: [] });
      const box = boxes.get(name);
      box.ops.push(op);
      for (const input of op.inputs) if (of.get(input) !== name) box.from.add(of.get(input));
    }
    for (const { from } of boxes.values())
      for (const source of from) readers.set(source, (readers.get(source) ?? 0) + 1);
    for (const [name, box] of [...boxes]) {
      if (box.ops[0].layer !== null || (readers.get(name) ?? 0) <= CROWD) continue;
      box.read = readers.get(name);
      if (box.ops[0].op === "input") boxes.delete(name);
      for (const other of boxes.values()) if (other.from.delete(name)) other.crowd.push(name);
    }
    return boxes;
  }

  /** The lines of text in a box. */
  lines({ name, ops, crowd, read }) {
    const [op] = ops;
    if (name !== op.var) return [`▸ ${name}`, `${ops.length} ops`];
    if (op.op === "input") return [name];
    const more = [weightLine(op), ...crowd.map((each) => `reads ${each}`)].filter(Boolean);
    if (read) more.push(`read by ${read}`);
    return [op.op, ...more.map(cut)];
  }

  layout(boxes) {
    const graph = new Layout({ compound: true });
    graph.setGraph({ rankdir: "TB", nodesep: 14, ranksep: 20, marginx: 10, marginy: 10 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const layer of this.open) {
      if (this.ops.some((op) => op.layer === layer)) graph.setNode(layerBox(layer), { open: layer });
    }
    for (const box of boxes.values()) {
      const lines = this.lines(box);
      const value = this.value(box.ops);
      const shown = value === null ? "" : figure(this.kind, value);
      const first = widthOf(lines[0]) + (shown ? 14 + widthOf(shown) : 0);
      const width = Math.max(70, first, ...lines.map(widthOf)) + 16;
      graph.setNode(box.name, { box, lines, value, shown, width, height: 13 + 14 * lines.length });
      const { layer, var: variable } = box.ops[0];
      if (layer !== null && box.name === variable) graph.setParent(box.name, layerBox(layer));
    }
    for (const box of boxes.values()) for (const source of box.from) graph.setEdge(source, box.name);
    layout(graph);
    return graph;
  }

  draw() {
    if (!this.ops.length) {
      this.area.replaceChildren(el("p", {}, "no graph of this text"));
      return;
    }
    const graph = this.layout(this.boxes());
    const nodes = graph.nodes().map((name) => [name, graph.node(name)]);
    this.most = Math.max(...nodes.map(([, node]) => node.value ?? 0), 1e-30);
    const edges = graph.edges().map((edge) =>
      svg("path", { class: "edge", d: lineThrough(graph.edge(edge).points), "marker-end": "url(#arrow)",
        "data-from": edge.v, "data-to": edge.w }));
    const clusters = nodes.filter(([, node]) => !node.box).map(([name, node]) => this.cluster(name, node));
    const found = nodes.filter(([, node]) => node.box).map(([name, node]) => this.node(name, node));
    const arrow = svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 6 6", refX: 5, refY: 3,
      markerWidth: 6, markerHeight: 6, orient: "auto" }, svg("path", { class: "arrow", d: "M0,0L6,3L0,6z" })));
    const { width, height } = graph.graph();
    this.area.replaceChildren(svg("svg", { viewBox: `0 0 ${Math.ceil(width)} ${Math.ceil(height)}` },
      arrow, ...clusters, ...edges, ...found));
    this.size();
    this.mark();
  }

  button(properties, act, ...children) {
    return svg("g", { tabindex: 0, role: "button", ...properties, onclick: act,
      onkeydown: (event) => { if (event.key === "Enter") act(); } }, ...children);
  }

  /** Where the box of a layer is on the screen. */
  placeOf(layer) {
    const box = [...this.area.querySelectorAll("[data-box]")].find((each) => each.dataset.box === layerBox(layer));
    return box.getBoundingClientRect();
  }

  toggle(layer) {
    const before = this.placeOf(layer);
    if (!this.open.delete(layer)) {
      while (this.open.size && !this.fits(layer)) this.open.delete(this.open.values().next().value);
      this.open.add(layer);
    }
    this.draw();
    const { x, y, width } = this.placeOf(layer);  // it stays where it was
    this.area.scrollBy(x + width / 2 - before.x - before.width / 2, y - before.y);
  }

  cluster(name, { open, x, y, width, height }) {
    const [left, top] = [x - width / 2, y - height / 2];
    return this.button({ class: "cluster", "data-box": name }, () => this.toggle(open),
      svg("title", {}, "fold"),
      svg("rect", { x: left, y: top, width, height, rx: 6 }),
      svg("text", { x: left + 6, y: top + 12 }, `▾ ${name}`));
  }

  node(name, { box, lines, value, shown, x, y, width, height }) {
    const [op] = box.ops;
    const folded = name !== op.var;
    const [left, top] = [x - width / 2, y - height / 2];
    const color = this.kind === "bits" && value !== null ? `bits${Math.min(Math.max(Math.floor(value), 2), 6)}` : "heat";
    const length = value === null ? 0 : Math.max(2, ((width - 8) * value) / this.most);
    const title = folded ? box.ops.map((each) => each.op).join(", ") :
      `${op.var} = ${op.op}\n${[...op.types, ...op.weights].join("\n")}`;
    const act = folded ? () => this.toggle(op.layer) : () => this.onOp(op);
    return this.button({ class: `node ${folded ? "folded" : op.op === "input" ? "input" : ""}`, "data-box": name }, act,
      svg("title", {}, title),
      svg("rect", { class: "box", x: left, y: top, width, height, rx: 5 }),
      length ? svg("rect", { class: color, x: left + 4, y: top + height - 5, width: length, height: 3, rx: 1 }) : null,
      lines.map((line, i) => svg("text", { x: left + 8, y: top + 14 + 14 * i, class: i ? "faint" : "" }, line)),
      shown ? svg("text", { x: left + width - 8, y: top + 14, class: "faint end" }, shown) : null);
  }

  /** Mark the op that defines a variable, and show where it is; nothing for other variables. */
  select(variable) {
    const op = this.ops.find((each) => each.var === variable);
    if (!op) return;
    this.chosen = op;
    this.mark();
    this.area.querySelector(".chosen")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  mark() {
    const name = this.chosen && this.ops.includes(this.chosen) ? this.boxOf(this.chosen) : null;
    for (const node of this.area.querySelectorAll(".node")) node.classList.toggle("chosen", node.dataset.box === name);
    for (const edge of this.area.querySelectorAll(".edge"))
      edge.classList.toggle("chosen", name !== null && [edge.dataset.from, edge.dataset.to].includes(name));
  }
}
