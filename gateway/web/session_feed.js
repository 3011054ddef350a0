/** Keep the state of one session up to date: load its graph, follow its events, load changed figures again. */

import { ApiError } from "./api.js";
import { follow, pauseAfter, sleep } from "./event_stream.js";
import { applyEvents, emptyState, mergeGraph, stateOf } from "./session_state.js";

/** Shortest time between two loads of figures, in milliseconds. */
const SHORTEST_PAUSE = 700;
/** Part of the time that loads may take: a large graph is loaded less often. */
const LOAD_SHARE = 0.1;

/** Feed of one session. */
export class SessionFeed {
  #api;
  #presence;
  #id;
  #abort = new AbortController();
  #needsDetails = false;
  #wake = () => {};

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./presence.js").Presence} presence
   * @param {string} id
   * @param {(feed: SessionFeed) => void} onChange Called after each change of the state or the connection.
   */
  constructor(api, presence, id, onChange) {
    this.#api = api;
    this.#presence = presence;
    this.#id = id;
    this.onChange = onChange;
    this.state = emptyState();
    /** `loading`, `live`, `lost`, `ended` or `failed`. */
    this.connection = "loading";
    /** Error because of which the connection is lost or has failed. */
    this.error = null;
  }

  /** Start; return immediately. */
  start() {
    this.#run().catch((error) => {
      if (this.#abort.signal.aborted) return;
      this.#set("failed", error);
    });
  }

  /** Stop. Nothing is called any more. */
  stop() {
    this.onChange = () => {};
    this.#abort.abort();
    this.#wake();
  }

  async #run() {
    const { signal } = this.#abort;
    this.state = stateOf(await this.#loadFirst(signal));
    this.#set("live", null);
    const details = this.#keepDetails(signal);
    await follow({
      signal,
      presence: this.#presence,
      open: (inner) => this.#api.stream(["sessions", this.#id, "events"], {}, this.state.lastEventId, inner),
      onEvents: (events) => this.#receive(events),
      onState: (state, error) => this.#set(state, error),
      beforeReopen: async () => {
        this.state = stateOf(await this.#load(0, signal), this.state);
        this.onChange(this);
      },
    });
    this.#set("ended", null);
    this.#wake();
    await details;
  }

  /** Return the first snapshot; try again while the server is not there. */
  async #loadFirst(signal) {
    for (let failures = 1; ; failures += 1) {
      try {
        return await this.#load(0, signal);
      } catch (error) {
        if (signal.aborted || (error instanceof ApiError && !error.isTemporary)) throw error;
        this.#set("lost", error);
        await sleep(pauseAfter(failures), signal);
      }
    }
  }

  #receive(events) {
    if (applyEvents(this.state, events)) {
      this.#needsDetails = true;
      this.#wake();
    }
    this.onChange(this);
    return this.state.ended !== null;
  }

  /** Load figures whenever calls have changed. */
  async #keepDetails(signal) {
    while (!signal.aborted && this.connection !== "ended") {
      if (!this.#needsDetails) await new Promise((resolve) => (this.#wake = resolve));
      if (signal.aborted || this.state.ended !== null) return;
      this.#needsDetails = false;
      const began = performance.now();
      const { state } = this;
      try {
        const graph = await this.#load(state.detailsId, signal);
        if (state !== this.state) continue; // the connection was lost, and a whole snapshot has replaced it
        mergeGraph(state, graph);
        this.onChange(this);
      } catch (error) {
        if (signal.aborted) return;
        this.#needsDetails = true; // the stream reports why the server does not answer
      }
      await sleep(Math.max(SHORTEST_PAUSE, (performance.now() - began) / LOAD_SHARE), signal);
    }
  }

  #load(after, signal) {
    const query = after > 0 ? { values: "none", after: String(after) } : { values: "none" };
    return this.#api.get(["sessions", this.#id, "graph"], query, signal);
  }

  #set(connection, error) {
    this.connection = connection;
    this.error = error;
    this.onChange(this);
  }
}
