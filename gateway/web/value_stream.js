/** Follow the value of a variable while it is made, without becoming its subscriber. */

import { follow } from "./event_stream.js";

/** Largest value that the page holds, in characters. */
export const LARGEST_VALUE = 4 * 2 ** 20;

/**
 * Follow a value until it is final. Return when it has ended or was aborted. Raises ApiError.
 *
 * @param {object} place
 * @param {import("./api.js").Api} place.api
 * @param {import("./presence.js").Presence} place.presence
 * @param {string} place.session
 * @param {string} name
 * @param {object} listener
 * @param {(text: string) => void} listener.onText Receives the next piece of text.
 * @param {() => void} listener.onRestart Called when all text so far is invalid.
 * @param {(state: string, variable: any) => void} listener.onEnd
 * @param {(isLost: boolean) => void} listener.onConnection
 * @param {AbortSignal} signal
 */
export function followValue({ api, presence, session }, name, listener, signal) {
  return follow({
    signal,
    presence,
    open: (inner) => api.stream(["sessions", session, "variables", name], { observe: "true" }, null, inner),
    onState: (state) => {
      if (state === "live") listener.onRestart(); // each connection begins with the beginning of the value
      listener.onConnection(state === "lost");
    },
    onEvents: (events) => receive(events, listener),
  });
}

/** Pass events on. Return whether the last one was among them. */
export function receive(events, listener) {
  let text = "";
  for (const { event, data } of events) {
    const value = parse(data);
    if (event === "delta") text += typeof value?.text === "string" ? value.text : "";
    else if (event === "restart") {
      text = "";
      listener.onRestart();
    } else if (event === "ready" || event === "failed" || event === "cancelled") {
      if (text !== "") listener.onText(text);
      listener.onEnd(event, value);
      return true;
    }
  }
  if (text !== "") listener.onText(text);
  return false;
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return null;
  }
}
