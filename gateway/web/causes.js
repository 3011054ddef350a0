/** The causes of waits and the states of calls: their order, names and explanations. Colours are in style.css. */

/** Causes of waits, in the order in which a call meets them. `key`: as in `spent_ms` and `waits_for` of the API. */
export const CAUSES = [
  { key: "inputs", name: "inputs", help: "waits for values of other calls" },
  {
    key: "tool",
    name: "tool or client",
    help: "a tool runs, or a client has to set a value, such as the result of a tool",
  },
  { key: "queue", name: "queue", help: "waits for an engine, or for room in its steps" },
  { key: "memory", name: "memory", help: "waits for memory of the engine's KV cache" },
  { key: "prompt", name: "prompt", help: "the engine prefills the prompt" },
  { key: "answer", name: "answer", help: "the engine generates the answer" },
];

const NAMES = new Map(CAUSES.map((cause) => [cause.key, cause.name]));

/** Return the class of a cause's colour. A newer server may send causes that this page does not know. */
export function causeClass(key) {
  return NAMES.has(key) ? `cause-${key}` : "cause-other";
}

/** Return the name of a cause; the key itself if a newer server sends one that this page does not know. */
export function causeName(key) {
  return NAMES.get(key) ?? key;
}

const FINAL = new Set(["done", "failed", "cancelled", "ready", "skipped", "deleted"]);

const RUNNING = new Set(["prefill", "decode", "running", "streaming"]);

/** Return whether a call or a variable in this state never changes again. */
export function isFinal(state) {
  return FINAL.has(state);
}

/** Return the class of states that look alike: `waiting`, `running`, `done`, `failed` or `cancelled`. */
export function stateKind(state) {
  if (state === "done" || state === "ready") return "done";
  if (state === "failed") return "failed";
  if (state === "cancelled" || state === "skipped" || state === "deleted") return "cancelled";
  if (RUNNING.has(state)) return "running";
  return "waiting";
}

/** Signs of the kinds of states, so that colour is never the only difference. */
export const SIGNS = { waiting: "○", running: "◐", done: "✓", failed: "✕", cancelled: "⊘" };

// a map, and not an object: a reason may be called "constructor"
const MISSES = new Map([
  ["never_seen", "not seen before"],
  ["diverged", "diverged from a cached prompt"],
  ["evicted", "evicted from the cache"],
  ["part_of_a_block", "part of a block"],
  ["sharing_off", "prefix sharing is off"],
]);

/** Return words for a reason why tokens were not cached. */
export function missName(reason) {
  return MISSES.get(reason) ?? reason.replaceAll("_", " ");
}
