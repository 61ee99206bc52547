// The page: a text on the left, what becomes of it on the right. Everything it shows is an answer of `einfuse._editor.page`.
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { bracketMatching } from "@codemirror/language";
import { lintGutter, lintKeymap, setDiagnostics } from "@codemirror/lint";
import { EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, WidgetType, drawSelection, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { colours } from "./colours.js";
import { drawTiles, drawWeights, element, seconds, short, table } from "./drawing.js";
import { explorer, packed, unpacked } from "./link.js";
import { ask, idle, onReady } from "./python.js";

const $ = (selector, inside = document) => inside.querySelector(selector);
const FIRST = "sliding_window";
const QUIET = 350; // ms without a key stroke until the text is fused as well
const state = { library: [], params: {}, name: null, tab: "tiles", stages: [], good: false };

// -- the editor ----------------------------------------------------------------------------------------------------------------------

class Ranks extends WidgetType {
  constructor(words) { super(); this.words = words; }
  eq(other) { return other.words === this.words; }
  toDOM() { return element("span", { class: "rank", "aria-hidden": "true" }, this.words); }
}
const setHints = StateEffect.define();
const hints = StateField.define({
  create: () => Decoration.none,
  update(value, change) {
    for (const e of change.effects) {
      if (e.is(setHints)) return Decoration.set(e.value.map((h) => Decoration.widget({ widget: new Ranks(h.words), side: 1 }).range(h.at)));
    }
    return value.map(change.changes);
  },
  provide: (field) => EditorView.decorations.from(field),
});

const editor = new EditorView({
  parent: $("#editor"),
  state: EditorState.create({
    extensions: [
      lineNumbers(), history(), drawSelection(), highlightActiveLine(), bracketMatching(), lintGutter(), hints, colours,
      EditorView.lineWrapping, EditorView.contentAttributes.of({ "aria-label": "Spec", spellcheck: "false" }),
      keymap.of([{ key: "Ctrl-Shift-f", run: () => (format(), true) }, ...defaultKeymap, ...historyKeymap, ...lintKeymap]),
      EditorView.updateListener.of((u) => u.docChanged && changed()),
    ],
  }),
});
const text = () => editor.state.doc.toString();
const write = (words) => editor.dispatch({ changes: { from: 0, to: editor.state.doc.length, insert: words } });

let pause = 0;
function changed() {
  remember();
  clearTimeout(pause);
  check(false);
  pause = setTimeout(() => check(true), QUIET);
}

// Offsets of Python count characters, those of CodeMirror UTF-16 units.
function units(words, characters) {
  let at = 0;
  for (const c of words) {
    if (characters-- <= 0) break;
    at += c.length;
  }
  return at;
}

async function check(fuse) {
  const words = text();
  const found = await ask("check", { text: words, fuse });
  if (!found || words !== text()) return;
  const place = (n) => Math.min(units(words, n), editor.state.doc.length);
  const apply = ({ start, stop, text: insert }) => editor.dispatch({ changes: { from: place(start), to: place(stop), insert } });
  const diagnostics = found.faults.map((f) => ({
    from: place(f.start), to: Math.max(place(f.stop), place(f.start)), severity: "error", message: f.hint ? `${f.message}\n${f.hint}` : f.message,
    actions: f.fix ? [{ name: f.fix.title, apply: () => apply(f.fix) }] : [],
  }));
  editor.dispatch(setDiagnostics(editor.state, diagnostics));
  editor.dispatch({ effects: setHints.of(found.hints.map((h) => ({ ...h, at: place(h.at) })).sort((a, b) => a.at - b.at)) });
  const lines = words.split("\n");
  $("#faults").replaceChildren(...found.faults.map((f) => {
    const line = lines[f.line - 1] ?? "";
    const caret = " ".repeat(f.column - 1) + "^".repeat(Math.max(1, Math.min(f.stop - f.start, line.length - f.column + 1)));
    const go = element("button", {}, `line ${f.line}, column ${f.column}`);
    go.onclick = () => { editor.dispatch({ selection: { anchor: place(f.start) }, scrollIntoView: true }); editor.focus(); };
    const item = element("li", {}, go, ` ${f.message}`, element("pre", { class: "caret" }, `${line}\n${caret}`));
    if (f.hint) item.append(element("div", { class: "hint" }, f.hint));
    if (f.fix) {
      const mend = element("button", { class: "fix" }, `Apply: ${f.fix.title}`);
      mend.onclick = () => apply(f.fix);
      item.append(mend);
    }
    return item;
  }));
  performance.mark("diagnostics");
  state.good = !found.faults.length;
  if (state.good) {
    $("#faults").append(element("li", { class: "good" }, fuse ? "No faults." : "No faults; fusing ..."));
    await describe(words);
    if (fuse) show();
  }
}

async function describe(words) {
  const found = await ask("about", { text: words, name: state.name });
  if (!found || found.error || words !== text()) return;
  $("#doc").textContent = found.doc;
  $("#which").hidden = found.attentions.length < 2;
  $("#attention").replaceChildren(...found.attentions.map((n) => element("option", n === found.name ? { selected: "" } : {}, n)));
  parameters(found.params);
}

async function format() {
  const words = text();
  const found = await ask("formatted", { text: words });
  if (found && !found.error && words === text() && found.text !== words) write(found.text);
}

// -- parameters and sizes --------------------------------------------------------------------------------------------------------------

let drawn = "";
function parameters(params) {
  const now = JSON.stringify(params);
  if (now === drawn) return;
  drawn = now;
  state.params = Object.fromEntries(params.filter((p) => p.name in state.params).map((p) => [p.name, state.params[p.name]]));
  $("#params").hidden = !params.length;
  $("#params").replaceChildren(element("legend", {}, "Parameters"), ...params.map(control));
}

function control(p) {
  const value = state.params[p.name] ?? p.default ?? (p.type === "int" ? 7 : p.type === "float" ? 0.5 : p.members[0] ?? true);
  if (p.default === null) state.params[p.name] = value;
  const set = (x) => { state.params[p.name] = x; show(); remember(); };
  if (p.type === "bool") {
    const box = element("input", { type: "checkbox", ...(value ? { checked: "" } : {}) });
    box.onchange = () => set(box.checked);
    return element("label", {}, box, ` ${p.name}`);
  }
  if (p.type === "enum") {
    const choice = element("select", {}, ...p.members.map((m) => element("option", m === value ? { selected: "" } : {}, m)));
    choice.onchange = () => set(choice.value);
    return element("label", {}, `${p.name} `, choice);
  }
  const whole = p.type === "int";
  const most = whole ? Math.max(16, 4 * Math.abs(value)) : Math.max(1, 3 * Math.abs(value));
  const least = value < 0 ? -most : 0;
  return slider(p.name, least, most, whole ? 1 : most / 100, value, (x) => set(whole ? Math.round(x) : x));
}

function slider(name, min, max, step, value, set, said = (x) => `${+x.toPrecision(3)}`.length > 6 ? x : +x.toPrecision(6)) {
  const shown = element("output", {}, String(said(value)));
  const input = element("input", { type: "range", min, max, step, value, name, "aria-label": name });
  input.oninput = () => { const x = Number(input.value); shown.textContent = said(x); set(x); };
  return element("label", { class: "slider" }, `${name} `, shown, input);
}

const sizes = { queries: 1024, keys: 1024, tile: 64, heads: 16 };
function sizeControls() {
  const power = (name, least, most) => slider(name, least, most, 1, Math.log2(sizes[name]), (x) => { sizes[name] = 2 ** x; show(); }, (x) => 2 ** x);
  $("#sizes").append(power("queries", 6, 13), power("keys", 6, 13), power("tile", 4, 8), power("heads", 0, 6));
}

// -- what becomes of it ------------------------------------------------------------------------------------------------------------------

const asked = () => ({ text: text(), name: state.name, params: state.params });
const VIEWS = {
  tiles: async () => {
    const found = await ask("tiles", { ...asked(), queries: sizes.queries, keys: sizes.keys, tile: sizes.tile });
    if (!found) return;
    drawTiles($("#tiles"), found);
    performance.mark("picture");
  },
  weights: async () => {
    const found = await ask("weights", asked());
    return found && drawWeights($("#weights"), found);
  },
  stages: async () => {
    const found = await ask("stages", asked());
    if (!found) return;
    state.stages = found.error ? [{ after: "-", text: found.error }] : found.stages;
    const input = $("#stages input");
    input.max = state.stages.length - 1;
    input.value = Math.min(Number(input.value), input.max);
    stage();
  },
  fused: async () => {
    const found = await ask("fused", asked());
    if (!found) return;
    if (found.error) return $("#fused .said").replaceChildren(element("p", { class: "error" }, found.error));
    $("#fused .said").replaceChildren(...found.passes.flatMap((r) => [
      element("p", {}, `Over ${r.rank}: ${r.counted}.`),
      ...(r.decisions.length ? [table(["statistic", "read by", "how", "with", "proof"], r.decisions.map((d) => [d.statistic, d.reader, d.how, d.with, d.proof]))] : []),
    ]), ...(found.passes.length ? [] : [element("p", {}, "No rank of queries or keys is folded.")]));
  },
  source: async () => {
    const found = await ask("source", { ...asked(), backend: $("#source select").value });
    if (!found) return;
    $("#source pre").textContent = found.error ?? found.text;
    $("#explore").hidden = !found.launched;
    if (found.launched) $("#explore").href = await explorer(found.launched);
  },
  cost: async () => {
    const found = await ask("cost", { ...asked(), queries: sizes.queries, keys: sizes.keys, heads: sizes.heads });
    if (!found) return;
    if (found.error) return $("#cost .said").replaceChildren(element("p", { class: "error" }, found.error));
    const devices = found.kernels.find((k) => !k.scan)?.bounds.map((b) => b.device) ?? [];
    const rows = found.kernels.map((k) => k.scan
      ? [k.kernel, "a scan: linear in the length, not counted here"]
      : [k.kernel, `${short(k.products)}F`, short(k.arithmetic), short(k.special), `${short(k.bytes)}B`, ...k.bounds.map((b) => `${seconds(b.seconds)}, ${b.resource}`)]);
    $("#cost .said").replaceChildren(
      table(["kernel", "products", "arithmetic", "special", "memory", ...devices], rows),
      element("p", { class: "hint" }, "Batch 1, 16-bit floats, features of 64. Times are the least that the named resource allows at its peak rate, not measurements."));
  },
};
function stage() {
  const found = state.stages[Number($("#stages input").value)];
  $("#stages output").textContent = found?.after ?? "";
  $("#stages pre").textContent = found?.text ?? "";
}

let shown = false;
async function show() {
  if (!state.good) return;
  const tab = state.tab;
  $("#busy").textContent = "...";
  await VIEWS[tab]();
  $("#busy").textContent = "";
  if (!shown) setTimeout(idle, 1000);
  shown = true;
}

function select(tab, focus = false) {
  state.tab = tab;
  for (const t of document.querySelectorAll("[role=tab]")) {
    const mine = t.getAttribute("aria-controls") === tab;
    t.setAttribute("aria-selected", mine);
    t.tabIndex = mine ? 0 : -1;
    if (mine && focus) t.focus();
    $(`#${t.getAttribute("aria-controls")}`).hidden = !mine;
  }
  $("#sizes").hidden = !["tiles", "cost"].includes(tab);
  show();
}

// -- links, themes, the picker -------------------------------------------------------------------------------------------------------------

async function remember() {
  const hash = await packed({ text: text(), params: state.params, name: state.name });
  window.history.replaceState(null, "", `#${hash}`);
}

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("#theme").textContent = dark ? "Light" : "Dark";
  $("#theme").setAttribute("aria-pressed", dark);
  show();
}

