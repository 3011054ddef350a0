/**
 * Whether a reader looks at the page.
 *
 * A browser opens six connections to a server, for all of its tabs together. Streams of hidden tabs would take them from
 * the visible one, so a hidden page closes its streams and continues when it is visible again.
 */

/** Time for which a page may be hidden before its streams are closed, in milliseconds. */
const PATIENCE = 10_000;

/** Owner of the state of the page: there, or away. */
export class Presence {
  #leave = new Set();
  #back = new Set();
  #timer = 0;

  /**
   * @param {Document} page
   * @param {number} [patience]
   */
  constructor(page, patience = PATIENCE) {
    this.isAway = false;
    page.addEventListener("visibilitychange", () => {
      clearTimeout(this.#timer);
      if (page.hidden) this.#timer = setTimeout(() => this.#set(true), patience);
      else this.#set(false);
    });
  }

  #set(isAway) {
    if (isAway === this.isAway) return;
    this.isAway = isAway;
    const listeners = [...(isAway ? this.#leave : this.#back)];
    if (!isAway) this.#back.clear();
    for (const listener of listeners) listener();
  }

  /** Call a function whenever the reader leaves. Return a function that ends this. */
  onLeave(listener) {
    this.#leave.add(listener);
    return () => this.#leave.delete(listener);
  }

  /** Wait until the reader is there, or the signal aborts. */
  whenBack(signal) {
    if (!this.isAway || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      this.#back.add(resolve);
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
  }
}

/** A reader who never leaves. */
export const ALWAYS_THERE = { onLeave: () => () => {}, whenBack: () => Promise.resolve() };
