// What `morendo view` put into the page (morendo/view/collect.py says what is in it).

export const data = window.morendo ?? {
  title: "no data", facts: {}, stages: [], steps: {}, calls: {}, kernels: {}, weights: [],
  decode_bytes: {}, figures: {}, quality: [], texts: [],
};

const inflated = new Map();

/** The text of a number, decompressed when it is first asked for. */
export async function textOf(number) {
  if (number === null || number === undefined) return "";
  if (!inflated.has(number)) inflated.set(number, inflate(data.texts[number]));
  return inflated.get(number);
}

async function inflate(encoded) {
  const compressed = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

/** Stages with something to show beside another: those that have functions. */
export const irStages = data.stages.filter((stage) => Object.keys(stage.functions).length);

/** The stage before `stage` that has IR, or null. */
export function before(stage) {
  const index = irStages.indexOf(stage);
  return index > 0 ? irStages[index - 1] : null;
}

/** Whether a pass changed no function of the IR. */
export function changesNothing(stage) {
  const last = before(stage);
  if (stage.kind !== "pass" || !last) return false;
  const names = Object.keys(stage.functions);
  return names.length === Object.keys(last.functions).length &&
    names.every((name) => stage.functions[name] === last.functions[name]);
}

/** The text of a function in a stage; before phases are made, all of them are `main`. */
export function functionText(stage, name) {
  return textOf(stage.functions[name] ?? stage.functions.main ?? Object.values(stage.functions)[0]);
}

/** The ops of a function in a stage, as morendo/view/op_graph.py writes them. */
export async function opsOf(stage, name) {
  const number = stage.graphs[name] ?? stage.graphs.main ?? Object.values(stage.graphs)[0];
  return number === undefined ? [] : JSON.parse(await textOf(number));
}

/** The stage that has a file, such as NAME.py of a kernel, or undefined. */
export function stageOf(file) {
  return data.stages.find((stage) => file in stage.files);
}

/** Matrices by the names of their weights. */
export const matrixOf = new Map();
for (const matrix of data.weights) for (const name of matrix.names) matrixOf.set(name, matrix);

/** Layers' losses and ranges of groups as analyze-group-ranges reported them, by weight name. */
export const analysisOf = new Map();
for (const stage of data.stages)
  for (const [names, figures] of Object.entries(stage.figures ?? {}))
    if (figures.loss_2bit) for (const name of names.split(" + ")) analysisOf.set(name, figures);

/** The kernels that compute a variable of the last IR. */
export function kernelsOf(functionName, variable) {
  const [first, end] = data.steps[functionName]?.[variable] ?? [0, 0];
  return (data.calls[functionName] ?? []).slice(first, end);
}
