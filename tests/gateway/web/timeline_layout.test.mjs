import assert from "node:assert/strict";
import { test } from "node:test";

import { stateKind } from "../../../gateway/web/causes.js";
import { cleanCall } from "../../../gateway/web/clean.js";
import { ownSeconds, phasesOf, rangeOf, selectCalls, ticksOf } from "../../../gateway/web/timeline_layout.js";
import { rawCall } from "./objects.mjs";

const call = (id, fields) => cleanCall(rawCall(id, fields));

test("the phases of a call follow each other", () => {
  assert.deepEqual(phasesOf(call("a"), 999), [
    { cause: "inputs", begin: 100, end: 101 },
    { cause: "prompt", begin: 101, end: 102 },
    { cause: "answer", begin: 102, end: 104 },
  ]);
});

test("the time since the last report belongs to the present cause", () => {
  const fields = { state: "waiting", finished: null, waits_for: "tool", spent_ms: { inputs: 1000 } };
  assert.deepEqual(phasesOf(call("a", fields), 110), [
    { cause: "inputs", begin: 100, end: 101 },
    { cause: "tool", begin: 101, end: 110 },
  ]);
  const same = { ...fields, waits_for: "inputs" };
  assert.deepEqual(phasesOf(call("a", same), 110), [{ cause: "inputs", begin: 100, end: 110 }]);
});

test("durations that exceed the call are shortened in proportion", () => {
  assert.deepEqual(phasesOf(call("a", { spent_ms: { inputs: 6000, answer: -5, prompt: 2000 } }), 0), [
    { cause: "inputs", begin: 100, end: 103 },
    { cause: "prompt", begin: 103, end: 104 },
  ]);
  const [first, second, ...others] = phasesOf(call("a", { spent_ms: { inputs: 1e9, prompt: 1000 } }), 0);
  assert.deepEqual([first.cause, first.begin, second.cause, second.end], ["inputs", 100, "prompt", 104]);
  assert.ok(first.end < 104 && others.length === 0);
  assert.deepEqual(phasesOf(call("a", { created: null }), 5), []);
});

test("the range covers all calls", () => {
  assert.deepEqual(rangeOf([call("a"), call("b", { created: 90, finished: null })], 130), {
    begin: 90,
    end: 130,
  });
  assert.equal(rangeOf([], 5), null);
  assert.ok(rangeOf([call("a", { finished: 100 })], 100).end > 100);
});

test("a call's own time is without the wait for its inputs", () => {
  assert.equal(ownSeconds(call("a"), 0), 3);
});

test("ticks are round, few and cover the axis", () => {
  assert.deepEqual(ticksOf(10, 5), [0, 2, 4, 6, 8, 10]);
  for (const seconds of [0.001, 0.3, 7, 59, 3600, 1e6]) {
    const ticks = ticksOf(seconds, 8);
    assert.ok(ticks.length >= 3 && ticks.length <= 10, `${seconds}: ${ticks.length}`);
    assert.ok(ticks[ticks.length - 1] <= seconds * 1.001);
  }
  assert.deepEqual([ticksOf(0, 5), ticksOf(NaN, 5), ticksOf(5, 0)], [[], [], []]);
});

test("calls are found and sorted", () => {
  const calls = [
    call("short", { finished: 101 }),
    call("long"),
    call("bad", { state: "failed", error: { code: "boom" }, finished: 102 }),
  ];
  const names = (filter) =>
    selectCalls(calls, { text: "", kind: "", order: "start", ...filter }, stateKind, 0).map(({ id }) => id);
  assert.deepEqual(names({}), ["short", "long", "bad"]);
  assert.deepEqual(names({ order: "longest" }), ["long", "bad", "short"]);
  assert.deepEqual(names({ text: " BOOM " }), ["bad"]);
  assert.deepEqual(names({ kind: "failed" }), ["bad"]);
  assert.deepEqual(names({ text: "nothing" }), []);
});
