/**
 * State of one session: its calls and variables, from snapshots (`/graph`) and events (`/events`).
 *
 * A snapshot has all figures and becomes old; events are exact about states and have nothing else. So a state that an
 * event brought wins over a snapshot that was made before the event.
 *
 * The functions change the state in place and raise `version`: copies of maps with 10,000 calls for each event would
 * cost more than all other work of the page.
 */

import { isFinal, stateKind } from "./causes.js";
import { isForm } from "./forms.js";
import { cleanCall, cleanError, cleanList, cleanNumber, cleanText, cleanVariable } from "./clean.js";

/** Largest number of calls and of variables that the page holds. The server's limits are 10,000 and 20,000. */
export const MAX_CALLS = 20_000;
const MAX_VARIABLES = 40_000;

/** Return the state of a session of which nothing is known yet. */
export function emptyState() {
  return {
    /** @type {Map<string, any>} Calls by id, in the order in which they joined. */
    calls: new Map(),
    /** @type {Map<string, any>} Variables by name. */
    variables: new Map(),
    /** Id of the latest event that the state includes. */
    lastEventId: 0,
    /** Id of the latest event of which all figures were loaded. */
    detailsId: 0,
    /** Number of events that were applied. */
    events: 0,
    /** Number of events and objects that could not be understood, or exceeded a limit. */
    dropped: 0,
    /** How the session ended: `deleted`, `expired`, or null. */
    ended: null,
    /** Raised with every change. */
    version: 0,
  };
}

/**
 * Merge a snapshot into the state. It does not move `lastEventId`: the stream brings the events up to the snapshot as
 * well, and some of them, such as the deletion of a variable, are not in a snapshot.
 *
 * @param {ReturnType<typeof emptyState>} state
 * @param {any} graph Answer of `/graph`; with `after`, it has only what changed.
 */
export function mergeGraph(state, graph) {
  const id = cleanNumber(graph?.last_event_id, 0);
  for (const raw of cleanList(graph?.calls, MAX_CALLS)) {
    const call = cleanCall(raw);
    if (call === null || (state.calls.size >= MAX_CALLS && !state.calls.has(call.id))) state.dropped += 1;
    else mergeCall(state, call, id);
  }
  for (const raw of cleanList(graph?.variables, MAX_VARIABLES)) {
    const variable = cleanVariable(raw);
    if (variable === null || (state.variables.size >= MAX_VARIABLES && !state.variables.has(variable.name))) {
      state.dropped += 1;
    } else mergeVariable(state, variable, id);
  }
  state.detailsId = Math.max(state.detailsId, id);
  state.version += 1;
}

/**
 * Return a new state from a whole snapshot.
 *
 * @param {any} graph
 * @param {ReturnType<typeof emptyState> | null} before State before the connection was lost. Its events are not counted
 *   again. A server whose machine crashed may have lost its last events, and give their ids to others; then the stream
 *   continues after the server's last event.
 */
export function stateOf(graph, before = null) {
  const state = emptyState();
  mergeGraph(state, graph);
  state.lastEventId = before === null ? state.detailsId : Math.min(before.lastEventId, state.detailsId);
  if (before !== null) {
    state.events = before.events;
    state.dropped = Math.max(before.dropped, state.dropped); // a snapshot has most of the same objects again
    state.version = before.version + 1;
    for (const call of state.calls.values()) {
      const known = before.calls.get(call.id);
      if (known?.state === call.state) call.since = known.since;
    }
  }
  return state;
}

function mergeCall(state, call, id) {
  const known = state.calls.get(call.id);
  call.eventId = Math.max(id, known?.eventId ?? 0);
  call.since = known !== undefined && known.state === call.state ? known.since : null;
  if (known !== undefined && known.eventId > id && known.state !== call.state) {
    call.state = known.state;
    call.error = known.error;
    call.since = known.since;
    if (isFinal(known.state)) call.finished = known.finished;
  }
  call.hasDetails = true;
  state.calls.set(call.id, call);
}

function mergeVariable(state, variable, id) {
  const known = state.variables.get(variable.name);
  variable.eventId = Math.max(id, known?.eventId ?? 0);
  if (known !== undefined && known.eventId > id) {
    variable.state = known.state;
    variable.error = known.error;
  }
  state.variables.set(variable.name, variable);
}

/**
 * Apply events in order. Events that the state includes already change nothing, so no event counts twice.
 *
 * @param {ReturnType<typeof emptyState>} state
 * @param {{ event: string, id: string | null, data: string }[]} events
 * @returns {boolean} Whether figures have to be loaded, because calls have changed.
 */
