/** The overview: engines, rates, waiting calls, the prompt cache, and the spend of keys. */

import { CAUSES, missName } from "./causes.js";
import { append, fill, h, place, setAttribute, setText } from "./dom.js";
import { DASH, compact, count, duration, label, percent, plural } from "./format.js";
import { causeLegend, stackedBar, stateBadge } from "./legend.js";
import { HISTORY } from "./rates.js";
import { sparkline } from "./sparkline.js";
import { usagePanel } from "./usage_panel.js";

/**
 * Return the view.
 *
 * @param {{ api: import("./api.js").Api, status: import("./status_poll.js").StatusPoll, history:
 *   import("./rates.js").RateHistory }} context
 * @returns {{ element: HTMLElement, title: string, close: () => void }}
 */
export function overview({ api, status, history }) {
  const requests = rateCard("Requests", "requests per second");
  const tokens = rateCard("Generated tokens", "tokens per second");
  const waits = waitCard();
  const cache = cacheCard();
  const engines = engineTable();
  const usage = usagePanel(api);
  const element = h(
    "div",
    { class: "view" },
    h("h1", { class: "visually-hidden" }, "Overview"),
    h("div", { class: "cards" }, requests.element, tokens.element, waits.element, cache.element),
    engines.element,
    usage.element,
  );
  const draw = (now) => {
    const rates = history.latest;
    requests.update(rates?.requests, history.requests, `${count(now.requests)} since the start`);
    const prompt = rates === null ? "" : `, ${compact(rates.prompt)} prompt tokens per second`;
    tokens.update(
      rates?.completion,
      history.completion,
      `${compact(now.tokens.completion ?? 0)} since the start${prompt}`,
    );
    waits.update(now);
    cache.update(now);
    engines.update(now);
  };
  const unsubscribe = status.subscribe(draw);
  return {
    element,
    title: "Overview",
    close: () => {
      unsubscribe();
      usage.close();
    },
  };
}

function card(title, ...children) {
  return h("section", { class: "card" }, h("h2", {}, title), ...children);
}

function rateCard(title, unit) {
  const figure = h("span", { class: "figure" }, DASH);
  const note = h("p", { class: "note" });
  const line = sparkline(HISTORY);
  const element = card(
    title,
    h("p", { class: "headline" }, figure, h("span", { class: "unit" }, unit)),
    line.element,
    note,
  );
  const update = (rate, values, text) => {
    setText(figure, rate === undefined ? DASH : compact(Math.round(rate * 100) / 100));
    setText(note, text);
    line.update(values);
  };
  return { element, update };
}

function waitCard() {
  const figure = h("span", { class: "figure" }, DASH);
  const bar = stackedBar("cause", "Unfinished calls by cause");
  const note = h("p", { class: "note" });
  const unit = h("span", { class: "unit" });
  const element = card(
    "Unfinished calls",
    h("p", { class: "headline" }, figure, unit),
    bar.element,
    causeLegend(),
    note,
  );
  const update = (status) => {
    setText(figure, count(status.unfinished));
    setText(unit, status.unfinished === 1 ? "call" : "calls");
    const parts = CAUSES.map(({ key, name }) => ({ key, name, value: status.waiting[key] ?? 0 }));
    bar.update(parts);
    const named = parts.filter((part) => part.value > 0).map((part) => `${count(part.value)} ${part.name}`);
    setText(note, named.length > 0 ? `by cause of the wait: ${named.join(", ")}` : "no call waits");
  };
  return { element, update };
}

