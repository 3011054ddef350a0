import assert from "node:assert/strict";
import { test } from "node:test";

import {
  applyEvents,
  causeChain,
  emptyState,
  mergeGraph,
  stateOf,
  summarize,
} from "../../../gateway/web/session_state.js";
import { event, rawCall, rawGraph, rawVariable } from "./objects.mjs";

const running = { state: "decode", finished: null, waits_for: "answer" };

test("a snapshot and later events make the state", () => {
  const state = stateOf(rawGraph(5, [rawCall("a", running)], [rawVariable("a", { state: "streaming" })]));
  assert.equal(state.lastEventId, 5);
  const changed = applyEvents(state, [
    event(6, "call", { at: 110, id: "a", state: "done", output: "a", error: null }),
    event(7, "variable", { at: 110, name: "a", state: "ready", error: null }),
  ]);
  assert.ok(changed);
  const call = state.calls.get("a");
  assert.deepEqual([call.state, call.finished, call.waitsFor], ["done", 110, null]);
  assert.equal(state.variables.get("a").state, "ready");
  assert.deepEqual([state.lastEventId, state.events], [7, 2]);
});

test("events count once, also if a connection repeats them", () => {
  const state = stateOf(rawGraph(5, [rawCall("a", running)]));
  const events = [
    event(6, "call", { at: 1, id: "a", state: "done" }),
    event(8, "call", { at: 2, id: "b", state: "waiting", output: "b" }),
  ];
  applyEvents(state, events);
  applyEvents(state, events);
  applyEvents(state, [event(5, "call", { at: 0, id: "a", state: "queued" })]);
  assert.deepEqual([state.events, state.lastEventId, state.calls.get("a").state], [2, 8, "done"]);
});

test("a call that only events know is there until its figures arrive", () => {
  const state = emptyState();
  applyEvents(state, [event(1, "call", { at: 50, id: "x", state: "queued", output: "out" })]);
  const call = state.calls.get("x");
  assert.deepEqual([call.output, call.created, call.waitsFor, call.hasDetails], ["out", 50, "queue", false]);
  mergeGraph(state, rawGraph(1, [rawCall("x", { state: "queued", model: "big", finished: null })]));
  assert.deepEqual([state.calls.get("x").model, state.calls.get("x").hasDetails], ["big", true]);
});

test("a snapshot from before an event does not undo it", () => {
  const state = stateOf(rawGraph(5, [rawCall("a", running)]));
  applyEvents(state, [
    event(9, "call", { at: 120, id: "a", state: "failed", error: { code: "e", message: "m", call: "a" } }),
  ]);
  mergeGraph(state, rawGraph(7, [rawCall("a", running)]));
  const call = state.calls.get("a");
  assert.deepEqual([call.state, call.error.code, call.finished], ["failed", "e", 120]);
});

test("a snapshot that is ahead of the stream hides no event, and older events do not undo it", () => {
  const state = stateOf(rawGraph(5, [rawCall("a", running)], [rawVariable("v")]));
  mergeGraph(state, rawGraph(9, [rawCall("a")]));
  assert.equal(state.lastEventId, 5, "the stream still brings events 6 to 9");
  applyEvents(state, [
    event(6, "call", { at: 1, id: "a", state: "prefill" }),
    event(8, "variable", { at: 1, name: "v", state: "deleted" }),
  ]);
  assert.equal(state.calls.get("a").state, "done");
  assert.ok(!state.variables.has("v"), "a deletion is in no snapshot");
  assert.equal(state.events, 2);
});

test("a name that is used again survives the deletion of its first variable", () => {
  const state = stateOf(rawGraph(5, [], []));
  mergeGraph(state, rawGraph(9, [], [rawVariable("v", { state: "pending" })]));
  applyEvents(state, [event(7, "variable", { at: 1, name: "v", state: "deleted" })]);
  assert.ok(state.variables.has("v"));
});

test("after a lost connection the stream continues where it was", () => {
  const before = stateOf(rawGraph(5, [rawCall("a", running)]));
  applyEvents(before, [event(6, "call", { at: 1, id: "a", state: "decode" })]);
  const state = stateOf(rawGraph(9, [rawCall("a")]), before);
  assert.deepEqual([state.lastEventId, state.events, state.calls.get("a").state], [6, 1, "done"]);
});

