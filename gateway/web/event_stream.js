/** Server-sent events over fetch, which sends the API key in a header, as EventSource cannot. */

import { ApiError } from "./api.js";
import { ALWAYS_THERE } from "./presence.js";

/** Largest event, in characters: the server's largest value is 1 MiB by default, and JSON may escape each character. */
const LARGEST_EVENT = 8 * 2 ** 20;
/** Longest silence, in milliseconds: the server sends a comment every 15 s. */
const SILENCE = 45_000;
const FIRST_PAUSE = 400;
const LONGEST_PAUSE = 15_000;

/** Raised for an event that is larger than any server of this project sends. */
export class EventTooLarge extends Error {}

/** Parser of a stream of server-sent events, in pieces of any size. */
export class EventParser {
  #rest = "";
  #event = "";
  #data = [];
  #size = 0;
  #id = null;

  /**
   * Return the events that are complete after this text. Raises EventTooLarge.
   *
   * @param {string} text
   * @returns {{ event: string, id: string | null, data: string }[]}
   */
  push(text) {
    const events = [];
    const buffer = this.#rest + text;
    const hasReturns = buffer.includes("\r"); // this server sends none, and a search for each line would be quadratic
    let start = 0;
    for (;;) {
      const next = hasReturns ? anyLineEnd(buffer, start) : lineFeed(buffer, start);
      if (next === null) break;
      this.#line(buffer.slice(start, next.end), events);
      start = next.next;
    }
    this.#rest = buffer.slice(start);
    if (this.#rest.length + this.#size > LARGEST_EVENT) throw new EventTooLarge("an event is too large");
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length > 0) {
        events.push({ event: this.#event || "message", id: this.#id, data: this.#data.join("\n") });
      }
      this.#event = "";
      this.#data = [];
      this.#size = 0;
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") this.#event = value;
    else if (field === "id") this.#id = value;
    else if (field === "data") {
      this.#data.push(value);
      this.#size += value.length + 1;
      if (this.#size > LARGEST_EVENT) throw new EventTooLarge("an event is too large");
    }
  }
}

/** Return where the next line ends and where the one after it begins; null if it is not complete. */
function lineFeed(buffer, start) {
  const feed = buffer.indexOf("\n", start);
  return feed < 0 ? null : { end: feed, next: feed + 1 };
}

/** Return the same as `lineFeed`, for lines that may also end with a carriage return. */
function anyLineEnd(buffer, start) {
  const feed = buffer.indexOf("\n", start);
  const carriage = buffer.indexOf("\r", start);
  if (carriage < 0 || (feed >= 0 && feed < carriage)) return lineFeed(buffer, start);
  if (carriage === buffer.length - 1) return null; // it may be the first half of a line end
  return { end: carriage, next: carriage + (buffer[carriage + 1] === "\n" ? 2 : 1) };
}

/** Return the pause before a reconnection, in milliseconds. `failures`: number of failures in a row, from 1. */
export function pauseAfter(failures, random = Math.random()) {
  const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** Math.min(failures - 1, 10));
  return pause * (0.75 + random / 2);
}

/**
 * Follow a stream until its last event, across lost connections. Return when it has ended or was aborted.
 *
 * @param {object} options
 * @param {(signal: AbortSignal) => Promise<Response>} options.open Opens the stream; it resumes after what was received.
 * @param {(events: { event: string, id: string | null, data: string }[]) => boolean} options.onEvents Receives events,
 *   and returns whether the last one has arrived.
 * @param {(state: "live" | "lost", error: Error | null) => void} options.onState
 * @param {() => Promise<void> | void} [options.beforeReopen] Runs before each connection after the first.
 * @param {import("./presence.js").Presence} [options.presence] While the reader is away there is no connection.
 * @param {AbortSignal} options.signal
 */
export async function follow(options) {
  const { open, onEvents, onState, beforeReopen = () => {}, presence = ALWAYS_THERE, signal } = options;
  let failures = 0;
  let isFirst = true;
  while (!signal.aborted) {
    await presence.whenBack(signal);
    const absence = new AbortController();
    const forget = presence.onLeave(() => absence.abort());
    const either = AbortSignal.any([signal, absence.signal]);
    let received = false;
    try {
      if (!isFirst) await beforeReopen();
      isFirst = false;
      const response = await open(either);
      onState("live", null);
      const ended = await read(response, either, (events) => {
        received = true;
        return onEvents(events);
      });
      if (ended) return;
      throw new ApiError(0, "unreachable", "the connection was lost");
    } catch (error) {
      if (signal.aborted) return;
      if (absence.signal.aborted) continue;
      if (error instanceof ApiError && !error.isTemporary) throw error;
      failures = received ? 1 : failures + 1;
      onState("lost", error);
      await sleep(pauseAfter(failures), signal);
    } finally {
      forget();
    }
  }
}

/** Read one connection. Return whether the last event has arrived. */
async function read(response, signal, onEvents) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  const stop = () => reader.cancel().catch(() => undefined); // the connection may be gone already
  signal.addEventListener("abort", stop, { once: true });
  let watchdog = setTimeout(stop, SILENCE);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      clearTimeout(watchdog);
      watchdog = setTimeout(stop, SILENCE);
      const events = parser.push(decoder.decode(value, { stream: true }));
      if (events.length > 0 && onEvents(events)) return true;
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", stop);
    stop();
  }
}

/** Wait, or return early if the signal aborts. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const timer = setTimeout(end, milliseconds);
    function end() {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    }
    signal.addEventListener("abort", end, { once: true });
  });
}
