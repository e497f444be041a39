// IR text as people read it: layers, variables and weights of lines, and a short form of functions.
//
// The short form names variables by what they are (L3.q_proj), so that a pass that renumbers them
// does not seem to change every line, names parts of tuples in place, and shows types as comments.

/** The layer that a line belongs to, or null. */
export function layerOf(line) {
  const found = /[."](?:layers|h|blocks|block)\.(\d+)\.|\blayer=(\d+)|^\s*L(\d+)\.|_layers_(\d+)_/.exec(line);
  return found ? Number(found[1] ?? found[2] ?? found[3] ?? found[4]) : null;
}

/** Ranges {layer, first, last} of line numbers (from 1), for folding. */
export function layerRanges(lines) {
  const ranges = [];
  lines.forEach((line, index) => {
    const layer = layerOf(line);
    if (layer === null) return;
    const last = ranges.at(-1);
    if (last && last.layer === layer) last.last = index + 1;
    else ranges.push({ layer, first: index + 1, last: index + 1 });
  });
  return ranges.filter((range) => range.last > range.first);
}

/** The variable that a line of the whole text defines, or null. */
export function variableOf(line) {
  return /^\s*(\w+)(?:: .*)? = /.exec(line)?.[1] ?? null;
}

/** Names of weights in a line of the whole text. */
export function weightsOf(line) {
  return [...line.matchAll(/"([^"]+\.weight[^"]*)"/g)].map((found) => found[1]);
}

const TENSOR = /R\.Tensor\(\(([^()]*)\)(?:, dtype="(\w+)")?\)/g;
const DEFINED = /^\s*(\w+): (R\.(?:Tensor|Tuple)\(.*?\)) = ((?:M|R)\.\w|\w+\[\d+\]$|\w+$)/;

function types(text) {
  return [...text.matchAll(TENSOR)].map(([, dims, dtype]) =>
    `[${dims.replace(/,$/, "").replace(/\bn\b/g, "tokens")}] ${dtype ?? ""}`.trim()).join(", ");
}

/** "model.layers.3.self_attn.q_proj.weight" -> "3.self_attn.q_proj" */
export function shortWeight(name) {
  return name.replace(/^(?:model|transformer)\./, "").replace(/\.weight(?=\[|$)/, "")
    .replace(/^(?:layers|h)\.(?=\d+\.)/, "");
}

function shortWeights(text) {
  return text.replace(/"([^"]+\.(?:weight|bias|inv_freq)[^"]*)"/g, (_, name) => `"${shortWeight(name)}"`);
}

/** What a variable is called: by its weight, its layer, or what it is made of. */
function meaning(value, operands) {
  const op = /^(?:[MR]\.)?([\w.]+)/.exec(value)[1].split(".").at(-1);
  const weight = weightsOf(value)[0];
  const layer = layerOf(value);
  if (weight) {
    const last = shortWeight(weight).split(".").at(-1);
    return layer === null ? last : `L${layer}.${last}`;
  }
  const parameter = /\b(\w+?)_(?:weight|bias)\b/.exec(value)?.[1];  // before weights are names
  if (parameter) {
    const last = parameter.replace(/^.*_layers_\d+_(?:self_attn_|mlp_)?|^model_/, "");
    return `${layer === null ? "" : `L${layer}.`}${last}.${op}`;
  }
  if (layer !== null) return `L${layer}.attention`;
  const base = (op === "rope" ? operands[0] : operands.at(-1)) ?? "";
  const stem = /^((?:L\d+\.)?[A-Za-z]\w*)/.exec(base)?.[1];
  return stem ? `${stem}.${op}` : op;
}

function signature(line) {
  const name = /def (\w+)\(/.exec(line)[1];
  const [inside, result] = line.split(/\) -> /);
  const parameters = [...inside.matchAll(/(\w+): R\./g)].map((found) => found[1]);
  const more = parameters.length > 4 ? `, … ${parameters.length - 2} weights` : "";
  const shown = (more ? parameters.slice(0, 2) : parameters).join(", ");
  return `def ${name}(${shown}${more}) -> ${types(result ?? "")}:`;
}

/**
 * A function's text in the short form, with the line of the whole text that each line stands for.
 * @returns {{text: string, lines: string[]}}
 */
export function shortFunction(whole) {
  const names = new Map();
  const used = new Map();
  const [shown, lines] = [[], []];
  const rename = (text) => text.replace(/"[^"]*"|\b[A-Za-z_]\w*\b(?!\s*[=(.]|\s*=)/g,
    (word) => names.get(word) ?? word);
  for (const line of whole.trimEnd().split("\n")) {
    const found = DEFINED.exec(line);
    let text = line.replace(/^ {4,8}/, "  ");
    if (/^\s*def /.test(line)) text = signature(line);
    else if (/^\s*(@|with R.dataflow|R.output|R.func_attr)/.test(line)) continue;
    else if (found) {
      const value = line.slice(found[0].length - found[3].length);
      const part = /^(\w+)(\[\d+\])$/.exec(value);
      if (part || /^\w+$/.test(value)) {
        const of = part?.[1] ?? value;
        names.set(found[1], `${names.get(of) ?? of}${part?.[2] ?? ""}`);
        continue;
      }
      const renamed = rename(value).replace(/([^\s(]+)\[0\], \1\[1\], \1\[2\]/, "$1");  // all parts
      const operands = [...value.matchAll(/\b(lv\w*|gv\w*)\b/g)].map((each) => names.get(each[0]) ?? each[0]);
      const wanted = meaning(value, operands);
      const count = (used.get(wanted) ?? 0) + 1;
      used.set(wanted, count);
      names.set(found[1], count > 1 ? `${wanted}_${count}` : wanted);
      text = `  ${names.get(found[1])} = ${shortWeights(renamed.replace(/^M\./, ""))}  # ${types(found[2])}`;
    } else text = rename(text);
    shown.push(text);
    lines.push(line);
  }
  return { text: shown.join("\n"), lines };
}
