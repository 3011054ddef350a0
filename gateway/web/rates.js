/** Figures of the overview from answers of `/v1/status`: differences between two of them, and shares. */

import { cleanList, cleanNumber, cleanNumbers, cleanText } from "./clean.js";

const MAX_ENGINES = 500;

/** Return the parts of a status that the page shows, checked. */
export function cleanStatus(value) {
  const counters = value?.counters ?? {};
  return {
    time: cleanNumber(value?.time),
    state: cleanText(value?.state, "unknown"),
    engines: cleanList(value?.engines, MAX_ENGINES)
      .filter((engine) => engine !== null && typeof engine === "object")
      .map((engine) => ({
        name: cleanText(engine.name),
        models: cleanList(engine.models, 100).map((model) => cleanText(model)),
        ready: engine.ready === true,
        load: cleanNumber(engine.load, 0),
        blocks: cleanNumber(engine.kv_blocks),
        used: cleanNumber(engine.kv_blocks_in_use),
        restarts: cleanNumber(engine.restarts, 0),
        stepSeconds: cleanNumber(engine.step_seconds),
        problem: cleanText(engine.problem, null),
      })),
    requests: cleanNumber(counters.requests, 0),
    calls: cleanNumbers(counters.calls),
    tokens: cleanNumbers(counters.tokens),
    missed: cleanNumbers(counters.missed_tokens),
    unfinished: cleanNumber(value?.unfinished, 0),
    waiting: cleanNumbers(value?.waiting),
  };
}

/**
 * Return the rates between two statuses, per second; null if there is no earlier one, or the server restarted between
 * them, so that its counters began anew.
 */
export function ratesBetween(earlier, later) {
  if (earlier === null || earlier.time === null || later.time === null) return null;
  const seconds = later.time - earlier.time;
  const requests = later.requests - earlier.requests;
  const tokens = (kind) => (later.tokens[kind] ?? 0) - (earlier.tokens[kind] ?? 0);
  if (!(seconds > 0) || requests < 0 || tokens("completion") < 0 || tokens("prompt") < 0) return null;
  return {
    requests: requests / seconds,
    completion: tokens("completion") / seconds,
    prompt: tokens("prompt") / seconds,
  };
}

/** Number of rates that are remembered. */
export const HISTORY = 60;

/** The latest rates, for the lines of the overview. */
export class RateHistory {
  requests = [];
  completion = [];
  /** Rates between the last two statuses, or null. */
  latest = null;

  /** Add the rates between two statuses. */
  add(now, earlier) {
    this.latest = ratesBetween(earlier, now);
    if (this.latest === null) return;
    for (const name of ["requests", "completion"]) {
      this[name].push(this.latest[name]);
      if (this[name].length > HISTORY) this[name].shift();
    }
  }
}
