/** The panel beside a session's views: one call, or one variable, with its value while it is made. */

import { CAUSES, causeName, isFinal, missName } from "./causes.js";
import { fill, h, setText } from "./dom.js";
import { confirmed } from "./dialogs.js";
import { clock, compact, cost, count, duration, label, plural } from "./format.js";
import { formSummary, isForm, outlineOf } from "./forms.js";
import { stateBadge } from "./legend.js";
import { causeChain, producersOf } from "./session_state.js";
import { phasesOf } from "./timeline_layout.js";
import { valueBox } from "./value_box.js";
import { LARGEST_VALUE, followValue } from "./value_stream.js";

/** Number of names that a list shows. */
const LISTED = 30;
/** Number of values that the panel shows: the answer and the first slots. The others are links. */
const SHOWN_VALUES = 4;
/** Number of values that the panel reads together: a browser opens six connections to a server, for all of its tabs. */
const OPEN_STREAMS = 2;

/** Return how a call of a program follows an earlier one: the kind of the link, the call, and the time in between. */
export function followText({ kind, gap }, call) {
  return `${kind} ${call.output}${gap === null ? "" : `, ${duration(gap / 1_000)} later`}`;
}

/** Names of what makes prompts differ from turn to turn. */
const SPOILERS = {
  billing_line: "attribution line",
  countdown: "token countdown",
  date: "date or time",
  reasoning: "reasoning",
  tools: "tools",
};

/** Return where the prompt of a call differs from that of the call which it continues, and what that costs. */
export function differenceText(difference) {
  if (difference === null) return null;
  const { message, role, field, earlier, later, spoiler, tokens } = difference;
  const place = message === null ? "tools" : `message ${message}${role === "" ? "" : ` (${role})`}`;
  const cause = Object.hasOwn(SPOILERS, spoiler) ? `${SPOILERS[spoiler]}, ` : "";
  const cost = tokens === null ? "" : `, ${count(tokens)} tokens computed again`;
  return label(`${cause}${place}${field === "" ? "" : `, ${field}`}: “${earlier}” became “${later}”${cost}`, 600);
}

/**
 * Return the panel.
 *
 * @param {object} context
 * @param {import("./api.js").Api} context.api
 * @param {import("./presence.js").Presence} context.presence
 * @param {string | null} context.session Session that has the values; null if there are none, as in programs.
 * @param {() => number} context.now Time of the server.
 * @param {(target: { kind: "call" | "variable", key: string }) => void} context.select Shows another call or variable.
 * @param {() => void} context.onClose
 * @param {(text: string) => void} context.onError
 */
