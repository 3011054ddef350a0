/** One session or program: its figures, its graph, its timeline, and the panel of the selected call. */

import { cleanSession } from "./clean.js";
import { confirmed } from "./dialogs.js";
import { announce, fill, h, oncePerFrame, setAttribute, setText } from "./dom.js";
import { compact, cost, count, duration, label, percent, plural } from "./format.js";
import { graphView } from "./graph_view.js";
import { stackedBar } from "./legend.js";
import { ProgramFeed } from "./program_feed.js";
import { SessionFeed } from "./session_feed.js";
import { summarize } from "./session_state.js";
import { timeline } from "./timeline.js";
import { rangeOf } from "./timeline_layout.js";
import { valuePanel } from "./value_panel.js";

const VIEWS = { graph: ["Graph", graphView], timeline: ["Timeline", timeline] };
/** Time between two drawings while calls are unfinished, in milliseconds: bars grow. */
const TICK = 250;
const SESSION_INTERVAL = 5_000;

/** Return the name of the view that an address names; the graph by default. */
export function viewName(text) {
  return Object.hasOwn(VIEWS, text) ? text : "graph";
}

/**
 * Return the view of a session, or of a program, which has no values and cannot be deleted.
 *
 * @param {{ api: import("./api.js").Api, presence: import("./presence.js").Presence, now: () => number, onError:
 *   (text: string) => void }} context
 * @param {string} id
 * @param {"session" | "program"} kind
 */
export function sessionView({ api, presence, now, onError }, id, kind = "session") {
  const isProgram = kind === "program";
  const figures = h("dl", { class: "figures" });
  const bar = stackedBar("state", "Calls by state");
  const banner = h("p", { class: "banner", hidden: true });
  const tabs = Object.entries(VIEWS).map(([name, [title]]) =>
    h("a", { href: `#/${kind}/${encodeURIComponent(id)}/${name}`, data: { name } }, title),
  );
  const remove = h(
    "button",
    { type: "button", class: "button danger", on: { click: () => deleteSession() } },
    "Delete the session",
  );
  const content = h("div", { class: "session-content" });
  const element = h(
    "div",
    { class: "view session-view" },
    h(
      "div",
      { class: "session-head" },
      h(
        "h1",
        {},
        h("a", { href: "#/sessions", class: "crumb" }, "Sessions"),
        h("span", { class: "crumb-sign", "aria-hidden": "true" }, "/"),
        h("span", { class: "session-id" }, label(id, 128)),
      ),
      remove,
    ),
    banner,
    figures,
    bar.element,
    h("nav", { class: "tabs", "aria-label": "Views of the session" }, ...tabs),
    content,
  );
  let selected = null;
  let view = null;
  let current = "";
  let described = null;
  const select = (target) => {
    selected = document.activeElement;
    panel.show(target);
    content.classList.add("has-panel");
  };
  const panel = valuePanel({
    api,
    presence,
    session: isProgram ? null : id,
    now,
    select: (target) => panel.show(target),
    onError,
    onClose: () => {
      content.classList.remove("has-panel");
      if (selected?.isConnected) selected.focus();
    },
  });
  const show = (name) => {
    if (name !== current) {
      view?.close();
      current = name;
      view = VIEWS[name][1]({ now, select });
      fill(content, view.element, panel.element);
    }
    for (const tab of tabs) setAttribute(tab, "aria-current", tab.dataset.name === name ? "page" : null);
    view.update(feed.state);
  };
  let lastStates = "";
  const draw = oncePerFrame(() => {
    const { state } = feed;
    const summary = summarize(state);
    drawFigures(figures, figuresOf(state, summary, isProgram ? feed.described : described, now()));
    bar.update(
      ["done", "running", "waiting", "failed", "cancelled"].map((key) => ({
        key,
        name: key,
        value: summary[key],
      })),
    );
    drawBanner(banner, feed);
    remove.hidden = isProgram || state.ended !== null;
    element.dataset.connection = feed.connection;
    element.dataset.events = String(state.events);
    element.dataset.lastEvent = String(state.lastEventId);
    view?.update(state);
    panel.update(state);
    say(summary);
  });
  const say = (summary) => {
    const isDone = summary.total > 0 && summary.waiting + summary.running === 0;
    const states =
      feed.state.ended !== null
        ? endText(feed.state.ended)
        : isDone
          ? `All ${plural(summary.total, "call")} ended, ${summary.failed} failed.`
          : summary.failed > 0
            ? "A call has failed."
            : "";
    if (states !== "" && states !== lastStates) announce(states);
    lastStates = states;
  };
  const feed = isProgram
    ? new ProgramFeed(api, presence, id, draw)
    : new SessionFeed(api, presence, id, draw);
  const deleteSession = async () => {
    const text = "Its unfinished calls are cancelled, and its values are lost.";
    if (!(await confirmed({ title: `Delete the session ${label(id, 60)}?`, text, confirm: "Delete" })))
      return;
    try {
      await api.delete(["sessions", id]);
    } catch (error) {
      onError(error.message);
    }
  };
  const abort = new AbortController();
  const loadSession = async () => {
    if (!document.hidden && feed.state.ended === null) {
      try {
        described = cleanSession(await api.get(["sessions", id], {}, abort.signal));
        draw();
      } catch (error) {
        described = null; // the feed reports why the server does not answer
        if (error.status === 401) return; // the page asks for a key, and then shows this view anew
      }
    }
    if (!abort.signal.aborted) sessionTimer = setTimeout(loadSession, SESSION_INTERVAL);
  };
  let sessionTimer = 0;
  const ticker = setInterval(() => {
    if (!document.hidden && feed.connection !== "ended" && hasUnfinished(feed.state)) draw();
  }, TICK);
  feed.start();
  if (!isProgram) void loadSession();
  draw();
  return {
    element,
    title: label(id, 60),
    id,
    kind,
    show,
    close: () => {
      feed.stop();
      abort.abort();
      clearTimeout(sessionTimer);
      clearInterval(ticker);
      view?.close();
      panel.close();
    },
  };
}

