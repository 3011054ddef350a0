/** The timeline: one row for each call, coloured by what it waited for. The calls of a form are below it, or folded. */

import { causeClass, causeName, isFinal, missName, stateKind, SIGNS } from "./causes.js";
import { fill, h, oncePerFrame, place, setAttribute, setText } from "./dom.js";
import { Folding, formKind, formProgress, formSummary, formsOf, outlineOf } from "./forms.js";
import { compact, duration, label, plural } from "./format.js";
import { causeLegend, toolButton } from "./legend.js";
import { phasesOf, rangeOf, selectCalls, ticksOf, timelineRows, wholeSeconds } from "./timeline_layout.js";
import { VirtualRows } from "./virtual_rows.js";

const KINDS = [
  ["", "all states"],
  ["waiting", "waiting"],
  ["running", "running"],
  ["done", "done"],
  ["failed", "failed"],
  ["cancelled", "cancelled"],
];
const LARGEST_ZOOM = 4_096;

/**
 * Return the view.
 *
 * @param {{ now: () => number, select: (target: { kind: string, key: string }) => void }} context
 */
export function timeline({ now, select }) {
  const filter = { text: "", kind: "", order: "start" };
  const zoom = { factor: 1, middle: 0.5 };
  const folding = new Folding();
  let state = null;
  let range = { begin: 0, end: 1 };

  const search = h("input", {
    type: "search",
    placeholder: "name, model, engine, error",
    "aria-label": "Find calls",
  });
  const kind = select_("State", KINDS);
  const order = select_("Order", [
    ["start", "by start"],
    ["longest", "longest first"],
  ]);
  search.addEventListener("input", () => change({ text: search.value }));
  kind.addEventListener("change", () => change({ kind: kind.value }));
  order.addEventListener("change", () => change({ order: order.value }));
  const found = h("span", { class: "note", role: "status" });
  const zoomBy = (factor, shift = 0) => {
    zoom.factor = Math.min(LARGEST_ZOOM, Math.max(1, zoom.factor * factor));
    const half = 0.5 / zoom.factor;
    zoom.middle = Math.min(1 - half, Math.max(half, zoom.middle + shift / zoom.factor));
    redraw();
  };
  const buttons = h(
    "div",
    { class: "buttons", role: "group", "aria-label": "Zoom" },
    toolButton("−", "Zoom out", () => zoomBy(0.5)),
    toolButton("+", "Zoom in", () => zoomBy(2)),
    toolButton("‹", "Earlier", () => zoomBy(1, -0.4)),
    toolButton("›", "Later", () => zoomBy(1, 0.4)),
    toolButton("Fit", "Show all of the time", () => zoomBy(1 / LARGEST_ZOOM)),
  );
  const foldAll = (isFolded) => {
    folding.setAll(!isFolded);
    redraw();
  };
  const foldButtons = h(
    "div",
    { class: "buttons", role: "group", "aria-label": "Forms" },
    toolButton("Fold all", "Fold each form into one row", () => foldAll(true)),
    toolButton("Unfold all", "Show a row for each call", () => foldAll(false)),
  );
  const axis = h("div", { class: "axis", "aria-hidden": "true" });
  const head = h(
    "div",
    { class: "row head", role: "row" },
    h("div", { role: "columnheader", class: "cell-name" }, "Call"),
    h("div", { role: "columnheader", class: "cell-bar", "aria-label": "Time" }, axis),
    h("div", { role: "columnheader", class: "cell-time number" }, "Duration"),
    h("div", { role: "columnheader", class: "cell-tokens" }, "Prompt tokens"),
  );
  const rows = new VirtualRows({
    name: "Timeline of calls",
    head,
    createRow: () => createRow(() => range, now),
    onOpen: ({ call }) => select({ kind: "call", key: call.id }),
    onToggle: (row, isUnfolded) => toggle(row, isUnfolded),
    keyOf: ({ call }) => call.id,
  });
  rows.element.classList.add("timeline");
  const element = h(
    "div",
    { class: "subview" },
    h("div", { class: "toolbar" }, search, kind, order, buttons, foldButtons, found),
    causeLegend(),
    rows.element,
  );

  const change = (values) => {
    Object.assign(filter, values);
    rows.element.scrollTop = 0;
    redraw();
  };
  /** Unfold or fold a form. Left on a row without a form folds the form around it. */
  const toggle = ({ call, form, isFolded }, isUnfolded) => {
    if (form !== null && (isUnfolded ?? isFolded) === isFolded) folding.set(form.key, isFolded);
    else if (isUnfolded === false && outline.inside.has(call.id)) {
      const outer = outline.inside.get(call.id);
      folding.set(outline.forms.get(outer).key, false);
      next = outer;
    }
    drawNow(); // not in the next frame: the next key would move in the rows of before
  };
  let outline = formsOf(new Map());
  /** Call whose row becomes active, because its row of now is folded. */
  let next = null;
  const drawNow = () => {
    if (state === null) return;
    const time = now();
    const whole = rangeOf(state.calls.values(), time) ?? { begin: time, end: time + 1 };
    const length = (whole.end - whole.begin) / zoom.factor;
    const begin = whole.begin + (whole.end - whole.begin) * zoom.middle - length / 2;
    range = { begin, end: begin + length };
    const chosen = selectCalls(state.calls.values(), filter, stateKind, time);
    outline = outlineOf(state);
    const isTree = filter.order === "start" && chosen.length === state.calls.size; // a search finds what is folded
    const items = isTree
      ? timelineRows(chosen, outline, (key, isSmall) => folding.isUnfolded(key, isSmall))
      : chosen.map((call) => ({ call, level: 1, form: null, isFolded: false }));
    setText(found, foundText(chosen.length, state.calls.size, items));
    foldButtons.hidden = outline.inside.size === 0;
    drawAxis(axis, begin - whole.begin, length);
    rows.setItems(items);
    if (next !== null) rows.activate(next);
    next = null;
  };
  const redraw = oncePerFrame(drawNow);
  return {
    element,
    update: (next) => {
      state = next;
      redraw();
    },
    activate: (key) => rows.activate(key),
    close: () => rows.close(),
  };
}

