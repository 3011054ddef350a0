/** The page: which view the address names, the API key, and the state of the connection. */

import { Api } from "./api.js";
import { askForKey } from "./dialogs.js";
import { announce, byId, fill, h, setAttribute, setText } from "./dom.js";
import { label } from "./format.js";
import { overview } from "./overview.js";
import { Presence } from "./presence.js";
import { RateHistory } from "./rates.js";
import { sessionView, viewName } from "./session_view.js";
import { sessionList } from "./sessions.js";
import { StatusPoll } from "./status_poll.js";

/** Time for which a notice stays, in milliseconds. */
const NOTICE = 8_000;

const main = byId("main");
const api = new Api(new URL("../v1/", import.meta.url));
const status = new StatusPoll(api, onStatus);
const history = new RateHistory();
status.subscribe((now, earlier) => history.add(now, earlier));
const now = () => status.now();
const context = { api, presence: new Presence(document), status, history, now, onError: notice };

const links = [
  ["#/", "Overview"],
  ["#/sessions", "Sessions"],
].map(([href, text]) => h("a", { href }, text));
fill(byId("nav"), ...links);
const dot = h("span", { class: "dot", "aria-hidden": "true" });
const words = h("span", { class: "words" }, "connecting");
const keyButton = h(
  "button",
  {
    type: "button",
    class: "button quiet",
    on: { click: () => requestKey("Use another API key from now on.") },
  },
  "API key",
);
fill(byId("connection"), dot, words, keyButton);
const notices = h("div", { class: "notices", role: "alert" });
document.body.append(notices);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

let view = null;
let isAsking = false;

/** Show what the address names. */
function route() {
  const [, place = "", id = "", part = ""] = location.hash.split("/");
  for (const [index, link] of links.entries()) {
    const isCurrent = index === 0 ? place === "" : ["sessions", "session", "program"].includes(place);
    setAttribute(link, "aria-current", isCurrent ? "page" : null);
  }
  const session = place === "session" || place === "program" ? decoded(id) : null;
  if (session !== null && view?.id === session && view.kind === place) view.show(viewName(part));
  else {
    view?.close();
    if (session !== null) {
      view = sessionView(context, session, place);
      view.show(viewName(part));
    } else view = place === "sessions" ? sessionList(context) : overview(context);
    fill(main, view.element);
    window.scrollTo(0, 0);
  }
  document.title = `${view.title} · myna`;
}

/** Return a part of the address, decoded; null if it is empty or malformed. */
function decoded(part) {
  try {
    return decodeURIComponent(part) || null;
  } catch {
    return null;
  }
}

api.onUnauthorized = (error) =>
  requestKey(api.hasKey ? `The server refused the key: ${error.message}.` : "This server needs an API key.");

async function requestKey(reason) {
  if (isAsking) return;
  isAsking = true;
  const key = await askForKey(reason);
  isAsking = false;
  if (key === null) return;
  if (!/^[\x20-\x7e]+$/.test(key)) {
    notice("An API key has printable ASCII characters only.");
    return;
  }
  api.setKey(key);
  view?.close();
  view = null;
  route();
  void status.ask();
}

function onStatus(error) {
  const state = error === null ? (status.latest?.state ?? "unknown") : "";
  const text =
    error === null ? label(state, 20) : error.status === 401 ? "needs an API key" : "no connection";
  setAttribute(dot, "class", `dot ${error !== null ? "bad" : state === "ready" ? "good" : "middle"}`);
  if (words.textContent !== text) {
    if (error !== null && error.status !== 401) announce("The server does not answer.");
    else if (words.textContent === "no connection") announce("The server answers again.");
  }
  setText(words, text);
  setAttribute(words, "title", error === null ? null : error.message);
}

/** Show a sentence for some seconds. */
function notice(text) {
  const shown = h("p", { class: "notice" }, label(text, 400));
  notices.append(shown);
  while (notices.childElementCount > 3) notices.firstElementChild.remove();
  setTimeout(() => shown.remove(), NOTICE);
}

window.addEventListener("hashchange", route);
route();
void status.ask();
