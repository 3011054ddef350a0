/** Keep the state of one program up to date: load it again and again, as programs have no stream of events. */

import { ApiError } from "./api.js";
import { cleanLink, cleanList, cleanProgram } from "./clean.js";
import { pauseAfter, sleep } from "./event_stream.js";
import { emptyState, stateOf } from "./session_state.js";

/** Shortest time between two loads, in milliseconds, while the program runs and while it is idle. */
const PAUSE = { running: 700, idle: 2_500 };
/** Part of the time that loads may take: a large program is loaded less often. */
const LOAD_SHARE = 0.1;
const MAX_LINKS = 100_000;

/**
 * Return the state of a program, as that of a session. Each call has its links to earlier calls.
 *
 * @param {any} graph Answer of `/programs/{id}`.
 * @param {ReturnType<typeof emptyState> | null} before
 */
export function programState(graph, before = null) {
  // each answer is the whole program, so earlier answers do not count
  const state = stateOf(graph, before === null ? null : { ...before, dropped: 0 });
  for (const call of state.calls.values()) call.links = [];
  for (const raw of cleanList(graph?.links, MAX_LINKS)) {
    const link = cleanLink(raw);
    const call = link === null ? undefined : state.calls.get(link.to);
    if (link === null) state.dropped += 1;
    else call?.links.push(link);
  }
  return state;
}

/** Feed of one program. */
export class ProgramFeed {
  #api;
  #presence;
  #id;
  #abort = new AbortController();

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./presence.js").Presence} presence
   * @param {string} id
   * @param {(feed: ProgramFeed) => void} onChange Called after each change of the state or the connection.
   */
  constructor(api, presence, id, onChange) {
    this.#api = api;
    this.#presence = presence;
    this.#id = id;
    this.onChange = onChange;
    this.state = emptyState();
    /** The program without its calls, once it is loaded. */
    this.described = null;
    /** `loading`, `live`, `lost`, `ended` or `failed`. */
    this.connection = "loading";
    /** Error because of which the connection is lost or has failed. */
    this.error = null;
  }

  /** Start; return immediately. */
  start() {
    this.#run().catch((error) => {
      if (!this.#abort.signal.aborted) this.#set("failed", error);
    });
  }

  /** Stop. Nothing is called any more. */
  stop() {
    this.onChange = () => {};
    this.#abort.abort();
  }

  async #run() {
    const { signal } = this.#abort;
    let failures = 0;
    while (!signal.aborted) {
      await this.#presence.whenBack(signal);
      if (signal.aborted) return;
      const began = performance.now();
      let pause;
      try {
        const graph = await this.#api.get(["programs", this.#id], {}, signal);
        this.described = cleanProgram(graph);
        this.state = programState(graph, this.connection === "loading" ? null : this.state);
        failures = 0;
        this.#set("live", null);
        const shortest = PAUSE[this.described?.state] ?? PAUSE.idle;
        pause = Math.max(shortest, (performance.now() - began) / LOAD_SHARE);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ApiError && !error.isTemporary) {
          if (error.status !== 404 || this.connection === "loading") throw error;
          this.state.ended = "forgotten";
          this.#set("ended", null);
          return;
        }
        failures += 1;
        this.#set("lost", error);
        pause = pauseAfter(failures);
      }
      await sleep(pause, signal);
    }
  }

  #set(connection, error) {
    this.connection = connection;
    this.error = error;
    this.onChange(this);
  }
}
