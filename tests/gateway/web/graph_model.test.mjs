import assert from "node:assert/strict";
import { test } from "node:test";

import {
  callGraph,
  criticalPath,
  foldedGraph,
  layersOf,
  namePattern,
} from "../../../gateway/web/graph_model.js";
import { stateOf } from "../../../gateway/web/session_state.js";
import { rawCall, rawGraph, rawVariable } from "./objects.mjs";

/** Return the graph of calls, each given as [name, inputs, fields]. */
function graphOf(calls, variables = []) {
  return callGraph(
    stateOf(
      rawGraph(
        1,
        calls.map(([name, inputs = [], fields = {}]) => rawCall(name, { inputs, ...fields })),
        variables,
      ),
    ),
  );
}

const folded = (graph, ...unfolded) => foldedGraph(graph, (key) => unfolded.includes(key));
const titles = (graph) =>
  [...graph.nodes.values()].map((node) => (node.isFolded ? `${node.title} ×${node.ids.length}` : node.title));
const maps = (count, prefix = "part") => Array.from({ length: count }, (_, index) => [`${prefix}_${index}`]);

test("edges lead from producers to readers, and values of clients are nodes", () => {
  const graph = graphOf([["a"], ["b", ["a", "given", "a"]]], [rawVariable("given")]);
  assert.deepEqual(graph.edges, [
    { from: "a", to: "b" },
    { from: "variable given", to: "b" },
  ]);
  assert.equal(graph.nodes.get("variable given").variable.state, "ready");
});

test("the maps of a map-reduce are folded and can be unfolded", () => {
  const parts = maps(12);
  const graph = graphOf([...parts, ["sum", parts.map(([name]) => name)]]);
  const whole = folded(graph);
  assert.deepEqual(titles(whole), ["part_# ×12", "sum"]);
  assert.deepEqual(whole.edges, [{ from: "group part_0", to: "sum" }]);
  assert.equal(whole.nodes.get("group part_0").states.done, 12);
  const open = folded(graph, "group part_0");
  assert.equal(open.nodes.size, 13);
  assert.equal(open.nodes.get("part_3").group, "group part_0", "it can be folded again");
});

test("chains of like calls beside each other are folded step by step", () => {
  const parts = maps(5, "draft");
  const refined = parts.map(([name], index) => [`refined_${index}`, [name]]);
  const graph = folded(graphOf([...parts, ...refined, ["best", refined.map(([name]) => name)]]));
  assert.deepEqual(titles(graph), ["draft_# ×5", "refined_# ×5", "best"]);
  assert.equal(graph.edges.length, 2);
});

test("calls with other readers, models, names or depths stay apart", () => {
  const graph = folded(
    graphOf([
      ...maps(3),
      ...maps(3, "other"),
      ["big_1", [], { model: "large" }],
      ["part_7"],
      ["one", ["part_0", "part_1", "part_2", "other_0", "other_1", "other_2", "big_1"]],
      ["two", ["part_7"]],
    ]),
  );
  assert.deepEqual(titles(graph), ["part_# ×3", "other_# ×3", "big_1", "part_7", "one", "two"]);
});

test("two like calls are not folded", () => {
  assert.deepEqual(titles(folded(graphOf([...maps(2), ["sum", ["part_0", "part_1"]]]))), [
    "part_0",
    "part_1",
    "sum",
  ]);
});

test("names are alike up to their numbers", () => {
  assert.equal(namePattern("review_2_10"), "review_#_#");
  assert.equal(namePattern("v_1f0c22ab93de"), "v_#");
});

test("the critical path ends with the call that ended last and goes back over the latest inputs", () => {
  const graph = graphOf([
    ["slow", [], { finished: 110 }],
    ["fast", [], { finished: 103 }],
    ["join", ["fast", "slow"], { finished: 120 }],
    ["side", ["fast"], { finished: 119 }],
  ]);
  assert.deepEqual([...criticalPath(graph.nodes)], ["join", "slow"]);
});

test("an unfinished call is later than all that ended", () => {
  const graph = graphOf([
    ["a", [], { finished: 110 }],
    ["b", [], { finished: null, state: "decode" }],
    ["c", ["a", "b"], { finished: null, state: "waiting" }],
  ]);
  assert.deepEqual([...criticalPath(graph.nodes)], ["c", "b"]);
});

test("a value that no client has set is on the critical path", () => {
  const graph = graphOf(
    [
      ["a", [], { finished: 5 }],
      ["b", ["a", "tool"], { finished: null, state: "waiting" }],
    ],
    [rawVariable("tool", { state: "declared" })],
  );
  assert.deepEqual([...criticalPath(graph.nodes)], ["b", "variable tool"]);
});

test("a circle, which no server sends, ends", () => {
  const graph = graphOf([
    ["a", ["b"]],
    ["b", ["a"]],
    ["c", ["c"]],
  ]);
  assert.equal(layersOf(graph.nodes).size, 3);
  assert.ok(criticalPath(graph.nodes).size >= 1);
  assert.equal(folded(graph).nodes.size, 3);
});

test("an empty graph", () => {
  const graph = graphOf([]);
  assert.equal(criticalPath(graph.nodes).size, 0);
  assert.equal(folded(graph).nodes.size, 0);
});
