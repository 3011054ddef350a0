// Objects of the API for tests of the page's modules.

/** Return a call as `/graph` describes it. */
export function rawCall(id, fields = {}) {
  return {
    id,
    model: "m",
    state: "done",
    waiting_on: [],
    why: null,
    waits_for: null,
    inputs: [],
    output: id,
    slots: [],
    shared_with: null,
    objective: "latency",
    priority: 1,
    engine: "e",
    prompt_tokens: 100,
    cached_tokens: 40,
    missed_tokens: { never_seen: 60 },
    completion_tokens: 7,
    finish_reason: "stop",
    error: null,
    prefix_hashes: [],
    created: 100,
    queued: 101,
    started: 101,
    first_token: 102,
    finished: 104,
    spent_ms: { inputs: 1000, tool: 0, queue: 0, memory: 0, prompt: 1000, answer: 2000 },
    ...fields,
  };
}

/** Return a variable as `/graph` describes it. */
export function rawVariable(name, fields = {}) {
  return { name, state: "ready", value: null, error: null, producer: null, consumers: [], ...fields };
}

/** Return an event of `/events`. */
export function event(id, kind, data) {
  return { id: String(id), event: kind, data: JSON.stringify(data) };
}

/** Return the answer of `/graph`. */
export function rawGraph(last, calls, variables = []) {
  return { last_event_id: last, calls, variables, edges: [] };
}
