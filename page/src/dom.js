// Elements from plain calls. Texts are set as text: nothing of a model is read as HTML.

/** An element with properties ("class", "onclick", "data-x", ...) and children. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same of a drawing. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(node, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** 1234567 -> "1.2 MB" */
export function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  return `${count} B`;
}

/** 0.0123 -> "12 ms" */
export function seconds(value) {
  if (value === null || value === undefined) return "";
  return value >= 1 ? `${value.toFixed(1)} s` : `${Math.round(value * 1000)} ms`;
}

/** A table row of a name and a value. */
export function fact(name, ...value) {
  return el("tr", {}, el("th", {}, name), el("td", {}, ...value));
}

/** A figure of an op, by its kind. */
export function figure(kind, value) {
  if (kind === "bits") return `${value.toFixed(2)} bits`;
  if (kind === "bytes") return bytes(value);
  if (kind === "microseconds") return `${value.toFixed(1)} µs`;
  return value.toExponential(1);
}
