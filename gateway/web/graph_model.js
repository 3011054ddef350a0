/**
 * Turn calls and variables into the nodes of a graph, fold similar calls into groups, and find the critical path.
 *
 * Nothing here knows the document. All functions are linear in calls and edges, up to sorting.
 */

import { isFinal, stateKind } from "./causes.js";

/** Smallest number of similar calls that are folded. */
const SMALLEST_GROUP = 3;
/** Number of rounds in which calls are compared by their neighbours. */
const ROUNDS = 3;

/**
 * Return the nodes and edges between single calls, and variables that no call produces.
 *
 * @param {{ calls: Map<string, any>, variables: Map<string, any> }} state
 * @returns {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }}
 */
export function callGraph(state) {
  const nodes = new Map();
  const makers = new Map();
  for (const call of state.calls.values()) {
    nodes.set(call.id, { id: call.id, call, variable: null, title: call.output, from: [], to: [] });
    makers.set(call.output, call.id);
    for (const slot of call.slots) makers.set(slot, call.id);
  }
  const edges = [];
  for (const call of state.calls.values()) {
    const sources = new Set();
    for (const name of call.inputs) {
      let source = makers.get(name);
      if (source === undefined) {
        source = `variable ${name}`;
        makers.set(name, source);
        const variable = state.variables.get(name) ?? { name, state: "deleted", error: null };
        nodes.set(source, { id: source, call: null, variable, title: name, from: [], to: [] });
      }
      if (source === call.id || sources.has(source)) continue;
      sources.add(source);
      edges.push({ from: source, to: call.id });
      nodes.get(source).to.push(call.id);
      nodes.get(call.id).from.push(source);
    }
  }
  return { nodes, edges };
}

/**
 * Return the layer of each node: the number of edges on the longest path to it. Nodes of a cycle, which no server
 * sends, stay in layer 0.
 */
export function layersOf(nodes) {
  const layers = new Map();
  const missing = new Map();
  const queue = [];
  for (const node of nodes.values()) {
    missing.set(node.id, node.from.length);
    if (node.from.length === 0) queue.push(node.id);
    layers.set(node.id, 0);
  }
  for (let index = 0; index < queue.length; index += 1) {
    const id = queue[index];
    for (const next of nodes.get(id).to) {
      layers.set(next, Math.max(layers.get(next), layers.get(id) + 1));
      missing.set(next, missing.get(next) - 1);
      if (missing.get(next) === 0) queue.push(next);
    }
  }
  return layers;
}

/** Return the name with each run of digits, and each generated part, replaced: `part_12` and `part_7` are alike. */
export function namePattern(name) {
  return name.replace(/^v_[0-9a-z]{6,}$/i, "v_#").replace(/[0-9]+/g, "#");
}

/**
 * Return the groups of like nodes: the same layer, model and pattern of the name, and neighbours that are alike.
 *
 * @param {Map<string, any>} nodes
 * @param {Map<string, number>} layers
 * @returns {{ key: string, ids: string[] }[]} Groups in the order of their first node; most have one node.
 */
export function groupsOf(nodes, layers) {
  let colours = new Map();
  const intern = interner();
  for (const node of nodes.values()) {
    const kind = node.call === null ? "variable" : `call ${node.call.model}`;
    colours.set(node.id, intern(`${layers.get(node.id)} ${kind} ${namePattern(node.title)}`));
  }
  for (let round = 0; round < ROUNDS; round += 1) {
    const finer = new Map();
    const next = interner();
    for (const node of nodes.values()) {
      const readers = distinct(node.to, colours);
      const sources = distinct(node.from, colours);
      finer.set(node.id, next(`${colours.get(node.id)} ${readers} ${sources}`));
    }
    colours = finer;
  }
  const members = new Map();
  for (const node of nodes.values()) {
    const colour = colours.get(node.id);
    if (!members.has(colour)) members.set(colour, []);
    members.get(colour).push(node.id);
  }
  const groups = [];
  for (const ids of members.values()) {
    // the key must stay the same while the group grows, so that an unfolded group stays unfolded
    if (ids.length >= SMALLEST_GROUP) groups.push({ key: `group ${ids[0]}`, ids });
    else for (const id of ids) groups.push({ key: id, ids: [id] });
  }
  return groups;
}

function interner() {
  const numbers = new Map();
  return (text) => {
    let number = numbers.get(text);
    if (number === undefined) {
      number = numbers.size;
      numbers.set(text, number);
    }
    return number;
  };
}

function distinct(ids, colours) {
  return [...new Set(ids.map((id) => colours.get(id)))].sort((one, other) => one - other).join(",");
}

/**
 * Return the graph to draw: groups are one node each, unless they are unfolded.
 *
 * @param {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} graph
 * @param {(key: string) => boolean} isUnfolded
 * @returns {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} Nodes with `ids`, `group` (the key of
 *   the group that a node can be folded into, or null), `title` and `states` (numbers of calls by kind of state).
 */
export function foldedGraph(graph, isUnfolded) {
  const layers = layersOf(graph.nodes);
  const nodes = new Map();
  const owner = new Map();
  for (const { key, ids } of groupsOf(graph.nodes, layers)) {
    const isFolded = ids.length > 1 && !isUnfolded(key);
    for (const part of isFolded ? [ids] : ids.map((id) => [id])) {
      const id = isFolded ? key : part[0];
      const first = graph.nodes.get(part[0]);
      const title = isFolded ? namePattern(first.title) : first.title;
      const states = statesOf(part, graph.nodes);
      const group = ids.length > 1 ? key : null;
      nodes.set(id, {
        id,
        ids: part,
        group,
        isFolded,
        title,
        states,
        call: first.call,
        variable: first.variable,
        from: [],
        to: [],
      });
      for (const member of part) owner.set(member, id);
    }
  }
  const edges = [];
  const seen = new Set();
  for (const edge of graph.edges) {
    const from = owner.get(edge.from);
    const to = owner.get(edge.to);
    const key = `${from}\n${to}`;
    if (from === to || seen.has(key)) continue;
    seen.add(key);
    edges.push({ from, to });
    nodes.get(from).to.push(to);
    nodes.get(to).from.push(from);
  }
  return { nodes, edges };
}

function statesOf(ids, nodes) {
  const states = { waiting: 0, running: 0, done: 0, failed: 0, cancelled: 0 };
  for (const id of ids) {
    const { call, variable } = nodes.get(id);
    states[stateKind((call ?? variable).state)] += 1;
  }
  return states;
}

/**
 * Return the ids of the nodes on the critical path: from the call that ended last, or that runs on the longest path,
 * back over the input that was ready last each time.
 *
 * @param {Map<string, any>} nodes Of `callGraph`.
 */
export function criticalPath(nodes) {
  const layers = layersOf(nodes);
  const isLater = (one, other) => {
    const [first, second] = [endOf(one), endOf(other)];
    return first === second ? layers.get(one.id) > layers.get(other.id) : first > second;
  };
  const latest = (candidates) => {
    let found = null;
    for (const node of candidates) if (found === null || isLater(node, found)) found = node;
    return found;
  };
  const path = new Set();
  let node = latest(nodes.values());
  while (node !== null && !path.has(node.id)) {
    path.add(node.id);
    node = latest(node.from.map((id) => nodes.get(id)));
  }
  return path;
}

/** Return when a node ended: never, as long as it has not; at the beginning, for a value that a client has set. */
function endOf(node) {
  if (node.call === null) return isFinal(node.variable.state) ? -Infinity : Infinity;
  return node.call.finished ?? Infinity;
}
