// Parts of the views that need no document.

import assert from "node:assert/strict";
import { test } from "node:test";

import { missName, stateKind } from "../../../gateway/web/causes.js";
import { cleanCall, cleanDifference, cleanLink, cleanProgram, cleanSession } from "../../../gateway/web/clean.js";
import { compact, percent } from "../../../gateway/web/format.js";
import { RateHistory, cleanStatus, ratesBetween } from "../../../gateway/web/rates.js";
import { figuresOf } from "../../../gateway/web/session_view.js";
import { stateOf, summarize } from "../../../gateway/web/session_state.js";
import { joinPrograms, selectSessions } from "../../../gateway/web/sessions.js";
import { linePoints } from "../../../gateway/web/sparkline.js";
import { tokenText } from "../../../gateway/web/timeline.js";
import { differenceText, followText } from "../../../gateway/web/value_panel.js";
import { usageRows } from "../../../gateway/web/usage_panel.js";
import { SHOWN, cutAt } from "../../../gateway/web/value_box.js";
import { receive } from "../../../gateway/web/value_stream.js";
import { rowsInView } from "../../../gateway/web/virtual_rows.js";
import { rawCall } from "./objects.mjs";

const status = (time, requests, completion) =>
  cleanStatus({ time, counters: { requests, tokens: { completion, prompt: 0 } } });

test("rates are differences of counters", () => {
  assert.deepEqual(ratesBetween(status(10, 100, 50), status(14, 108, 90)), {
    requests: 2,
    completion: 10,
    prompt: 0,
  });
  assert.equal(ratesBetween(null, status(1, 1, 1)), null);
  assert.equal(ratesBetween(status(10, 100, 50), status(12, 3, 0)), null, "the server has restarted");
  assert.equal(ratesBetween(status(10, 1, 1), status(10, 2, 2)), null, "no time has passed");
  const history = new RateHistory();
  for (let second = 1; second < 100; second += 1)
    history.add(status(second, second, 0), status(second - 1, second - 1, 0));
  assert.equal(history.requests.length, 60);
});

test("a status of garbage has the same parts", () => {
  for (const value of [
    null,
    7,
    "x",
    [],
    { engines: [null, 1, { name: 5, models: "m", kv_blocks: "9" }], counters: [], waiting: null },
  ]) {
    const cleaned = cleanStatus(value);
    assert.ok(Array.isArray(cleaned.engines));
    assert.equal(cleaned.requests, 0);
  }
});

test("points of a line stay in its box", () => {
  for (const values of [[], [0, 0], [1, 5, 3], [-1, 1e9]]) {
    for (const [x, y] of linePoints(values, 60, 100, 40)) assert.ok(x >= 0 && x <= 100 && y >= 0 && y <= 40);
  }
});

test("the rows in the document are few, whatever the number of rows", () => {
  const view = { height: 600, rowHeight: 30, rows: 10_000 };
  for (const scrollTop of [0, 15, 150_000, 299_400, 1e9]) {
    const { first, end } = rowsInView({ ...view, scrollTop });
    assert.ok(first >= 0 && end <= 10_000 && end >= first && end - first <= 40);
  }
  assert.deepEqual(rowsInView({ ...view, rows: 0, scrollTop: 0 }), { first: 0, end: 0 });
});

test("sessions are found by id, state and metadata", () => {
  const sessions = [
    { id: "old", state: "idle", created: 1, metadata: [["app", "Review"]] },
    { id: "new", state: "running", created: 2, metadata: [] },
  ];
  const ids = (text) => selectSessions(sessions, text).map(({ id }) => id);
  assert.deepEqual(ids(""), ["new", "old"]);
  assert.deepEqual(ids("APP=rev"), ["old"]);
  assert.deepEqual(ids("running"), ["new"]);
  assert.deepEqual(ids("x"), []);
});

test("programs join the sessions, without those of listed sessions", () => {
  const program = (id, session) =>
    cleanProgram({ id, session, state: "idle", created_at: 5, usage: { calls: 3, prompt_tokens: 7 } });
  const list = joinPrograms(
    [{ id: "s", kind: "session" }],
    [program("a", null), program("b", "s"), program("c", "gone")],
  );
  assert.deepEqual(
    list.map(({ id, kind }) => [id, kind]),
    [
      ["s", "session"],
      ["a", "program"],
      ["c", "program"],
    ],
  );
  const [, a] = list;
  assert.deepEqual([a.calls, a.prompt, a.shared, a.cost, a.created], [3, 7, 0, null, 5]);
  assert.deepEqual(selectSessions(list.slice(1), "IDLE").length, 2);
  assert.deepEqual(
    selectSessions(list.slice(1), "Gone").map(({ id }) => id),
    ["c"],
    "a program is found by its session",
  );
  for (const value of [null, 7, {}, { id: 5 }]) assert.equal(cleanProgram(value), null);
});

test("the tokens of a program are those of all its calls", () => {
  const raw = rawCall("a", { state: "done", prompt_tokens: 10, cached_tokens: 5, completion_tokens: 2 });
  const state = stateOf({ calls: [raw] });
  const figures = (session) => Object.fromEntries(figuresOf(state, summarize(state), session, 5));
  const program = cleanProgram({
    id: "p",
    usage: { calls: 900, prompt_tokens: 4_000, cached_tokens: 3_000, completion_tokens: 70 },
  });
  const shown = figures(program);
  assert.deepEqual(
    ["Calls", "Forgotten", "Prompt tokens", "Cached", "Generated"].map((name) => shown[name]),
    ["1 of 1 done", "899", compact(4_000), percent(0.75), compact(70)],
  );
  for (const session of [null, cleanSession({ id: "s", usage: { calls_run: 9, prompt_tokens: 4_000 } })]) {
    assert.equal(figures(session)["Prompt tokens"], compact(10));
    assert.equal(figures(session).Forgotten, undefined);
  }
});