test("a server that has lost its last events gives their ids to others", () => {
  const before = stateOf(rawGraph(20, [rawCall("a")]));
  const state = stateOf(rawGraph(12, [rawCall("a", running)]), before);
  assert.deepEqual([state.lastEventId, state.calls.get("a").state], [12, "decode"]);
  applyEvents(state, [event(13, "call", { at: 1, id: "a", state: "done" })]);
  assert.equal(state.calls.get("a").state, "done");
});

test("the session ends with its last event", () => {
  for (const how of ["deleted", "expired"]) {
    const state = emptyState();
    applyEvents(state, [event(1, "session", { at: 1, state: how })]);
    assert.equal(state.ended, how);
  }
});

test("garbage is counted and changes nothing", () => {
  const state = stateOf({
    last_event_id: "x",
    calls: [
      null,
      7,
      {},
      { id: 3 },
      rawCall("a", { inputs: "no", spent_ms: [1], missed_tokens: null, prompt_tokens: "9" }),
    ],
    variables: "no",
  });
  assert.deepEqual([...state.calls.keys()], ["a"]);
  assert.deepEqual(state.calls.get("a").inputs, []);
  assert.equal(state.calls.get("a").promptTokens, 0);
  applyEvents(state, [
    { id: null, event: "call", data: "{}" },
    { id: "x", event: "call", data: "{}" },
    { id: "3", event: "call", data: "{" },
    { id: "4", event: "call", data: "null" },
    { id: "5", event: "nonsense", data: "{}" },
    { id: "6", event: "call", data: '{"id": {}}' },
    { id: "99999999999999999999", event: "call", data: "{}" },
  ]);
  assert.equal(state.dropped, 4 + 7);
  for (const garbage of [null, 7, "x", [], undefined]) mergeGraph(emptyState(), garbage);
});

test("a hundred thousand events of a hundred thousand calls are bounded", () => {
  const state = emptyState();
  const events = [];
  for (let id = 1; id <= 100_000; id += 1)
    events.push(event(id, "call", { at: id, id: `call_${id}`, state: "queued", output: `o${id}` }));
  applyEvents(state, events);
  assert.deepEqual([state.calls.size, state.events, state.dropped], [20_000, 100_000, 80_000]);
});

test("a name like a property of objects is only a name", () => {
  const state = stateOf(
    rawGraph(
      1,
      [rawCall("__proto__", { output: "constructor", missed_tokens: JSON.parse('{"__proto__": 5}') })],
      [rawVariable("__proto__")],
    ),
  );
  assert.ok(state.calls.has("__proto__") && state.variables.has("__proto__"));
  assert.equal({}.polluted, undefined);
});

test("figures of a session", () => {
  const state = stateOf(
    rawGraph(1, [
      rawCall("a"),
      rawCall("b", { shared_with: "a" }),
      rawCall("c", { state: "prefill" }),
      rawCall("d", { state: "failed" }),
    ]),
  );
  const { total, done, running: active, failed, prompt } = summarize(state);
  assert.deepEqual([total, done, active, failed, prompt], [4, 2, 1, 1, 300]);
});

test("a failure leads to the first call that failed", () => {
  const upstream = { code: "upstream_failed", message: "a variable failed", call: "a" };
  const state = stateOf(
    rawGraph(1, [
      rawCall("a", { state: "failed", error: { code: "engine_refused", message: "why", call: "a" } }),
      rawCall("b", { state: "failed", inputs: ["ok", "a"], error: upstream }),
      rawCall("c", { state: "failed", inputs: ["b"], error: upstream }),
      rawCall("ok"),
    ]),
  );
  const ids = (id) => causeChain(state, state.calls.get(id)).map((call) => call.id);
  assert.deepEqual(ids("c"), ["c", "b", "a"]);
  assert.deepEqual(ids("a"), ["a"]);
});

test("a circle of failures ends", () => {
  const upstream = { code: "upstream_failed", message: "", call: null };
  const state = stateOf(
    rawGraph(1, [
      rawCall("a", { state: "failed", inputs: ["b"], error: upstream }),
      rawCall("b", { state: "failed", inputs: ["a"], error: upstream }),
    ]),
  );
  assert.equal(causeChain(state, state.calls.get("a")).length, 2);
});

test("states and reasons that are names of properties count as unknown ones", () => {
  const state = stateOf(
    rawGraph(1, [rawCall("a", { state: "constructor" }), rawCall("b", { state: "toString" })]),
  );
  assert.deepEqual([summarize(state).total, summarize(state).waiting], [2, 2]);
  applyEvents(state, [event(2, "call", { at: 1, id: "a", state: "valueOf" })]);
  assert.equal(state.calls.get("a").waitsFor, "inputs");
});
