import assert from "node:assert/strict";
import { test } from "node:test";

import { Api, ApiError } from "../../../gateway/web/api.js";

const BASE = new URL("http://server/prefix/v1/");

/** Return an API whose requests get this answer, and the list of requests. */
function apiWith(answer) {
  const requests = [];
  const api = new Api(BASE, async (url, options) => {
    requests.push({ url: String(url), ...options });
    return answer();
  });
  return { api, requests };
}

const json =
  (value, status = 200) =>
  () =>
    new Response(JSON.stringify(value), { status });

test("the key is sent in a header and never in the address", async () => {
  const { api, requests } = apiWith(json({ ok: true }));
  api.setKey(" secret ");
  assert.deepEqual(await api.get(["sessions", "a/../b?c#d", "graph"], { values: "none" }), { ok: true });
  assert.equal(requests[0].url, "http://server/prefix/v1/sessions/a%2F..%2Fb%3Fc%23d/graph?values=none");
  assert.equal(requests[0].headers.Authorization, "Bearer secret");
  assert.equal(requests[0].credentials, "omit");
  assert.equal(requests[0].redirect, "error");
});

test("a part of a path that addresses would resolve is refused", async () => {
  const { api, requests } = apiWith(json({}));
  for (const part of [".", "..", ""]) {
    await assert.rejects(
      api.delete(["sessions", part]),
      (error) => error.status === 404 && !error.isTemporary,
    );
  }
  assert.equal(requests.length, 0);
});

test("without a key no header is sent", async () => {
  const { api, requests } = apiWith(json({}));
  await api.delete(["sessions", "s"]);
  assert.equal(requests[0].method, "DELETE");
  assert.ok(!("Authorization" in requests[0].headers));
});

test("errors of the server have its code and a message of limited length", async () => {
  const { api } = apiWith(
    json(
      { error: { code: "session_not_found", message: `there is no session\u0000${"x".repeat(9_999)}` } },
      404,
    ),
  );
  const error = await api.get(["x"]).catch((raised) => raised);
  assert.ok(error instanceof ApiError);
  assert.deepEqual([error.status, error.code, error.isTemporary], [404, "session_not_found", false]);
  assert.ok(error.message.startsWith("there is no session␀xx"));
  assert.ok(error.message.length <= 600);
});

test("answers that are no JSON, and errors of proxies, are errors", async () => {
  for (const body of ["<html>", "", "{", '"\ud800'.slice(0, 1)]) {
    await assert.rejects(apiWith(() => new Response(body)).api.get(["x"]), /not JSON/);
  }
  const proxy = apiWith(() => new Response("<h1>Bad gateway</h1>", { status: 502 }));
  const error = await proxy.api.get(["x"]).catch((raised) => raised);
  assert.deepEqual([error.status, error.code, error.isTemporary], [502, "http_error", true]);
  const strange = apiWith(json({ error: { code: 7, message: { a: 1 } } }, 400));
  assert.match((await strange.api.get(["x"]).catch((raised) => raised)).message, /answered 400/);
});

test("an answer without an end is cut off", async () => {
  const piece = new Uint8Array(1 << 20).fill(32);
  let sent = 0;
  let isCancelled = false;
  const endless = new ReadableStream({
    pull(controller) {
      sent += 1;
      controller.enqueue(piece);
    },
    cancel() {
      isCancelled = true;
    },
  });
  const { api } = apiWith(() => new Response(endless));
  await assert.rejects(api.get(["x"]), /too large/);
  assert.ok(sent < 80 && isCancelled);
});

test("a connection that fails is temporary", async () => {
  const { api } = apiWith(() => {
    throw new TypeError("failed");
  });
  const error = await api.get(["x"]).catch((raised) => raised);
  assert.deepEqual([error.status, error.isTemporary], [0, true]);
});

test("a refused key is reported once", async () => {
  const { api } = apiWith(json({ error: { code: "invalid_api_key", message: "no" } }, 401));
  let reported = 0;
  api.onUnauthorized = () => {
    reported += 1;
  };
  await assert.rejects(api.get(["x"]));
  assert.equal(reported, 1);
});

test("a stream asks for events after the last one, and accepts nothing else", async () => {
  const events = () =>
    new Response("data: x\n\n", { headers: { "Content-Type": "text/event-stream; charset=utf-8" } });
  const { api, requests } = apiWith(events);
  const { signal } = new AbortController();
  await api.stream(["sessions", "s", "events"], {}, 41, signal);
  assert.deepEqual(
    [requests[0].headers.Accept, requests[0].headers["Last-Event-ID"]],
    ["text/event-stream", "41"],
  );
  await assert.rejects(apiWith(json({})).api.stream(["x"], {}, null, signal), /instead of events/);
});
