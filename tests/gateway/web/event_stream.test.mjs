import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError } from "../../../gateway/web/api.js";
import { EventParser, EventTooLarge, follow, pauseAfter } from "../../../gateway/web/event_stream.js";

const STREAM =
  ': comment\n\nid: 7\nevent: call\ndata: {"a":1}\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:bare\n\ndata: é👩\rid: 9\r\r';
const EVENTS = [
  { event: "call", id: "7", data: '{"a":1}' },
  { event: "x", id: "7", data: "one\ntwo" },
  { event: "message", id: "7", data: "bare" },
  { event: "message", id: "9", data: "é👩" },
];

test("events are the same for pieces of every size", () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < STREAM.length; at += size) found.push(...parser.push(STREAM.slice(at, at + size)));
    found.push(...parser.push("\n")); // ends the last carriage return
    assert.deepEqual(found, EVENTS, `pieces of ${size}`);
  }
});

test("an incomplete event is not emitted", () => {
  assert.deepEqual(new EventParser().push("event: a\ndata: b\n"), []);
});

test("an endless line and an endless event are refused", () => {
  const piece = "x".repeat(1 << 20);
  const line = new EventParser();
  assert.throws(() => {
    for (let index = 0; index < 20; index += 1) line.push(piece);
  }, EventTooLarge);
  const event = new EventParser();
  assert.throws(() => {
    for (let index = 0; index < 20; index += 1) event.push(`data: ${piece}\n`);
  }, EventTooLarge);
});

test("pauses grow up to a limit and vary", () => {
  const pauses = [1, 2, 3, 10, 1000].map((failures) => pauseAfter(failures, 0.5));
  assert.deepEqual(pauses, [400, 800, 1600, 15_000, 15_000]);
  assert.ok(pauseAfter(1, 0) < pauseAfter(1, 1));
});

/** Return a response that streams these texts and then ends. */
function response(...texts) {
  const encoder = new TextEncoder();
  const body = new ReadableStream({
    start(controller) {
      for (const text of texts) controller.enqueue(encoder.encode(text));
      controller.close();
    },
  });
  return { body };
}

test("a lost stream is opened again until its last event", async () => {
  const answers = [
    () => response("id: 1\ndata: a\n\nid: 2\ndata: b"),
    () => {
      throw new ApiError(503, "stopping", "no");
    },
    () => response("id: 2\ndata: b\n\n", "id: 3\nevent: end\ndata: c\n\n"),
  ];
  const seen = [];
  const states = [];
  let reopened = 0;
  await follow({
    signal: new AbortController().signal,
    open: async () => answers.shift()(),
    onEvents: (events) => {
      seen.push(...events.map(({ id }) => id));
      return events.some(({ event }) => event === "end");
    },
    onState: (state) => states.push(state),
    beforeReopen: () => {
      reopened += 1;
    },
  });
  assert.deepEqual(seen, ["1", "2", "3"]);
  assert.deepEqual(states, ["live", "lost", "lost", "live"]);
  assert.equal(reopened, 2);
});

test("an error that stays ends the stream", async () => {
  const gone = new ApiError(404, "session_not_found", "gone");
  const options = { signal: new AbortController().signal, onEvents: () => false, onState: () => {} };
  await assert.rejects(
    follow({
      ...options,
      open: async () => {
        throw gone;
      },
    }),
    gone,
  );
});

test("an aborted stream ends without an error", async () => {
  const abort = new AbortController();
  const open = async () => ({
    body: new ReadableStream({ start: () => setTimeout(() => abort.abort(), 10) }),
  });
  await follow({ signal: abort.signal, open, onEvents: () => false, onState: () => {} });
});
