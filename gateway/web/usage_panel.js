/** Usage and spend of API keys, if the server reports them. */

import { ApiError } from "./api.js";
import { cleanList, cleanNumber, cleanText } from "./clean.js";
import { fill, h, setText } from "./dom.js";
import { compact, cost, count, label } from "./format.js";

const INTERVAL = 10_000;
const MOST_KEYS = 200;
const COLUMNS = ["Key", "Calls", "Tool calls", "Prompt tokens", "Cached", "Completion", "Reasoning", "Cost"];

/** Return the rows of an answer of `/v1/usage`, the largest cost first. */
export function usageRows(answer) {
  const rows = cleanList(answer?.data, 10_000)
    .filter((row) => row !== null && typeof row === "object")
    .map((row) => ({
      key: cleanText(row.key, "unknown"),
      calls: cleanNumber(row.calls, 0),
      tools: cleanNumber(row.tool_calls, 0),
      prompt: cleanNumber(row.prompt_tokens, 0),
      cached: cleanNumber(row.cached_tokens, 0),
      completion: cleanNumber(row.completion_tokens, 0),
      reasoning: cleanNumber(row.reasoning_tokens, 0),
      cost: cleanNumber(row.cost),
    }));
  return rows.sort((one, other) => (other.cost ?? 0) - (one.cost ?? 0) || other.calls - one.calls);
}

/** Return the panel. It stays hidden on a server without this route. */
export function usagePanel(api) {
  const body = h("tbody");
  const note = h("p", { class: "note" });
  const element = h(
    "section",
    { class: "card wide", hidden: true },
    h("h2", { id: "usage-title" }, "Keys and spend"),
    h(
      "div",
      { class: "scroll-x", tabindex: 0, role: "region", "aria-labelledby": "usage-title" },
      h(
        "table",
        {},
        h("caption", { class: "visually-hidden" }, "Calls, tokens and cost of each API key"),
        h("thead", {}, h("tr", {}, ...COLUMNS.map((name) => h("th", { scope: "col" }, name)))),
        body,
      ),
    ),
    note,
  );
  const abort = new AbortController();
  let timer = 0;
  const load = async () => {
    try {
      draw(usageRows(await api.get(["usage"], { group_by: "key" }, abort.signal)));
      element.hidden = false;
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof ApiError && [401, 403, 404].includes(error.status)) {
        element.hidden = true; // this server has no such route, or not for this key: do not ask again
        return;
      }
      setText(note, `Cannot load the usage: ${error.message}`);
    }
    timer = setTimeout(load, INTERVAL);
  };
  const draw = (rows) => {
    fill(body, ...rows.slice(0, MOST_KEYS).map(usageRow));
    setText(
      note,
      rows.length > MOST_KEYS ? `${count(rows.length - MOST_KEYS)} more keys are not shown.` : "",
    );
    if (rows.length === 0)
      fill(body, h("tr", {}, h("td", { colspan: COLUMNS.length, class: "note" }, "No call has ended yet.")));
  };
  void load();
  const close = () => {
    clearTimeout(timer);
    abort.abort();
  };
  return { element, close };
}

function usageRow(row) {
  const cells = [
    count(row.calls),
    count(row.tools),
    compact(row.prompt),
    compact(row.cached),
    compact(row.completion),
    compact(row.reasoning),
    cost(row.cost),
  ];
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, label(row.key, 60)),
    ...cells.map((text) => h("td", { class: "number" }, text)),
  );
}
