// The feed of a program: snapshots that replace each other.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError } from "../../../gateway/web/api.js";
import { ALWAYS_THERE } from "../../../gateway/web/presence.js";
import { ProgramFeed, programState } from "../../../gateway/web/program_feed.js";
import { rawCall, rawVariable } from "./objects.mjs";

const graph = (fields = {}) => ({
  id: "prog_1",
  state: "idle",
  usage: { calls: 2 },
  last_event_id: 0,
  calls: [rawCall("a"), rawCall("b", { inputs: ["a"] })],
  variables: [rawVariable("a", { producer: "a", consumers: ["b"] }), rawVariable("b", { producer: "b" })],
  links: [{ from: "a", to: "b", kind: "answer", characters: 50, gap_ms: 10, program: "prog_1" }],
  ...fields,
});

/** Follow answers until the connection has this state. */
function follow(answers, until) {
  const asked = [];
  const api = {
    get: async (parts) => {
      asked.push(parts.join("/"));
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return answer;
    },
  };
  return new Promise((resolve) => {
    const feed = new ProgramFeed(api, ALWAYS_THERE, "prog_1", () => {
      if (feed.connection !== until) return;
      feed.stop();
      resolve({ feed, asked });
    });
    feed.start();
  });
}

test("a program has the state of a session, and links", () => {
  const state = programState(graph());
  assert.deepEqual([...state.calls.keys()], ["a", "b"]);
  assert.deepEqual(state.calls.get("b").links, [{ from: "a", to: "b", kind: "answer", gap: 10 }]);
  assert.deepEqual(state.calls.get("a").links, []);
  const next = programState(graph({ calls: [rawCall("a")], links: [null, { kind: "answer" }] }), state);
  assert.equal(next.calls.size, 1, "a forgotten call disappears");
  assert.equal(next.dropped, 2);
  assert.ok(next.version > state.version);
});

test("what cannot be understood counts once, however often a program is loaded", () => {
  const bad = graph({ calls: [rawCall("a"), null], links: [null, { kind: "answer" }] });
  let state = programState(bad);
  for (let load = 0; load < 5; load += 1) state = programState(bad, state);
  assert.equal(state.dropped, 3);
  assert.equal(programState(graph(), state).dropped, 0);
});

test("garbage is a program without calls", () => {
  for (const value of [null, 5, {}, { calls: "x", links: { a: 1 } }])
    assert.equal(programState(value).calls.size, 0);
});

test("a feed loads its program", async () => {
  const { feed, asked } = await follow([graph()], "live");
  assert.deepEqual(asked, ["programs/prog_1"]);
  assert.equal(feed.state.calls.size, 2);
  assert.equal(feed.described.calls, 2);
});

test("a feed ends when the program is forgotten", async () => {
  const gone = new ApiError(404, "program_not_found", "there is no program");
  const { feed } = await follow([graph({ state: "running" }), gone], "ended");
  assert.equal(feed.state.ended, "forgotten");
  assert.equal(feed.state.calls.size, 2, "its last state stays");
});

test("a program that never was is an error, and a lost connection is none", async () => {
  const gone = new ApiError(404, "program_not_found", "there is no program");
  const { feed } = await follow([gone], "failed");
  assert.equal(feed.error, gone);
  const lost = new ApiError(0, "unreachable", "the server does not answer");
  const { feed: again, asked } = await follow([lost, graph()], "live");
  assert.equal(asked.length, 2);
  assert.equal(again.error, null);
});
