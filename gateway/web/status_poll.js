/** Ask the server for its status every few seconds, while the page is visible. */

import { cleanStatus } from "./rates.js";

const INTERVAL = 2_000;
const LONGEST_INTERVAL = 15_000;

/** Owner of the latest status, and of the difference between the server's clock and the browser's. */
export class StatusPoll {
  #api;
  #listeners = new Set();
  #timer = 0;
  #offset = 0;
  #failures = 0;
  #isAsking = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {(error: Error | null) => void} onResult Called after each request, with its error.
   */
  constructor(api, onResult) {
    this.#api = api;
    this.onResult = onResult;
    this.latest = null;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.ask();
    });
  }

  /** Return the time of the server, in seconds of the Unix clock. */
  now() {
    return Date.now() / 1e3 + this.#offset;
  }

  /**
   * Call a function with each status and the one before it.
   *
   * @param {(status: any, earlier: any) => void} listener
   * @returns {() => void} Function that ends this.
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    if (this.latest !== null) listener(this.latest, null);
    return () => this.#listeners.delete(listener);
  }

  /** Ask now, and then at intervals. */
  async ask() {
    clearTimeout(this.#timer);
    if (this.#isAsking) return;
    this.#isAsking = true;
    let error = null;
    try {
      const status = cleanStatus(await this.#api.get(["status"]));
      if (status.time !== null) this.#offset = status.time - Date.now() / 1e3;
      const earlier = this.latest;
      this.latest = status;
      this.#failures = 0;
      for (const listener of this.#listeners) listener(status, earlier);
    } catch (raised) {
      error = raised;
      this.#failures += 1;
    }
    this.#isAsking = false;
    this.onResult(error);
    if (!document.hidden && error?.status !== 401) {
      const pause = Math.min(LONGEST_INTERVAL, INTERVAL * 1.5 ** Math.min(this.#failures, 10));
      this.#timer = setTimeout(() => this.ask(), pause);
    }
  }
}