test("links of a program say what follows what", () => {
  const link = cleanLink({ from: "a", to: "b", kind: "extends", gap_ms: 2_000, program: "p" });
  assert.deepEqual(link, { from: "a", to: "b", kind: "extends", gap: 2_000 });
  assert.match(followText(link, { output: "answer_a" }), /^extends answer_a, 2.* s later$/);
  assert.equal(followText({ ...link, gap: null }, { output: "answer_a" }), "extends answer_a");
  for (const value of [null, 5, {}, { from: "a", to: "b", kind: "x" }, { from: "a", kind: "answer" }])
    assert.equal(cleanLink(value), null);
});

test("usage is sorted by cost", () => {
  const rows = usageRows({
    data: [{ key: "a", calls: 9 }, { key: "b", calls: 1, cost: 2 }, null, { key: 7 }],
  });
  assert.deepEqual(
    rows.map(({ key }) => key),
    ["b", "a", "unknown"],
  );
  assert.deepEqual(usageRows(null), []);
});

test("the prompt's tokens are told with the reason, errors first", () => {
  const told = (fields) => tokenText(cleanCall(rawCall("a", fields)));
  assert.equal(told({}), "40 cached, 60 missed: not seen before");
  assert.equal(told({ cached_tokens: 100, missed_tokens: {} }), "100 cached, 0 missed");
  assert.equal(told({ prompt_tokens: 0 }), "");
  assert.equal(told({ state: "failed", error: { code: "boom", message: "why" } }), "boom: why");
  assert.equal(missName("new_reason"), "new reason");
  assert.equal(missName("constructor"), "constructor");
});

test("states of every kind, also unknown ones", () => {
  const kinds = [
    "waiting",
    "queued",
    "prefill",
    "decode",
    "done",
    "failed",
    "cancelled",
    "ready",
    "streaming",
    "pending",
    "new",
  ].map(stateKind);
  assert.deepEqual(kinds, [
    "waiting",
    "waiting",
    "running",
    "running",
    "done",
    "failed",
    "cancelled",
    "done",
    "running",
    "waiting",
    "waiting",
  ]);
});

test("a cut of a value splits no character", () => {
  assert.equal(cutAt("ab👩cd", 3), 2);
  assert.equal(cutAt("ab👩cd", 4), 4);
  assert.equal(cutAt("ab", 9), 2);
  assert.ok(SHOWN <= 20_000);
});

test("a value arrives in pieces, begins again, and ends", () => {
  const seen = [];
  const listener = {
    onText: (text) => seen.push(text),
    onRestart: () => seen.push("restart"),
    onEnd: (state, variable) => seen.push(`${state} ${variable?.value}`),
  };
  const event = (name, value) => ({ event: name, data: JSON.stringify(value) });
  assert.equal(
    receive(
      [event("delta", { text: "a" }), event("delta", { text: "b" }), event("delta", { text: 7 })],
      listener,
    ),
    false,
  );
  assert.equal(
    receive(
      [
        event("delta", { text: "x" }),
        event("restart", {}),
        event("delta", { text: "c" }),
        { event: "delta", data: "{" },
      ],
      listener,
    ),
    false,
  );
  assert.equal(
    receive(
      [event("delta", { text: "d" }), event("ready", { value: "cd" }), event("delta", { text: "e" })],
      listener,
    ),
    true,
  );
  assert.deepEqual(seen, ["ab", "restart", "c", "d", "ready cd"]);
});

test("a difference between prompts is a text, whatever it contains", () => {
  const raw = {
    call: "call_1",
    message: 0,
    role: "system",
    field: "content",
    offset: 9,
    earlier: "It is <b>10:15</b>",
    later: "It is <b>10:16</b>\u202e",
    spoiler: "date",
    lost_tokens: 2_000,
  };
  const { difference } = cleanCall(rawCall("a", { prompt_difference: raw }));
  const text = differenceText(difference);
  assert.equal(typeof text, "string");
  assert.match(text, /^date or time, message 0 \(system\), content: “It is <b>10:15<\/b>” became “It is <b>10:16/);
  assert.match(text, /\\u202e”, 2.000 tokens computed again$/);
  const other = { ...raw, message: null, role: "", field: "", spoiler: "constructor", lost_tokens: null };
  assert.equal(differenceText(cleanDifference(other)).slice(0, 14), "tools: “It is ");
  for (const value of [undefined, null, 5, {}, { call: 7 }]) assert.equal(cleanDifference(value), null);
  assert.equal(differenceText(cleanCall(rawCall("a")).difference), null);
  const garbage = cleanDifference({ call: "a", message: "x", role: {}, field: [], earlier: 1, lost_tokens: "y" });
  assert.equal(differenceText(garbage), "tools: “” became “”");
  const long = { ...raw, earlier: "x".repeat(5_000), later: "y".repeat(5_000) };
  assert.ok(differenceText(cleanDifference(long)).length <= 600);
});