$("#theme").onclick = () => theme(!document.documentElement.classList.contains("dark"));
$("#format").onclick = format;
$("#share").onclick = async () => {
  await remember();
  const done = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  $("#share").textContent = done ? "Copied" : "In the address bar";
  setTimeout(() => ($("#share").textContent = "Share"), 2000);
};
$("#spec").onchange = () => {
  const found = state.library.find((s) => s.name === $("#spec").value.trim());
  if (found) { state.params = {}; state.name = null; drawn = ""; write(found.text); $("#spec").value = ""; }
};
$("#attention").onchange = () => { state.name = $("#attention").value; drawn = ""; describe(text()).then(show); };
$("#stages input").oninput = stage;
$("#source select").onchange = () => show();
for (const t of document.querySelectorAll("[role=tab]")) {
  t.onclick = () => select(t.getAttribute("aria-controls"));
  t.onkeydown = (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step) return;
    const every = [...document.querySelectorAll("[role=tab]")];
    select(every[(every.indexOf(t) + step + every.length) % every.length].getAttribute("aria-controls"), true);
  };
}

async function start() {
  theme(matchMedia("(prefers-color-scheme: dark)").matches);
  sizeControls();
  const shared = await unpacked(location.hash.slice(1));
  if (shared) {
    state.params = shared.params ?? {};
    state.name = shared.name ?? null;
    write(shared.text);
  }
  onReady(() => { $("#busy").textContent = ""; performance.mark("python"); });
  state.library = (await (await fetch("library.json")).json()).specs;
  $("#specs").replaceChildren(...state.library.map((s) => element("option", { value: s.name }, s.family)));
  if (!shared) write(state.library.find((s) => s.name === FIRST).text);
}
start();