export function applyEvents(state, events) {
  let needsDetails = false;
  for (const { event, id, data } of events) {
    const number = id !== null && /^[0-9]{1,16}$/.test(id) ? Number(id) : null;
    if (number === null) {
      state.dropped += 1;
      continue;
    }
    if (number <= state.lastEventId) continue;
    state.lastEventId = number;
    state.events += 1;
    const change = parse(data);
    if (change === null) state.dropped += 1;
    else needsDetails = apply(state, event, number, change) || needsDetails;
  }
  state.version += 1;
  return needsDetails;
}

function parse(data) {
  try {
    const value = JSON.parse(data);
    return value !== null && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function apply(state, event, id, change) {
  if (event === "session") {
    state.ended = cleanText(change.state, "deleted") || "deleted";
    return false;
  }
  if (event === "call" && cleanText(change.id) !== "") return applyCall(state, id, change);
  if (event === "variable" && cleanText(change.name) !== "") return applyVariable(state, id, change);
  state.dropped += 1;
  return false;
}

function applyCall(state, id, change) {
  const key = cleanText(change.id);
  let call = state.calls.get(key);
  if (call === undefined) {
    if (state.calls.size >= MAX_CALLS) {
      state.dropped += 1;
      return false;
    }
    const { output, form, parent, at: created } = change;
    call = { ...cleanCall({ id: key, output, form, parent, created }), hasDetails: false };
    state.calls.set(key, call);
  } else if (call.eventId >= id) return false; // a snapshot included it
  call.state = cleanText(change.state, call.state);
  call.error = cleanError(change.error) ?? call.error;
  call.since = cleanNumber(change.at);
  call.eventId = id;
  if (isFinal(call.state)) {
    call.finished = call.since;
    call.waitsFor = null;
    call.why = null;
    call.waitingOn = [];
  } else {
    call.finished = null;
    call.waitsFor = CAUSE_OF.get(call.state) ?? (call.waitsFor === "tool" ? "tool" : "inputs");
  }
  return true;
}

const CAUSE_OF = new Map([
  ["queued", "queue"],
  ["prefill", "prompt"],
  ["decode", "answer"],
  ["running", "tool"],
]);

function applyVariable(state, id, change) {
  const name = cleanText(change.name);
  const known = state.variables.get(name);
  if (change.state === "deleted") {
    // a snapshot may have brought a later variable of this name
    if (known !== undefined && known.eventId < id) state.variables.delete(name);
    return false;
  }
  const variable = known ?? cleanVariable({ name });
  if (known === undefined) {
    if (state.variables.size >= MAX_VARIABLES) {
      state.dropped += 1;
      return false;
    }
    state.variables.set(name, variable);
  } else if (variable.eventId >= id) return false;
  variable.state = cleanText(change.state, variable.state);
  variable.error = cleanError(change.error) ?? variable.error;
  variable.eventId = id;
  return known === undefined || isFinal(variable.state);
}

/** Return the numbers of calls by kind of state, and the tokens of all calls. */
export function summarize(state) {
  const summary = {
    total: 0,
    tools: 0,
    waiting: 0,
    running: 0,
    done: 0,
    failed: 0,
    cancelled: 0,
    prompt: 0,
    cached: 0,
    completion: 0,
  };
  for (const call of state.calls.values()) {
    summary.total += 1;
    if (call.form === "tool") summary.tools += 1;
    summary[stateKind(call.state)] += 1;
    // the tokens of a form are those of its calls
    if (call.sharedWith === null && !isForm(call)) {
      summary.prompt += call.promptTokens;
      summary.cached += call.cachedTokens;
      summary.completion += call.completionTokens;
    }
  }
  return summary;
}

/**
 * Return the chain from a failed call to the first call that failed, the call itself first.
 *
 * @param {ReturnType<typeof emptyState>} state
 * @param {any} call
 * @returns {any[]}
 */
export function causeChain(state, call) {
  const chain = [call];
  const seen = new Set([call.id]);
  const producers = producersOf(state);
  for (;;) {
    const last = chain[chain.length - 1];
    const failed = last.inputs
      .map((name) => producers.get(name))
      .find((producer) => producer !== undefined && !seen.has(producer.id) && isBroken(producer));
    if (last.error?.code !== "upstream_failed" || failed === undefined) break;
    chain.push(failed);
    seen.add(failed.id);
  }
  const first = chain[chain.length - 1].error?.call ?? null;
  if (first !== null && !seen.has(first) && state.calls.has(first)) chain.push(state.calls.get(first));
  return chain;
}

function isBroken(call) {
  return call.state === "failed" || call.state === "cancelled";
}

/** Return the call that produces each variable, by the variable's name. */
export function producersOf(state) {
  const producers = new Map();
  for (const call of state.calls.values()) {
    producers.set(call.output, call);
    for (const slot of call.slots) producers.set(slot, call);
  }
  return producers;
}
