import assert from "node:assert/strict";
import { test } from "node:test";

import { follow } from "../../../gateway/web/event_stream.js";
import { Presence } from "../../../gateway/web/presence.js";

/** A document that tests hide and show. */
class FakePage extends EventTarget {
  hidden = false;

  /** Hide or show the page. */
  set(hidden) {
    this.hidden = hidden;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

test("a short absence is none", async () => {
  const page = new FakePage();
  const presence = new Presence(page, 30);
  let left = 0;
  presence.onLeave(() => (left += 1));
  page.set(true);
  page.set(false);
  await wait(60);
  assert.deepEqual([presence.isAway, left], [false, 0]);
});

test("who waits goes on when the reader is back, or when it is aborted", async () => {
  const page = new FakePage();
  const presence = new Presence(page, 1);
  const abort = new AbortController();
  await presence.whenBack(abort.signal);
  page.set(true);
  await wait(20);
  const back = [presence.whenBack(abort.signal), presence.whenBack(new AbortController().signal)];
  abort.abort();
  await back[0];
  page.set(false);
  await back[1];
});

test("a stream is closed while the reader is away, and resumes", async () => {
  const page = new FakePage();
  const presence = new Presence(page, 1);
  const encoder = new TextEncoder();
  const opened = [];
  const states = [];
  const open = async (signal) => {
    const number = opened.push(signal);
    const texts = number === 1 ? ["id: 1\ndata: a\n\n"] : ["id: 2\nevent: end\ndata: b\n\n"];
    return {
      body: new ReadableStream({ start: (to) => texts.forEach((text) => to.enqueue(encoder.encode(text))) }),
    };
  };
  const seen = [];
  const done = follow({
    signal: new AbortController().signal,
    presence,
    open,
    onState: (state) => states.push(state),
    onEvents: (events) => {
      seen.push(...events.map(({ id }) => id));
      return events.some(({ event }) => event === "end");
    },
  });
  await wait(20);
  page.set(true);
  await wait(30);
  assert.ok(opened[0].aborted);
  assert.equal(opened.length, 1, "nothing is opened while the reader is away");
  page.set(false);
  await done;
  assert.deepEqual(seen, ["1", "2"]);
  assert.deepEqual(states, ["live", "live"], "an absence is no lost connection");
});
