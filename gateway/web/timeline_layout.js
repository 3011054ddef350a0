/** Compute the timeline of a session: which cause each call waited for, and when. Nothing here knows the document. */

import { CAUSES, isFinal } from "./causes.js";

/**
 * Return the phases of a call in the order of time, as seconds of the Unix clock.
 *
 * The API reports durations. Their order is that of `CAUSES`; the time since the last report belongs to the cause of
 * the present wait. The durations and the times of beginning and end come from two clocks: where the durations are
 * longer than the call, all are shortened in proportion, so that the last cause does not vanish.
 *
 * @param {any} call
 * @param {number} now Time of the server.
 * @returns {{ cause: string, begin: number, end: number }[]}
 */
export function phasesOf(call, now) {
  if (call.created === null) return [];
  const end = Math.max(call.created, call.finished ?? now);
  const spent = CAUSES.map(({ key }) => ({ cause: key, seconds: Math.max(0, (call.spent[key] ?? 0) / 1e3) }));
  const total = spent.reduce((sum, { seconds }) => sum + seconds, 0);
  const scale = Math.min(1, (end - call.created) / Math.max(total, Number.MIN_VALUE));
  const phases = [];
  let position = call.created;
  for (const { cause, seconds } of spent) {
    const next = Math.min(end, position + seconds * scale);
    if (next > position) phases.push({ cause, begin: position, end: next });
    position = next;
  }
  if (!isFinal(call.state) && end > position) {
    const cause = call.waitsFor ?? "inputs";
    const last = phases[phases.length - 1];
    if (last?.cause === cause) last.end = end;
    else phases.push({ cause, begin: position, end });
  }
  return phases;
}

/**
 * Return the first and the last moment of the calls; null if there is none.
 *
 * @param {Iterable<any>} calls
 * @param {number} now
 */
export function rangeOf(calls, now) {
  let begin = Infinity;
  let end = -Infinity;
  for (const call of calls) {
    if (call.created === null) continue;
    begin = Math.min(begin, call.created);
    end = Math.max(end, call.finished ?? now, call.created);
  }
  return begin <= end ? { begin, end: Math.max(end, begin + 0.001) } : null;
}

/** Return how long a call has spent on its own work, in seconds: without the wait for values that it reads. */
export function ownSeconds(call, now) {
  let seconds = 0;
  for (const { cause, begin, end } of phasesOf(call, now)) {
    if (cause !== "inputs" && (cause !== "tool" || call.form === "tool")) seconds += end - begin;
  }
  return seconds;
}

/** Return for how long a call exists, in seconds, up to its end. */
export function wholeSeconds(call, now) {
  return call.created === null ? 0 : Math.max(0, (call.finished ?? now) - call.created);
}

/**
 * Return the rows of the timeline: each call, and below a form that is unfolded its calls.
 *
 * @param {Iterable<any>} calls In the order in which they joined.
 * @param {ReturnType<typeof import("./forms.js").formsOf>} outline
 * @param {(key: string, isSmall: boolean) => boolean} isUnfolded
 * @returns {{ call: any, level: number, form: any, isFolded: boolean }[]} `form`: null if the call has no calls inside.
 */
export function timelineRows(calls, { forms, inside }, isUnfolded) {
  const rows = [];
  const stack = [];
  for (const outer of calls) {
    if (inside.has(outer.id)) continue; // its form has a row
    stack.push({ call: outer, level: 1 });
    while (stack.length > 0) {
      const { call, level } = stack.pop();
      const form = forms.get(call.id);
      const hasCalls = form !== undefined && form.children.length > 0;
      const isFolded = hasCalls && !isUnfolded(form.key, form.isSmall);
      rows.push({ call, level, form: hasCalls ? form : null, isFolded });
      if (!hasCalls || isFolded) continue;
      for (let index = form.children.length - 1; index >= 0; index -= 1)
        stack.push({ call: form.children[index], level: level + 1 });
    }
  }
  return rows;
}

/**
 * Return round times for the axis, in seconds from its beginning.
 *
 * @param {number} seconds Length of the axis.
 * @param {number} most Largest number of ticks.
 */
export function ticksOf(seconds, most) {
  if (!(seconds > 0) || most < 1) return [];
  const rough = seconds / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const ticks = [];
  for (let index = 0; index * step <= seconds * 1.0001; index += 1) ticks.push(index * step);
  return ticks;
}

/**
 * Return the calls to show, in their order.
 *
 * @param {Iterable<any>} calls
 * @param {{ text: string, kind: string, order: string }} filter `kind`: a kind of state, or "" for all. `order`:
 *   `start`, `longest` or `state`.
 * @param {(state: string) => string} kindOf
 * @param {number} now
 */
export function selectCalls(calls, filter, kindOf, now) {
  const text = filter.text.trim().toLowerCase();
  const chosen = [];
  for (const call of calls) {
    if (filter.kind !== "" && kindOf(call.state) !== filter.kind) continue;
    if (text !== "" && !matches(call, text)) continue;
    chosen.push(call);
  }
  if (filter.order === "longest") {
    const length = (call) => (call.created === null ? 0 : (call.finished ?? now) - call.created);
    chosen.sort((one, other) => length(other) - length(one));
  }
  return chosen;
}

function matches(call, text) {
  const { output, id, model, engine, error, form, tool } = call;
  return [output, id, model, engine ?? "", error?.code ?? "", form ?? "", tool ?? ""].some((field) =>
    field.toLowerCase().includes(text),
  );
}
