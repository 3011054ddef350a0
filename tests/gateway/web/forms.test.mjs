import assert from "node:assert/strict";
import { test } from "node:test";

import { causeName } from "../../../gateway/web/causes.js";
import { Folding, formKind, formProgress, formSummary, formsOf, outlineOf } from "../../../gateway/web/forms.js";
import { callGraph, criticalPath, foldedGraph, layersOf } from "../../../gateway/web/graph_model.js";
import { FORM_HEIGHT, NODE_HEIGHT, edgePath, layoutGraph, nodesIn } from "../../../gateway/web/graph_layout.js";
import { applyEvents, emptyState, stateOf, summarize } from "../../../gateway/web/session_state.js";
import { timelineRows } from "../../../gateway/web/timeline_layout.js";
import { event, rawCall, rawGraph } from "./objects.mjs";

/** Return a state with calls, each given as [id, form, parent, inputs, fields]. */
const stateWith = (calls) =>
  stateOf(
    rawGraph(
      1,
      calls.map(([id, form = null, parent = null, inputs = [], fields = {}]) =>
        rawCall(id, { form, parent, inputs, model: form === null ? "m" : "", ...fields }),
      ),
    ),
  );

/** Return a map `all` over `list` with this number of elements, and a reader. */
function mapped(count, fields = () => ({})) {
  const names = Array.from({ length: count }, (_, index) => `all.${index}`);
  return [
    ["list"],
    ["all", "map", null, ["list", ...names], { prompt_tokens: 100 * count, completion_tokens: 7 * count }],
    ...names.map((name, index) => [name, null, "all", [], fields(index)]),
    ["end", null, null, ["all"]],
  ];
}

const drawn = (state, isUnfolded) => foldedGraph(callGraph(state), isUnfolded);
const byDefault = (key, isSmall) => isSmall;
const never = () => false;
const always = () => true;

test("a form has the sums of its calls, also of those in forms inside", () => {
  const { forms, inside } = formsOf(
    stateWith([
      ["all", "map", null, [], { state: "waiting", prompt_tokens: 900 }],
      ["a", "agent", "all", [], { prompt_tokens: 500 }],
      ["a@1", null, "a"],
      ["a@1.0", "tool", "a", [], { state: "running", waits_for: "tool", prompt_tokens: 0, completion_tokens: 0 }],
      ["b", null, "all", [], { state: "queued", waits_for: "queue", prompt_tokens: 0, completion_tokens: 0 }],
      ["c", "if", "all", [], { state: "waiting", waits_for: "inputs", prompt_tokens: 0, completion_tokens: 0 }],
    ]).calls,
  );
  const all = forms.get("all");
  assert.equal(all.total, 4, "an agent counts as its calls, a form without calls as one call");
  assert.deepEqual(all.states, { waiting: 2, running: 1, done: 1, failed: 0, cancelled: 0 });
  assert.equal(all.tokens, 107, "the tokens of a form are those of its calls");
  assert.equal(all.cause, "queue");
  assert.equal(forms.get("a").cause, "tool");
  assert.equal(formKind(all), "running");
  assert.equal(forms.has("a@1.0"), false, "a tool adds no calls");
  assert.deepEqual([inside.get("a@1"), inside.get("a"), inside.get("all")], ["a", "all", undefined]);
  assert.equal(
    formSummary(all, causeName),
    "1/3 done; 4 calls: 2 waiting, 1 running, 1 done; 107 tokens, waits for queue",
  );
});

test("each kind of form says how far it is", () => {
  const progress = (form, children) =>
    formProgress(formsOf(stateWith([["f", form], ...children.map(([id, kind, fields]) => [id, kind, "f", [], fields])]).calls).forms.get("f"));
  assert.equal(progress("map", [["f.0"], ["f.1", null, { state: "decode" }]]), "1/2 done");
  assert.equal(progress("if", [["x@then"]]), "1/1 done");
  assert.equal(progress("repeat", [["draft@1"], ["draft@2", null, { state: "decode" }]]), "round 2, 1/2");
  assert.equal(progress("agent", [["f@1"], ["f@1.0", "tool"], ["f@2"]]), "2 turns, 1 tool call");
});

test("forms with more than 8 calls are folded, unless the reader chooses", () => {
  const titles = (count, choice) => [...drawn(stateWith(mapped(count)), choice).nodes.keys()];
  assert.deepEqual(titles(9, byDefault), ["list", "all", "end"]);
  assert.equal(titles(8, byDefault).length, 11);
  const folding = new Folding();
  const choice = (key, isSmall) => folding.isUnfolded(key, isSmall);
  folding.set("form all", true);
  assert.equal(titles(9, choice).length, 12);
  folding.setAll(false);
  assert.deepEqual(titles(2, choice), ["list", "all", "end"]);
  folding.setAll(true);
  assert.equal(titles(9, choice).length, 12);
});

test("the calls of a map lie between its list and the map", () => {
  const graph = callGraph(stateWith(mapped(3)));
  const layers = layersOf(graph.nodes);
  assert.deepEqual(
    ["list", "all.0", "all.2", "all", "end"].map((id) => layers.get(id)),
    [0, 1, 1, 2, 3],
  );
  assert.deepEqual([...criticalPath(graph.nodes)].slice(-1), ["list"]);
  const folded = drawn(stateWith(mapped(30)), byDefault);
  assert.deepEqual(folded.edges, [
    { from: "list", to: "all" },
    { from: "all", to: "end" },
  ]);
  assert.equal(folded.nodes.get("all").ids.length, 31);
});

