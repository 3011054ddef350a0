import assert from "node:assert/strict";
import { test } from "node:test";

import {
  MAX_EDGES,
  NODE_HEIGHT,
  edgePath,
  edgesIn,
  layoutGraph,
  nodesIn,
} from "../../../gateway/web/graph_layout.js";

/** Return a graph from pairs of names. */
function graph(names, pairs) {
  const nodes = new Map(names.map((id) => [id, { id, from: [], to: [] }]));
  const edges = pairs.map(([from, to]) => ({ from, to }));
  for (const { from, to } of edges) {
    nodes.get(from).to.push(to);
    nodes.get(to).from.push(from);
  }
  return { nodes, edges };
}

const EVERYTHING = { left: -1e9, top: -1e9, right: 1e9, bottom: 1e9 };

test("readers are right of what they read, and no nodes overlap", () => {
  const names = ["a", "b", "c", "d", "e"];
  const layout = layoutGraph(
    graph(names, [
      ["a", "c"],
      ["b", "c"],
      ["c", "d"],
      ["a", "e"],
    ]),
  );
  const { places } = layout;
  assert.ok(places.get("a").x < places.get("c").x && places.get("c").x < places.get("d").x);
  const boxes = names.map((name) => `${places.get(name).x} ${places.get(name).y}`);
  assert.equal(new Set(boxes).size, names.length);
  for (const { x, y } of places.values()) assert.ok(x >= 0 && y >= 0 && y + NODE_HEIGHT <= layout.height);
});

test("the order within a layer avoids crossings", () => {
  const pairs = [
    ["a", "z"],
    ["b", "y"],
    ["c", "x"],
  ];
  const { places } = layoutGraph(graph(["a", "b", "c", "x", "y", "z"], pairs));
  const above = (one, other) => places.get(one).y < places.get(other).y;
  for (const [from, to] of pairs) {
    for (const [other, target] of pairs)
      if (from !== other) assert.equal(above(from, other), above(to, target));
  }
});

test("only what a rectangle shows is found", () => {
  const names = Array.from({ length: 2000 }, (_, index) => `n${index}`);
  const layout = layoutGraph(
    graph(
      [...names, "end"],
      names.map((name) => [name, "end"]),
    ),
  );
  assert.equal(nodesIn(layout, EVERYTHING).length, 2001);
  const view = { left: 0, top: 5000, right: 800, bottom: 5600 };
  const found = nodesIn(layout, view);
  assert.ok(found.length < 30, `${found.length}`);
  for (const id of found) {
    const { y } = layout.places.get(id);
    assert.ok(y + NODE_HEIGHT >= view.top && y <= view.bottom);
  }
  assert.ok(
    edgesIn(
      layout,
      names.map((name) => ({ from: name, to: "end" })),
      EVERYTHING,
    ).length <= MAX_EDGES,
  );
});

test("an edge over several layers passes beside the nodes between its ends", () => {
  const names = ["a", "b", "c", "d", "e"];
  const pairs = [
    ["a", "b"],
    ["b", "c"],
    ["c", "d"],
    ["a", "d"],
    ["a", "e"],
    ["e", "d"],
  ];
  const layout = layoutGraph(graph(names, pairs));
  assert.ok(edgePath(layout, { from: "a", to: "d" }).includes("L"), "it has lanes");
  assert.ok(!edgePath(layout, { from: "a", to: "b" }).includes("L"));
  for (const lane of layout.lanes.get("a")) {
    for (const [name, place] of layout.places) {
      const isBeside = lane.y < place.y || lane.y > place.y + NODE_HEIGHT;
      assert.ok(place.layer !== lane.layer || isBeside, name);
    }
  }
});

test("a graph with too many long edges has no lanes", () => {
  const names = Array.from({ length: 200 }, (_, index) => `n${index}`);
  const pairs = names.slice(1).flatMap((name, index) => [
    [names[index], name],
    [names[0], name],
  ]);
  pairs.push(...names.slice(0, 150).map((name) => [name, names[199]]));
  const layout = layoutGraph(
    graph(
      names,
      [...new Set(pairs.map(String))].map((pair) => pair.split(",")),
    ),
  );
  assert.equal(layout.lanes.size, 0);
});

test("an empty graph has a size", () => {
  const layout = layoutGraph(graph([], []));
  assert.ok(layout.width > 0 && layout.height > 0);
  assert.deepEqual(nodesIn(layout, EVERYTHING), []);
});
