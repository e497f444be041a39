// The left of the page: stages with what they took, counted and missed, and a search in all texts.

import { before, changesNothing, data, irStages } from "./data.js";
import { bytes, el, seconds } from "./dom.js";

function change(stage) {
  const last = before(stage);
  const [from, to] = [last?.size?.bytes, stage.size?.bytes];
  if (!to) return null;
  const bits = stage.size.weights ? (8 * to) / stage.size.weights : 0;
  const delta = from && from !== to ? ` (${to < from ? "−" : "+"}${bytes(Math.abs(to - from))})` : "";
  return el("div", { class: "size" }, `${bytes(to)}${delta}, ${bits.toFixed(2)} bits a weight`);
}

function error(stage) {
  const kept = Object.values(stage.figures ?? {}).map((f) => f.feedback ?? f.error).filter(Number.isFinite);
  if (!kept.length) return null;
  const mean = kept.reduce((a, b) => a + b, 0) / kept.length;
  return el("div", { class: "size" }, `mean output error ${mean.toExponential(1)}`);
}

function counts(stage) {
  const rows = Object.entries(stage.counts ?? {});
  return rows.map(([what, count]) => el("div", { class: "count" }, `${what}: ${count}`));
}

function misses(stage) {
  const missed = stage.missed ?? [];
  if (!missed.length) return null;
  const grouped = new Map();
  for (const { where, why } of missed) grouped.set(why, [...(grouped.get(why) ?? []), where]);
  return el("details", { class: "misses" },
    el("summary", {}, `${missed.length} left alone`),
    ...[...grouped].map(([why, places]) =>
      el("div", { title: places.join("\n") }, `${places.length} × ${why}`)));
}

export class Stages {
  /** @param onChoose called with a stage */
  constructor(parent, onChoose) {
    this.onChoose = onChoose;
    this.items = new Map();
    const idle = [];
    for (const stage of data.stages) {
      const item = this.item(stage);
      this.items.set(stage, item);
      if (changesNothing(stage)) idle.push(item);
      else {
        this.fold(parent, idle);
        parent.append(item);
      }
    }
    this.fold(parent, idle);
  }

  fold(parent, idle) {
    if (!idle.length) return;
    parent.append(el("details", { class: "idle" },
      el("summary", {}, `${idle.length} that changed nothing`), ...idle.splice(0)));
  }

  item(stage) {
    const slow = Math.max(...data.stages.map((each) => each.seconds ?? 0), 1e-9);
    const title = stage.spec ?? stage.name;
    return el("div", { class: `stage ${stage.kind}`, onclick: () => this.onChoose(stage), title },
      el("div", { class: "name" },
        el("span", { class: "number" }, String(stage.number).padStart(2, "0")),
        el("span", { class: "spec" }, title),
        el("span", { class: "time" }, seconds(stage.seconds))),
      el("div", { class: "bar", style: { width: `${(100 * (stage.seconds ?? 0)) / slow}%` } }),
      change(stage), error(stage), ...counts(stage), misses(stage));
  }

  mark(stage) {
    for (const [each, item] of this.items) item.classList.toggle("chosen", each === stage);
    const item = this.items.get(stage);
    item?.closest("details.idle")?.setAttribute("open", "");
    item?.scrollIntoView({ block: "nearest" });
  }

  /** The stage `step` places after another. */
  static next(stage, step) {
    const index = data.stages.indexOf(stage) + step;
    return data.stages[Math.min(Math.max(index, 0), data.stages.length - 1)];
  }

  /** Stages that have IR, for the choice of what to compare with. */
  static comparable() {
    return irStages;
  }
}