export function valuePanel(context) {
  const title = h("h2", { tabindex: -1 });
  const close = h(
    "button",
    { type: "button", class: "button quiet", "aria-label": "Close the panel", on: { click: () => hide() } },
    "✕",
  );
  const badge = stateBadge();
  const facts = h("dl", { class: "facts" });
  const failure = h("div", { class: "failure", hidden: true });
  const actions = h("div", { class: "actions" });
  const values = h("div", { class: "values" });
  const element = h(
    "aside",
    { class: "panel", "aria-label": "Details", hidden: true },
    h("div", { class: "panel-head" }, title, close),
    badge.element,
    failure,
    values,
    facts,
    actions,
  );
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  let target = null;
  let state = null;
  let streams = new Map();
  let open = 0;

  const hide = () => {
    stopStreams();
    target = null;
    element.hidden = true;
    context.onClose();
  };
  const stopStreams = () => {
    for (const abort of streams.values()) abort.abort();
    streams = new Map();
    open = 0;
    values.replaceChildren();
  };
  const show = (next, focus = true) => {
    if (target === null || next.kind !== target.kind || next.key !== target.key) {
      stopStreams();
      target = next;
      fill(actions);
      fill(facts);
      lastFacts = "";
    }
    element.hidden = false;
    if (state !== null) update(state);
    if (focus) title.focus();
  };
  const update = (next) => {
    state = next;
    if (target === null) return;
    const producer =
      target.kind === "call" ? state.calls.get(target.key) : producersOf(state).get(target.key);
    if (target.kind === "call") drawCall(producer);
    else drawVariable(state.variables.get(target.key), producer);
  };

  const drawCall = (call) => {
    if (call === undefined) return gone(`Call ${target.key}`);
    setText(title, label(call.output || call.id, 80));
    badge.update(call.state);
    drawFailure(call);
    drawFacts(callFacts(call));
    for (const name of [call.output, ...call.slots.slice(0, SHOWN_VALUES)]) showValue(name);
    drawActions(call.output, !isFinal(call.state));
    return undefined;
  };
  const drawVariable = (variable, producer) => {
    if (variable === undefined) return gone(target.key);
    setText(title, label(variable.name, 80));
    badge.update(variable.state);
    drawFailure(producer ?? variable);
    const consumers = variable.consumers
      .map((id) => state.calls.get(id))
      .filter((call) => call !== undefined);
    drawFacts([
      ["Made by", producer === undefined ? "a client" : link("call", producer.id, producer.output)],
      [
        "Read by",
        consumers.length === 0 ? "no call" : links(consumers.map((call) => ["call", call.id, call.output])),
      ],
    ]);
    showValue(variable.name);
    drawActions(variable.name, !isFinal(variable.state));
    return undefined;
  };
  const gone = (name) => {
    setText(title, label(name, 80));
    badge.update("deleted");
    drawFacts([["Note", "It does not exist any more."]]);
    fill(actions);
  };

  /** Show the error, and the first call that failed because of itself. */
  const drawFailure = (object) => {
    failure.hidden = object.error === null || object.error === undefined;
    if (failure.hidden) return;
    const chain = object.inputs === undefined ? [object] : causeChain(state, object);
    const first = chain[chain.length - 1];
    const key = JSON.stringify([object.id, first.id, first.error]);
    if (failure.dataset.key === key) return;
    failure.dataset.key = key;
    fill(
      failure,
      h("strong", {}, label(object.error.code, 80)),
      chain.length > 1 &&
        h("span", {}, " because ", link("call", first.id, first.output), ` has ${label(first.state, 20)}`),
      chain.length > 2 && h("p", { class: "note" }, `through ${plural(chain.length - 2, "call")} in between`),
      h("p", { class: "message" }, label((first.error ?? object.error).message, 1_000)),
    );
  };

  let lastFacts = "";
  const drawFacts = (rows) => {
    const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    const key = JSON.stringify(
      shown.map(([name, value]) => [name, value instanceof Node ? value.textContent : value]),
    );
    if (key === lastFacts) return; // replacing a link would take the focus away
    lastFacts = key;
    fill(facts, ...shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  };
  const callFacts = (call) => {
    const now = context.now();
    const phases = phasesOf(call, now);
    const spent = CAUSES.map(({ key, name }) => [
      name,
      phases.filter((phase) => phase.cause === key).reduce((sum, { begin, end }) => sum + end - begin, 0),
    ]);
    const missed = Object.entries(call.missedTokens).map(
      ([reason, tokens]) => `${compact(tokens)} ${missName(reason)}`,
    );
    const follows = (call.links ?? [])
      .filter(({ from }) => state.calls.has(from)) // others are forgotten, or in another program
      .map((follow) => ["call", follow.from, followText(follow, state.calls.get(follow.from))]);
    const outer = call.parent === null ? undefined : state.calls.get(call.parent);
    const { form, inputs } = readsOf(call);
    return [
      [
        "Waits for",
        call.waitsFor === null
          ? null
          : `${causeName(call.waitsFor)}${call.why === null ? "" : `: ${label(call.why, 400)}`}`,
      ],
      ["Form", call.form === null ? null : formText(call)],
      ["Part of", outer === undefined ? null : link("call", outer.id, outer.output)],
      ["Model", modelText(call)],
      ["Engine", call.engine === null ? null : label(call.engine, 100)],
      [
        "Same as",
        call.sharedWith === null
          ? null
          : link("call", call.sharedWith, state.calls.get(call.sharedWith)?.output ?? call.sharedWith),
      ],
      ["Follows", follows.length === 0 ? null : links(follows)],
      ["Created", clock(call.created)],
      [
        "Time",
        spent
          .filter(([, seconds]) => seconds > 0.0005)
          .map(([name, seconds]) => `${duration(seconds)} ${name}`)
          .join(", "),
      ],
      [
        "Prompt",
        call.promptTokens === 0
          ? null
          : `${count(call.promptTokens)} tokens, ${count(call.cachedTokens)} cached${missed.length === 0 ? "" : `, ${missed.join(", ")}`}`,
      ],
      ["Prompt differs", differenceText(call.difference ?? null)],
      ["Answer", call.completionTokens === 0 ? null : plural(call.completionTokens, "token")],
      ["Finish", call.finishReason === null ? null : label(call.finishReason, 40)],
      ["Cost", call.cost === null ? null : cost(call.cost)],
      ["Slots", call.slots.length === 0 ? null : links(call.slots.map((name) => ["variable", name, name]))],
      ["Calls", form === null ? null : links(form.children.map(({ id, output }) => ["call", id, output]))],
      ["Reads", inputs.length === 0 ? null : links(inputs.map((name) => ["variable", name, name]))],
      ["Id", label(call.id, 80)],
    ];
  };
  /** Return the form of a call, and the inputs of the call without the results of the form's calls. */
  const readsOf = (call) => {
    const found = isForm(call) ? outlineOf(state).forms.get(call.id) : undefined;
    if (found === undefined || found.children.length === 0) return { form: null, inputs: call.inputs };
    const added = new Set(found.children.flatMap((child) => [child.output, ...child.slots]));
    return { form: found, inputs: call.inputs.filter((name) => !added.has(name)) };
  };
  const formText = (call) => {
    if (call.tool !== null) return `tool ${label(call.tool, 100)}`;
    const { form } = readsOf(call);
    return form === null ? label(call.form, 40) : `${label(call.form, 40)}: ${formSummary(form, causeName)}`;
  };
  const link = (kind, key, text) =>
    h(
      "button",
      { type: "button", class: "link", on: { click: () => context.select({ kind, key }) } },
      label(text, 60),
    );
  const links = (entries) => {
    const list = h(
      "ul",
      { class: "inline" },
      ...entries.slice(0, LISTED).map((entry) => h("li", {}, link(...entry))),
    );
    if (entries.length > LISTED) list.append(h("li", {}, `and ${count(entries.length - LISTED)} more`));
    return list;
  };

  /** Show the value of a variable, and follow it while it grows. */
  const showValue = (name) => {
    if (context.session === null || streams.has(name) || !state.variables.has(name)) return;
    if (streams.size >= SHOWN_VALUES || open >= OPEN_STREAMS) return;
    const abort = new AbortController();
    const all = streams;
    streams.set(name, abort);
    open += 1;
    const box = valueBox(`Value of ${label(name, 80)}`);
    values.append(h("section", {}, h("h3", {}, "Value of ", h("code", {}, label(name, 80))), box.element));
    const listener = {
      onText: (text) => {
        const room = LARGEST_VALUE - box.length;
        box.append(text.slice(0, Math.max(0, room)));
        if (text.length > room) {
          abort.abort();
          box.note("the value is larger than this page shows");
        }
      },
      onRestart: () => box.clear(),
      onConnection: (isLost) =>
        box.note(isLost ? "the connection was lost, connecting again" : "still growing"),
      onEnd: (outcome, variable) => {
        if (typeof variable?.value === "string") box.set(variable.value.slice(0, LARGEST_VALUE));
        box.note(
          outcome === "ready" ? "" : `it has no value: ${label(variable?.error?.message ?? outcome, 400)}`,
        );
      },
    };
    followValue(context, name, listener, abort.signal)
      .catch((error) => box.note(error.message))
      .finally(() => {
        if (all !== streams) return; // another call is shown now
        open -= 1;
        if (state !== null) update(state);
      });
  };
  const drawActions = (name, isUnfinished) => {
    if (context.session === null) return;
    if (actions.dataset.name === name && actions.childElementCount > 0) return;
    actions.dataset.name = name;
    const text = isUnfinished
      ? "Calls that read it fail, and its call is cancelled if nothing else needs it."
      : "No request finds it any more.";
    const remove = async () => {
      if (!(await confirmed({ title: `Delete the variable ${label(name, 60)}?`, text, confirm: "Delete" })))
        return;
      try {
        await context.api.delete(["sessions", context.session, "variables", name]);
      } catch (error) {
        context.onError(error.message);
      }
    };
    fill(
      actions,
      h("button", { type: "button", class: "button danger", on: { click: remove } }, "Delete the variable"),
    );
  };
  return {
    element,
    show,
    update,
    hide,
    close: stopStreams,
    get target() {
      return target;
    },
  };
}

function modelText(call) {
  if (call.model !== "") return label(call.model, 100);
  return call.form === null ? "none: a template" : null;
}