test("tools of an agent follow the answer that calls them", () => {
  const graph = callGraph(
    stateWith([
      ["question"],
      ["answer", "agent", null, ["question", "answer@1", "answer@1.0", "answer@1.1", "answer@2"]],
      ["answer@1", null, "answer", ["question"]],
      ["answer@1.0", "tool", "answer"],
      ["answer@1.1", "tool", "answer"],
      ["answer@2", null, "answer", ["question", "answer@1.0", "answer@1.1"]],
    ]),
  );
  const layers = layersOf(graph.nodes);
  assert.deepEqual(
    ["question", "answer@1", "answer@1.0", "answer@1.1", "answer@2", "answer"].map((id) => layers.get(id)),
    [0, 1, 2, 2, 3, 4],
  );
  assert.deepEqual(graph.nodes.get("answer").from, ["question", "answer@2"], "only the last answer leads to the agent");
});

test("nested forms fold in their parent, and readers of their calls follow the folded form", () => {
  const calls = [
    ["all", "map"],
    ["all.0", "repeat", "all"],
    ["draft@1", null, "all.0"],
    ["draft@2", null, "all.0", ["draft@1"]],
    ["end", null, null, ["draft@2"]],
  ];
  const outer = drawn(stateWith(calls), (key) => key === "form all");
  assert.deepEqual([...outer.nodes.keys()], ["all", "all.0", "end"]);
  assert.deepEqual(outer.nodes.get("all.0").inside, "all");
  const folded = drawn(stateWith(calls), never);
  assert.deepEqual([...folded.nodes.keys()], ["all", "end"]);
  assert.deepEqual(folded.edges, [{ from: "all", to: "end" }]);
  assert.equal(folded.nodes.get("all").states.done, 2);
});

test("like forms are a group of folded forms, and calls of a form are in no group", () => {
  const calls = [0, 1, 2].flatMap((index) => [
    [`agent_${index}`, "agent"],
    [`agent_${index}@1`, null, `agent_${index}`],
    [`agent_${index}@2`, null, `agent_${index}`],
  ]);
  const grouped = drawn(stateWith(calls), never);
  assert.deepEqual([...grouped.nodes.values()].map(({ title, count, states }) => [title, count, states.done]), [
    ["agent_#", 3, 6],
  ]);
  const forms = drawn(stateWith(calls), (key) => key.startsWith("group"));
  assert.deepEqual([...forms.nodes.values()].map(({ isFolded, group }) => [isFolded, group]), [
    [true, "group agent_0"],
    [true, "group agent_0"],
    [true, "group agent_0"],
  ]);
  assert.equal(drawn(stateWith(calls), always).nodes.size, 9);
});

test("a folded form is taller, and is found by its own height", () => {
  const layout = layoutGraph(drawn(stateWith(mapped(30)), byDefault));
  assert.equal(layout.places.get("all").height, FORM_HEIGHT);
  assert.equal(layout.places.get("list").height, NODE_HEIGHT);
  const { x, y } = layout.places.get("all");
  const view = { left: x, right: x + 5, top: y + FORM_HEIGHT - 2, bottom: y + FORM_HEIGHT };
  assert.deepEqual(nodesIn(layout, view), ["all"]);
  const middle = layout.places.get("list").y + NODE_HEIGHT / 2;
  assert.equal(middle, y + FORM_HEIGHT / 2, "nodes of a layer are centred");
  assert.match(edgePath(layout, { from: "list", to: "all" }), new RegExp(` ${middle}$`));
});

test("rows of the timeline are a tree", () => {
  const state = stateWith(mapped(3));
  const rows = (choice) => timelineRows(state.calls.values(), outlineOf(state), choice);
  assert.deepEqual(
    rows(byDefault).map(({ call, level }) => `${level} ${call.id}`),
    ["1 list", "1 all", "2 all.0", "2 all.1", "2 all.2", "1 end"],
  );
  assert.deepEqual(
    rows(never).map(({ call, isFolded }) => `${call.id} ${isFolded}`),
    ["list false", "all true", "end false"],
  );
});

test("parents that a server would not send are ignored", () => {
  const loop = stateWith([
    ["a", "map", "b"],
    ["b", "map", "a"],
    ["c", null, "c"],
    ["d", null, "gone"],
    ["e", null, "d"],
  ]);
  const { inside } = outlineOf(loop);
  assert.deepEqual([...inside], [["b", "a"]]);
  assert.equal(drawn(loop, always).nodes.size, 5);
  const deep = stateWith(Array.from({ length: 5_000 }, (_, index) => [`f${index}`, "map", `f${index - 1}`]));
  assert.equal(Math.max(...[...outlineOf(deep).forms.values()].map(({ level }) => level)), 16);
  assert.equal(drawn(deep, always).nodes.size, 5_000);
});

test("events bring the form of a call, and tools run", () => {
  const state = emptyState();
  const change = (id, state, fields) => ({ id, state, output: id, at: 5, error: null, ...fields });
  applyEvents(state, [
    event(1, "call", change("a", "waiting", { form: "agent" })),
    event(2, "call", change("a@1.0", "running", { form: "tool", parent: "a" })),
  ]);
  assert.equal(state.calls.get("a@1.0").waitsFor, "tool");
  const { version } = state;
  assert.equal(outlineOf(state).forms.get("a").states.running, 1);
  applyEvents(state, [event(3, "call", change("a@1.0", "done", {}))]);
  assert.notEqual(state.version, version);
  assert.equal(outlineOf(state).forms.get("a").states.done, 1);
});

test("the tokens of forms are counted once", () => {
  const summary = summarize(stateWith([...mapped(10), ["t", "tool", null, [], { prompt_tokens: 0, completion_tokens: 0 }]]));
  assert.deepEqual([summary.total, summary.tools, summary.prompt], [14, 1, 1_200]);
});
