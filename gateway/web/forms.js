/**
 * The forms of a session: calls that add calls. Sums of what is inside each, and which forms are folded.
 *
 * Nothing here knows the document. All functions are linear in the number of calls.
 */

import { isFinal, stateKind } from "./causes.js";
import { compact, plural } from "./format.js";

/** Largest number of calls of a form that is unfolded unless the reader folds it. */
const SMALL = 8;
/** Largest number of forms inside each other. The server's limit is 8. */
const MOST_LEVELS = 16;
/** Causes of waits, the worst first. Calls that wait for other calls of the form say least. */
const WORST = ["memory", "queue", "tool", "prompt", "answer", "inputs"];

/** Return whether a call is a form that adds calls. A run of a tool is a form of the API that adds none. */
export function isForm(call) {
  return call.form !== null && call.form !== "tool";
}

/**
 * Return the forms by the id of their call, and the id of the form that each call is inside of.
 *
 * A call belongs to a form that joined before it. So no data of a server makes forms that contain each other.
 *
 * @param {Map<string, any>} calls In the order in which they joined.
 * @returns {{ forms: Map<string, Form>, inside: Map<string, string> }}
 *
 * @typedef {{ call: any, key: string, level: number, children: any[], total: number, isSmall: boolean,
 *   states: Record<string, number>, tokens: number, cause: string | null }} Form `level`: 1 for a form in no other.
 *   `children`: the calls that it has added. `total`, `states`, `tokens`, `cause`: number of the calls inside, their states, the sum of their tokens, and
 *   the worst cause of a wait. Forms inside count with their calls. `key`: for `Folding`.
 */
export function formsOf(calls) {
  const forms = new Map();
  const inside = new Map();
  const ordered = [];
  for (const call of calls.values()) {
    const outer = call.parent === null ? undefined : forms.get(call.parent);
    const parent = outer !== undefined && outer.level < MOST_LEVELS ? call.parent : null;
    if (isForm(call)) {
      const states = { waiting: 0, running: 0, done: 0, failed: 0, cancelled: 0 };
      const sums = { total: 0, isSmall: true, states, tokens: 0, cause: null };
      forms.set(call.id, { call, key: `form ${call.id}`, level: parent === null ? 1 : outer.level + 1, children: [], ...sums });
    }
    if (parent !== null) {
      inside.set(call.id, parent);
      ordered.push(call);
      forms.get(parent).children.push(call);
    }
  }
  for (let index = ordered.length - 1; index >= 0; index -= 1) {
    const call = ordered[index]; // calls inside it have been added to its sums
    addTo(forms.get(call.parent), call, forms.get(call.id));
  }
  for (const form of forms.values()) form.isSmall = form.total <= SMALL;
  return { forms, inside };
}

const outlines = new WeakMap();

/** Return `formsOf` the calls of a state. It is computed once for each version of the state. */
export function outlineOf(state) {
  const known = outlines.get(state);
  if (known !== undefined && known.version === state.version) return known.outline;
  const outline = formsOf(state.calls);
  outlines.set(state, { version: state.version, outline });
  return outline;
}

function addTo(outer, call, form) {
  if (form !== undefined && form.children.length > 0) {
    outer.total += form.total;
    outer.tokens += form.tokens;
    for (const kind of Object.keys(form.states)) outer.states[kind] += form.states[kind];
    outer.cause = worse(outer.cause, form.cause);
    return;
  }
  outer.total += 1;
  outer.states[stateKind(call.state)] += 1;
  if (form === undefined && call.sharedWith === null) outer.tokens += call.promptTokens + call.completionTokens;
  if (!isFinal(call.state)) outer.cause = worse(outer.cause, call.waitsFor ?? "inputs");
}

function worse(one, other) {
  if (one === null || other === null) return one ?? other;
  return WORST.indexOf(other) < WORST.indexOf(one) ? other : one;
}

/** Return how far a form is, in a few words. */
export function formProgress({ call, children, total, states }) {
  if (call.form === "agent") {
    const turns = children.filter((child) => child.form !== "tool" && child.model !== "").length;
    return `${plural(turns, "turn")}, ${plural(children.length - turns, "tool call")}`;
  }
  if (call.form === "repeat") return `round ${roundOf(children)}, ${states.done}/${total}`;
  if (call.form !== "map") return `${states.done}/${total} done`;
  const done = children.filter((child) => child.state === "done").length;
  return `${done}/${children.length} done`;
}

/** Return the number of the latest round of a repeat, which the names of its variables have: `draft@2`. */
function roundOf(children) {
  let latest = 0;
  for (const { output } of children) {
    const found = /@([0-9]{1,6})$/.exec(output);
    if (found !== null) latest = Math.max(latest, Number(found[1]));
  }
  return latest;
}

/** Return the progress, the calls by state, the tokens and the worst cause of a wait of a form, for a sentence. */
export function formSummary(form, causeName) {
  const kinds = Object.entries(form.states).filter(([, number]) => number > 0);
  const states = kinds.map(([kind, number]) => `${number} ${kind}`).join(", ");
  const cause = isFinal(form.call.state) || form.cause === null ? "" : `, waits for ${causeName(form.cause)}`;
  return `${formProgress(form)}; ${plural(form.total, "call")}${states === "" ? "" : `: ${states}`}; ${compact(form.tokens)} tokens${cause}`;
}

/** Return the kind of state that a form shows: failures of its calls may be no failure of the form. */
export function formKind({ call, states }) {
  if (isFinal(call.state)) return stateKind(call.state);
  return states.running > 0 ? "running" : "waiting";
}

/** What a reader has folded and unfolded. Forms and groups have keys. */
export class Folding {
  #choices = new Map();
  /** Whether all are unfolded, or all folded; null before the reader has chosen. */
  #all = null;

  /** Return whether something is unfolded. `isSmall`: whether it is, unless the reader chooses. */
  isUnfolded(key, isSmall = false) {
    return this.#choices.get(key) ?? this.#all ?? isSmall;
  }

  /** Fold or unfold one form or group. */
  set(key, isUnfolded) {
    this.#choices.set(key, isUnfolded);
  }

  /** Fold or unfold everything. */
  setAll(isUnfolded) {
    this.#choices.clear();
    this.#all = isUnfolded;
  }
}