function foundText(chosen, total, items) {
  if (chosen < total) return `${chosen} of ${total} calls`;
  const folded = items.filter((row) => row.isFolded).length;
  return folded === 0 ? "" : `${plural(folded, "form")} folded`;
}

function select_(name, options) {
  return h("select", { "aria-label": name }, ...options.map(([value, text]) => h("option", { value }, text)));
}

/** Draw the ticks of the axis. `offset`: seconds from the session's beginning to the left end. */
function drawAxis(axis, offset, length) {
  const most = Math.max(2, Math.floor((axis.clientWidth || 600) / 90));
  const all = ticksOf(offset + length, most * Math.max(1, (offset + length) / length)).filter(
    (tick) => tick >= offset - length / 1e3 && tick <= offset + length * 0.93,
  );
  fill(
    axis,
    ...all.slice(0, 40).map((tick) => {
      const mark = h("span", { class: "tick" }, tick === 0 ? "0" : duration(tick));
      mark.style.left = `${((100 * (tick - offset)) / length).toFixed(3)}%`;
      return mark;
    }),
  );
}

function createRow(range, now) {
  const sign = h("span", { class: "sign", "aria-hidden": "true" });
  const name = h("span", { class: "name" });
  const arrow = h("span", { class: "row-toggle", "aria-hidden": "true" });
  const kindName = h("span", { class: "row-kind" });
  const nameCell = h("div", { role: "gridcell", class: "cell-name" }, arrow, sign, name, kindName);
  const bar = h("div", { role: "gridcell", class: "cell-bar" });
  const time = h("div", { role: "gridcell", class: "cell-time number" });
  const tokens = h("div", { role: "gridcell", class: "cell-tokens" });
  const element = h("div", { class: "row" }, nameCell, bar, time, tokens);
  const pieces = [];
  const update = ({ call, level, form, isFolded }) => {
    const end = now();
    const { begin, end: last } = range();
    const kind = form === null ? stateKind(call.state) : formKind(form);
    const what = call.tool ?? call.form ?? "";
    setAttribute(element, "class", `row state-${kind}${form === null ? "" : " form"}`);
    setAttribute(element, "aria-level", level);
    setAttribute(element, "aria-expanded", form === null ? null : isFolded ? "false" : "true");
    arrow.hidden = form === null;
    setText(arrow, isFolded ? "▸" : "▾");
    element.style.setProperty("--level", level - 1);
    setText(sign, SIGNS[kind]);
    setText(name, label(call.output || call.id, 80));
    setText(kindName, label(what, 60));
    const named = [call.output || call.id, what].filter((text) => text !== "").map((text) => label(text, 80));
    setAttribute(nameCell, "title", `${named.join(", ")} (${label(call.state, 20)})`);
    setAttribute(nameCell, "aria-label", `${named.join(", ")}, ${label(call.state, 20)}`);
    const phases = phasesOf(call, end);
    while (pieces.length < phases.length) {
      const piece = h("span");
      pieces.push(piece);
      bar.append(piece);
    }
    pieces.forEach((piece, index) => {
      const phase = phases[index];
      piece.hidden = phase === undefined || phase.end <= begin || phase.begin >= last;
      if (piece.hidden) return;
      const left = Math.max(0, (phase.begin - begin) / (last - begin));
      const right = Math.min(1, (phase.end - begin) / (last - begin));
      setAttribute(piece, "class", `phase ${causeClass(phase.cause)}`);
      place(piece, 100 * left, Math.max(100 * (right - left), 0.05));
    });
    const spent = phases.filter((phase) => phase.end - phase.begin > 0.0005);
    const words = spent.map((phase) => `${causeName(phase.cause)} ${duration(phase.end - phase.begin)}`);
    const waits = call.waitsFor === null ? "" : `, waits for ${causeName(call.waitsFor)}`;
    const summary = form === null ? "" : formSummary(form, causeName);
    setAttribute(bar, "aria-label", summary || (words.join(", ") || "no time yet") + waits);
    setAttribute(bar, "title", summary || words.join("\n"));
    setText(time, call.created === null ? "" : duration(wholeSeconds(call, end)));
    const text = form === null ? tokenText(call) : formText(form);
    setText(tokens, text);
    setAttribute(tokens, "title", summary || text);
  };
  return { element, update };
}

/** Return the progress of a form, its tokens and the worst cause of a wait. An error is shown instead. */
function formText(form) {
  if (form.call.state === "failed") return tokenText(form.call);
  const cause = isFinal(form.call.state) || form.cause === null ? "" : `, ${causeName(form.cause)}`;
  return `${formProgress(form)}, ${compact(form.tokens)} tokens${cause}`;
}

/** Return how many tokens of a prompt were cached, and why the others were not. An error is shown instead. */
export function tokenText(call) {
  if (call.error !== null && call.state !== "done")
    return label(`${call.error.code}: ${call.error.message}`, 160);
  if (call.promptTokens === 0) return "";
  const missed = Object.entries(call.missedTokens).sort((one, other) => other[1] - one[1]);
  const rest = Math.max(0, call.promptTokens - call.cachedTokens);
  const why =
    missed.length === 0 ? "" : `: ${missed.map(([reason]) => missName(label(reason, 40))).join(", ")}`;
  return `${compact(call.cachedTokens)} cached, ${compact(rest)} missed${rest > 0 ? why : ""}`;
}