const ENDS = new Map([
  ["expired", "This session has expired."],
  ["forgotten", "The server has forgotten this program, because it was idle."],
]);

function endText(ended) {
  return ENDS.get(ended) ?? "This session was deleted.";
}

function hasUnfinished(state) {
  for (const call of state.calls.values()) if (call.finished === null) return true;
  return false;
}

/**
 * Return the names and texts of the figures.
 *
 * @param {ReturnType<typeof import("./session_state.js").emptyState>} state
 * @param {ReturnType<typeof summarize>} summary
 * @param {any} session The session or program, null before it is loaded. The tokens of a program are those of all its
 *   calls, as its cost is, because the server forgets the oldest calls of a long one.
 * @param {number} now
 */
export function figuresOf(state, summary, session, now) {
  const range = rangeOf(state.calls.values(), now);
  const isProgram = session?.kind === "program";
  const tokens = isProgram ? session : summary;
  const forgotten = isProgram ? Math.max(0, session.calls - summary.total) : 0;
  return [
    ["Calls", `${count(summary.done)} of ${count(summary.total)} done`],
    ["Forgotten", forgotten > 0 ? count(forgotten) : null],
    ["Running", count(summary.running)],
    ["Waiting", count(summary.waiting)],
    ["Failed", summary.failed > 0 ? count(summary.failed) : null],
    ["Cancelled", summary.cancelled > 0 ? count(summary.cancelled) : null],
    ["Tool calls", summary.tools > 0 ? count(summary.tools) : null],
    ["Time", range === null ? null : duration(range.end - range.begin)],
    ["Prompt tokens", compact(tokens.prompt)],
    ["Cached", tokens.prompt > 0 ? percent(tokens.cached / tokens.prompt) : null],
    ["Generated", compact(tokens.completion)],
    ["Cost", session?.cost === null || session?.cost === undefined ? null : cost(session.cost)],
  ].filter(([, value]) => value !== null);
}

function drawFigures(list, rows) {
  const names = rows.map(([name]) => name).join();
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    fill(list, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  } else rows.forEach(([, value], index) => setText(list.children[index].lastChild, value));
}

function drawBanner(banner, feed) {
  const { state, connection, error } = feed;
  let text = "";
  if (state.ended !== null) text = endText(state.ended);
  else if (connection === "failed") text = error.message;
  else if (connection === "lost") text = `Connection lost: ${label(error.message, 200)}. Connecting again.`;
  else if (connection === "loading") text = "Loading.";
  else if (state.dropped > 0)
    text = `${plural(state.dropped, "event or object", "events or objects")} of the server could not be understood.`;
  banner.hidden = text === "";
  setAttribute(banner, "class", connection === "failed" || connection === "lost" ? "banner bad" : "banner");
  setText(banner, text);
}