function cacheCard() {
  const figure = h("span", { class: "figure" }, DASH);
  const bar = stackedBar("cache", "Prompt tokens");
  const reasons = h("ul", { class: "reasons" });
  const element = card(
    "Prompt cache",
    h("p", { class: "headline" }, figure, h("span", { class: "unit" }, "cached")),
    bar.element,
    reasons,
  );
  const update = ({ tokens, missed }) => {
    const { prompt = 0, cached = 0 } = tokens;
    setText(figure, prompt > 0 ? percent(cached / prompt) : DASH);
    const rest = Math.max(0, prompt - cached);
    bar.update([
      { key: "hit", name: "cached", value: cached },
      { key: "miss", name: "not cached", value: rest },
    ]);
    const listed = Object.entries(missed).sort((one, other) => other[1] - one[1]);
    const known = listed.reduce((sum, [, number]) => sum + number, 0);
    if (rest > known) listed.push(["reason unknown", rest - known]);
    fill(reasons, ...listed.slice(0, 5).map(([reason, number]) => reasonItem(reason, number)));
    if (prompt === 0) append(reasons, [h("li", { class: "note" }, "no prompt yet")]);
  };
  return { element, update };
}

function reasonItem(reason, tokens) {
  return h(
    "li",
    {},
    h("span", {}, label(missName(reason), 60)),
    h("span", { class: "number" }, `${compact(tokens)} tokens`),
  );
}

const COLUMNS = ["Engine", "State", "Models", "Open contexts", "KV cache", "Step", "Restarts"];

function engineTable() {
  const body = h("tbody");
  const element = h(
    "section",
    { class: "card wide" },
    h("h2", { id: "engines-title" }, "Engines"),
    h(
      "div",
      { class: "scroll-x", tabindex: 0, role: "region", "aria-labelledby": "engines-title" },
      h(
        "table",
        {},
        h("caption", { class: "visually-hidden" }, "Engines with their state, load and KV cache"),
        h("thead", {}, h("tr", {}, ...COLUMNS.map((name) => h("th", { scope: "col" }, name)))),
        body,
      ),
    ),
  );
  const rows = new Map();
  const update = ({ engines }) => {
    const names = new Set();
    for (const engine of engines) {
      names.add(engine.name);
      if (!rows.has(engine.name)) rows.set(engine.name, engineRow());
      const row = rows.get(engine.name);
      row.update(engine);
      body.append(row.element);
    }
    for (const [name, row] of rows) {
      if (!names.has(name)) {
        row.element.remove();
        rows.delete(name);
      }
    }
    if (engines.length === 0)
      fill(
        body,
        h("tr", {}, h("td", { colspan: COLUMNS.length, class: "note" }, "No engine has started yet.")),
      );
    else for (const child of [...body.children]) if (child.querySelector("td.note[colspan]")) child.remove();
  };
  return { element, update };
}

function engineRow() {
  const name = h("th", { scope: "row" });
  const badge = stateBadge("waiting");
  const problem = h("div", { class: "problem" });
  const models = h("td", { class: "models" });
  const load = h("td", { class: "number" });
  const used = h("span");
  const meter = h("div", { class: "meter", "aria-hidden": "true" }, used);
  const blocks = h("span", { class: "number" });
  const kv = h("td", { class: "kv" }, meter, blocks);
  const step = h("td", { class: "number" });
  const restarts = h("td", { class: "number" });
  const element = h("tr", {}, name, h("td", {}, badge.element, problem), models, load, kv, step, restarts);
  const update = (engine) => {
    setText(name, label(engine.name, 60));
    badge.update(engine.ready ? "ready" : "failed");
    setText(badge.element.lastChild, engine.ready ? "ready" : "not ready");
    setText(problem, engine.problem === null ? "" : label(engine.problem, 200));
    setText(
      models,
      engine.models
        .slice(0, 6)
        .map((model) => label(model, 60))
        .join(", ") + (engine.models.length > 6 ? ` and ${engine.models.length - 6} more` : ""),
    );
    setAttribute(models, "title", engine.models.map((model) => label(model, 60)).join("\n"));
    setText(load, count(engine.load));
    const isKnown = engine.blocks !== null && engine.blocks > 0;
    meter.hidden = !isKnown;
    const share = isKnown ? Math.min(1, Math.max(0, (engine.used ?? 0) / engine.blocks)) : 0;
    place(used, 0, 100 * share);
    setText(blocks, isKnown ? `${percent(share)} of ${plural(engine.blocks, "block")}` : "not reported");
    setText(step, engine.stepSeconds === null ? DASH : duration(engine.stepSeconds));
    setText(restarts, count(engine.restarts));
  };
  return { element, update };
}
