/** The list of sessions and programs of the API key. */

import { cleanList, cleanProgram, cleanSession } from "./clean.js";
import { h, setAttribute, setText } from "./dom.js";
import { age, compact, cost, count, label, plural } from "./format.js";
import { stateBadge } from "./legend.js";
import { VirtualRows } from "./virtual_rows.js";

const INTERVAL = 3_000;
/** Part of the time that requests may take: a long list is requested less often. */
const LOAD_SHARE = 0.1;
const MOST = 50_000;
/** Number of programs that the list shows: the newest. */
const PROGRAMS = 1_000;

/**
 * Return the sessions that match a search, the newest first.
 *
 * @param {any[]} sessions
 * @param {string} text Part of an id, of the state or of the metadata; of a program, also of its session's id.
 */
export function selectSessions(sessions, text) {
  const wanted = text.trim().toLowerCase();
  const has = (session) =>
    session.id.toLowerCase().includes(wanted) ||
    session.state.includes(wanted) ||
    (session.session ?? "").toLowerCase().includes(wanted) ||
    session.metadata.some(([name, value]) => `${name}=${value}`.toLowerCase().includes(wanted));
  const chosen = wanted === "" ? [...sessions] : sessions.filter(has);
  return chosen.sort((one, other) => (other.created ?? 0) - (one.created ?? 0));
}

/**
 * Return sessions and programs as one list, without the programs of sessions that are in it.
 *
 * @param {any[]} sessions
 * @param {any[]} programs
 */
export function joinPrograms(sessions, programs) {
  const ids = new Set(sessions.map((session) => session.id));
  return [...sessions, ...programs.filter((program) => program.session === null || !ids.has(program.session))];
}

/**
 * Return the view.
 *
 * @param {{ api: import("./api.js").Api, now: () => number, onError: (text: string) => void }} context
 */
export function sessionList({ api, now, onError }) {
  let sessions = [];
  let timer = 0;
  let hasLoaded = false;
  let hasMore = false;
  const abort = new AbortController();
  const search = h("input", {
    type: "search",
    placeholder: "id, state or metadata",
    "aria-label": "Find sessions",
  });
  const found = h("span", { class: "note", role: "status" }, "loading");
  const empty = h("p", { class: "empty", hidden: true });
  const costHead = h("div", { role: "columnheader", class: "cell-cost number" }, "Cost");
  const head = h(
    "div",
    { class: "row head", role: "row" },
    h("div", { role: "columnheader", class: "cell-session" }, "Session"),
    h("div", { role: "columnheader", class: "cell-state" }, "State"),
    h("div", { role: "columnheader", class: "cell-age number" }, "Age"),
    h("div", { role: "columnheader", class: "cell-calls number" }, "Done calls"),
    h("div", { role: "columnheader", class: "cell-usage number" }, "Prompt / cached / generated"),
    costHead,
  );
  const rows = new VirtualRows({
    name: "Sessions",
    head,
    createRow: () => sessionRow(now),
    onOpen: (session) => {
      location.hash = `#/${session.kind}/${encodeURIComponent(session.id)}/graph`;
    },
    keyOf: (session) => `${session.kind} ${session.id}`, // clients choose the ids of sessions
  });
  rows.element.classList.add("sessions");
  const element = h(
    "div",
    { class: "view" },
    h("h1", {}, "Sessions"),
    h("div", { class: "toolbar" }, search, found),
    empty,
    rows.element,
  );
  const draw = () => {
    const chosen = selectSessions(sessions, search.value);
    const all = plural(sessions.length, "session or program", "sessions and programs");
    const shown = chosen.length === sessions.length ? all : `${count(chosen.length)} of ${all}`;
    setText(found, hasMore ? `${shown}; of the programs, the latest ${count(PROGRAMS)}` : shown);
    rows.element.classList.toggle(
      "has-cost",
      sessions.some((session) => session.cost !== null),
    );
    rows.element.hidden = chosen.length === 0;
    empty.hidden = chosen.length > 0 || !hasLoaded;
    setText(
      empty,
      sessions.length === 0
        ? "This API key has no sessions. A request with the header X-Semantic-Session creates one."
        : "No session matches.",
    );
    rows.setItems(chosen);
  };
  const load = async () => {
    const began = performance.now();
    try {
      const [answer, found] = await Promise.all([
        api.get(["sessions"], {}, abort.signal),
        api.get(["programs"], { limit: String(PROGRAMS) }, abort.signal),
      ]);
      sessions = joinPrograms(
        cleanList(answer?.data, MOST)
          .map(cleanSession)
          .filter((session) => session !== null),
        cleanList(found?.data, PROGRAMS)
          .map(cleanProgram)
          .filter((program) => program !== null),
      );
      hasMore = found?.has_more === true;
      hasLoaded = true;
      draw();
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error.status === 401) return; // the page asks for a key, and then shows this view anew
      if (error.status !== 0) onError(error.message);
    }
    const pause = Math.max(INTERVAL, (performance.now() - began) / LOAD_SHARE);
    timer = setTimeout(() => (document.hidden ? wait() : load()), pause);
  };
  const wait = () =>
    document.addEventListener("visibilitychange", () => load(), { once: true, signal: abort.signal });
  search.addEventListener("input", () => {
    rows.element.scrollTop = 0;
    draw();
  });
  void load();
  const close = () => {
    clearTimeout(timer);
    abort.abort();
    rows.close();
  };
  return { element, title: "Sessions", close };
}

function sessionRow(now) {
  const id = h("span", { class: "name" });
  const metadata = h("span", { class: "note" });
  const badge = stateBadge();
  const cells = ["cell-age", "cell-calls", "cell-usage", "cell-cost"].map((name) =>
    h("div", { role: "gridcell", class: `${name} number` }),
  );
  const [old, calls, usage, spent] = cells;
  const idCell = h("div", { role: "gridcell", class: "cell-session" }, id, metadata);
  const element = h(
    "div",
    { class: "row" },
    idCell,
    h("div", { role: "gridcell", class: "cell-state" }, badge.element),
    ...cells,
  );
  const update = (session) => {
    setText(id, label(session.id, 128));
    setAttribute(idCell, "title", label(session.id, 128));
    setText(
      metadata,
      session.kind === "program"
        ? "program, found from its requests"
        : session.metadata.map(([name, value]) => `${label(name, 30)}=${label(value, 40)}`).join(" "),
    );
    badge.update(session.state === "running" ? "streaming" : session.state);
    setText(badge.element.lastChild, label(session.state, 20));
    setText(old, session.created === null ? "" : age(now() - session.created));
    setText(
      calls,
      session.shared > 0 ? `${count(session.calls)} (${count(session.shared)} shared)` : count(session.calls),
    );
    setText(
      usage,
      `${compact(session.prompt)} / ${compact(session.cached)} / ${compact(session.completion)}`,
    );
    setText(spent, session.cost === null ? "" : cost(session.cost));
  };
  return { element, update };
}
