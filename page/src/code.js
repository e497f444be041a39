// The middle of the page: one text, or two side by side with their differences.

import { python } from "@codemirror/lang-python";
import {
  HighlightStyle, codeFolding, foldEffect, foldGutter, foldService, syntaxHighlighting, unfoldAll,
} from "@codemirror/language";
import { MergeView } from "@codemirror/merge";
import { highlightSelectionMatches, search, searchKeymap, openSearchPanel } from "@codemirror/search";
import { EditorState } from "@codemirror/state";
import { EditorView, drawSelection, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";

import { layerRanges, variableOf } from "./ir.js";

const colors = HighlightStyle.define([
  { tag: tags.string, color: "var(--string)" },
  { tag: [tags.number, tags.bool], color: "var(--number)" },
  { tag: tags.keyword, color: "var(--keyword)" },
  { tag: tags.comment, color: "var(--faint)" },
  { tag: [tags.function(tags.variableName), tags.propertyName], color: "var(--call)" },
]);

const layerFolds = foldService.of((state, start) => {
  const first = state.doc.lineAt(start).number;
  const range = layersOf(state).find((each) => each.first === first);
  return range ? { from: state.doc.line(first).to, to: state.doc.line(range.last).to } : null;
});

const known = new WeakMap();

function layersOf(state) {
  if (!known.has(state.doc)) known.set(state.doc, layerRanges(state.doc.toString().split("\n")));
  return known.get(state.doc);
}

/** @param lines what each line stands for in the whole text */
function extensions(language, lines, wrap, onLine) {
  return [
    wrap ? EditorView.lineWrapping : [],
    EditorState.readOnly.of(true),
    EditorView.editable.of(false),
    EditorView.contentAttributes.of({ tabindex: "0" }),
    lineNumbers(),
    foldGutter(),
    codeFolding({ placeholderText: " … " }),
    layerFolds,
    drawSelection(),
    highlightActiveLine(),
    highlightSelectionMatches(),
    search({ top: true }),
    keymap.of(searchKeymap),
    syntaxHighlighting(colors),
    language === "python" ? python() : [],
    EditorView.updateListener.of((update) => {
      if (!update.selectionSet) return;
      const line = update.state.doc.lineAt(update.state.selection.main.head);
      onLine(lines[line.number - 1] ?? "", line.text);
    }),
  ];
}

function goTo(view, number) {
  const at = view.state.doc.line(number + 1).from;
  view.dispatch({ selection: { anchor: at }, effects: EditorView.scrollIntoView(at, { y: "center" }) });
}

export class Code {
  /** @param parent element, @param onLine called with a clicked line of the whole text, and as it is shown */
  constructor(parent, onLine) {
    this.parent = parent;
    this.onLine = onLine;
    this.merge = null;
    this.view = null;
    this.lines = [];  // of the text, or of the one on the right
    this.wrap = true;
  }

  clear() {
    this.merge?.destroy();
    this.view?.destroy();
    this.merge = this.view = null;
    this.parent.replaceChildren();
  }

  /** Show one text: {text, lines}, see `shortFunction`. */
  single({ text, lines }, language) {
    this.clear();
    this.lines = lines;
    const state = EditorState.create({ doc: text, extensions: extensions(language, lines, this.wrap, this.onLine) });
    this.view = new EditorView({ state, parent: this.parent });
  }

  /** Show two texts side by side; `whole` does not hide what is equal. */
  pair(left, right, whole, syncLine) {
    this.clear();
    this.lines = right.lines;
    const side = (mine, theirs, other) => ({
      doc: mine.text,
      extensions: extensions("python", mine.lines, this.wrap, (line, shown) => {
        if (this.syncing) return;
        this.onLine(line, shown);
        if (syncLine) this.select(other(), theirs.lines, line);
      }),
    });
    this.merge = new MergeView({
      a: side(left, right, () => this.merge.b),
      b: side(right, left, () => this.merge.a),
      parent: this.parent,
      highlightChanges: true,
      gutter: true,
      collapseUnchanged: whole ? undefined : { margin: 2, minSize: 6 },
      diffConfig: { scanLimit: 2000, timeout: 800 },
    });
  }

  /** Put the cursor of the other side on the line with the same weight or layer. */
  select(view, lines, line) {
    const wanted = /"([^"]+\.weight[^"]*)"|layer=\d+/.exec(line)?.[0];
    const number = wanted ? lines.findIndex((each) => each.includes(wanted)) : -1;
    if (number < 0) return;
    this.syncing = true;
    goTo(view, number);
    this.syncing = false;
  }

  /** Select the line that defines a variable. */
  reveal(variable) {
    const number = this.lines.findIndex((line) => variableOf(line) === variable ||
      new RegExp(`^ *def .*\\b${variable}: R\\.`).test(line));
    if (number >= 0) goTo(this.views.at(-1), number);
  }

  get views() {
    return this.merge ? [this.merge.a, this.merge.b] : this.view ? [this.view] : [];
  }

  foldLayers() {
    for (const view of this.views) {
      const doc = view.state.doc;
      const effects = layersOf(view.state).map((range) =>
        foldEffect.of({ from: doc.line(range.first).to, to: doc.line(range.last).to }));
      view.dispatch({ effects });
    }
  }

  unfold() {
    this.views.forEach(unfoldAll);
  }

  find() {
    const view = this.views.at(-1);
    if (view) openSearchPanel(view);
  }
}

