/**
 * Turn calls and variables into the nodes of a graph, fold similar calls into groups, and find the critical path.
 *
 * Nothing here knows the document. All functions are linear in calls and edges, up to sorting.
 */

import { isFinal, stateKind } from "./causes.js";
import { outlineOf } from "./forms.js";

/** Smallest number of similar calls that are folded. */
const SMALLEST_GROUP = 3;
/** Largest number of inputs of a form to which its first calls are connected. */
const MOST_ENTRIES = 3;
/** Number of rounds in which calls are compared by their neighbours. */
const ROUNDS = 3;

/**
 * Return the nodes and edges between single calls, and variables that no call produces.
 *
 * A form comes after the calls that it adds, because it reads them. It is connected with those that no other of them
 * reads. Those that read no other call follow the inputs of the form: the list of a map is what its elements were made
 * of.
 *
 * @param {{ calls: Map<string, any>, variables: Map<string, any> }} state
 * @returns {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} Nodes with `form` (the form of the call,
 *   if it has added calls, or null) and `inside` (the id of the form that has added the call, or null).
 */
export function callGraph(state) {
  const nodes = new Map();
  const makers = new Map();
  const { forms, inside } = outlineOf(state);
  for (const call of state.calls.values()) {
    const found = forms.get(call.id);
    const form = found !== undefined && found.children.length > 0 ? found : null;
    nodes.set(call.id, newNode(call.id, call, null, call.output, form, inside.get(call.id) ?? null));
    makers.set(call.output, call.id);
    for (const slot of call.slots) makers.set(slot, call.id);
  }
  const edges = [];
  const connect = (from, to) => {
    edges.push({ from, to });
    nodes.get(from).to.push(to);
    nodes.get(to).from.push(from);
  };
  for (const call of state.calls.values()) {
    const sources = new Set();
    const added = inside.get(call.id);
    if (added !== undefined && forms.get(added).call.form === "agent") {
      // the second tool call of the first answer is `answer@1.1`, and reads no variable
      const answer = makers.get(call.output.replace(/\.[0-9]{1,6}$/, ""));
      if (answer !== undefined && answer !== added && answer !== call.id && inside.get(answer) === added)
        sources.add(answer);
    }
    for (const name of call.inputs) {
      let source = makers.get(name);
      if (source === undefined) {
        source = `variable ${name}`;
        makers.set(name, source);
        const variable = state.variables.get(name) ?? { name, state: "deleted", error: null };
        nodes.set(source, newNode(source, null, variable, name, null, null));
      }
      if (source !== call.id && inside.get(source) !== call.id) sources.add(source);
    }
    for (const source of sources) connect(source, call.id);
  }
  for (const [id, form] of inside) {
    const isRead = nodes.get(id).to.some((reader) => reader !== form && isInside(reader, form, inside));
    if (!isRead) connect(id, form);
  }
  const entries = new Map();
  for (const [id, form] of inside) {
    if (nodes.get(id).from.some((source) => !isInside(source, id, inside))) continue;
    if (!entries.has(form)) entries.set(form, entriesOf(form, nodes, inside));
    for (const source of entries.get(form)) connect(source, id);
  }
  return { nodes, edges };
}

/** Return a node. All nodes have the same properties in the same order, so that the engine reads them fast. */
function newNode(id, call, variable, title, form, inside) {
  return {
    id,
    ids: [id],
    count: 1,
    group: null,
    form,
    inside,
    isFolded: false,
    isUnfolded: false,
    title,
    states: null,
    call,
    variable,
    from: [],
    to: [],
  };
}

/** Return whether a node is a call of a form, or of a form inside that. */
function isInside(id, form, inside) {
  for (let outer = inside.get(id); outer !== undefined; outer = inside.get(outer)) if (outer === form) return true;
  return false;
}

/** Return the first inputs of a form, or of the form around it, from outside. */
function entriesOf(form, nodes, inside) {
  for (let outer = form; outer !== undefined; outer = inside.get(outer)) {
    const found = [];
    for (const source of nodes.get(outer).from) {
      if (!isInside(source, outer, inside)) found.push(source);
      if (found.length === MOST_ENTRIES) break;
    }
    if (found.length > 0) return found;
  }
  return [];
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
 * Return the groups of like nodes: the same layer, model and pattern of the name, and neighbours that are alike. Nodes
 * inside of a form are in no group: a reader who unfolds the form wants to see them.
 *
 * @param {Map<string, any>} nodes
 * @param {Map<string, number>} layers
 * @returns {{ key: string, ids: string[] }[]} Groups in the order of their first node; most have one node.
 */
export function groupsOf(nodes, layers) {
  let colours = new Map();
  const intern = interner();
  for (const node of nodes.values()) {
    let kind = node.call === null ? "variable" : `call ${node.call.model}`;
    if (node.call !== null && node.call.form !== null) kind += ` ${node.call.form} ${node.call.tool}`;
    if (node.inside !== null || node.isUnfolded) kind += ` single ${node.id}`;
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
 * Return the graph to draw: forms and groups are one node each, unless they are unfolded.
 *
 * @param {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} graph
 * @param {(key: string, isSmall: boolean) => boolean} isUnfolded `isSmall`: whether a form has few calls.
 * @returns {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} Nodes with `ids` (of the calls and
 *   variables that they stand for), `count` (number of like nodes in a folded group), `group` (the key of the group that
 *   a node can be folded into, or null), `form` and `inside` as in `callGraph`, `title`, `isFolded`, `isUnfolded` (it is
 *   a form that is unfolded) and `states` (numbers of calls by kind of state).
 */
export function foldedGraph(graph, isUnfolded) {
  return foldGroups(foldForms(graph, isUnfolded), isUnfolded);
}

/** Return the graph with one node for each folded form, in place of the form and all calls inside. */
function foldForms(graph, isUnfolded) {
  let hasForms = false;
  for (const node of graph.nodes.values()) hasForms ||= node.form !== null;
  if (!hasForms) return graph;
  const nodes = new Map();
  const owner = new Map();
  for (const node of graph.nodes.values()) {
    // a form comes before its calls
    const outer = node.inside === null ? node.inside : owner.get(node.inside);
    if (outer !== null && nodes.get(outer).isFolded) {
      owner.set(node.id, outer);
      nodes.get(outer).ids.push(node.id);
      continue;
    }
    const isOpen = node.form !== null && isUnfolded(node.form.key, node.form.isSmall);
    owner.set(node.id, node.id);
    const copy = newNode(node.id, node.call, node.variable, node.title, node.form, node.inside);
    copy.isFolded = node.form !== null && !isOpen;
    copy.isUnfolded = isOpen;
    nodes.set(node.id, copy);
  }
  const edges = joinEdges(graph.edges, owner, nodes);
  return { nodes, edges };
}

/** Return the edges between the owners of their ends, each once, and add them to the owners. */
function joinEdges(edges, owner, nodes) {
  const joined = [];
  const seen = new Set();
  for (const edge of edges) {
    const from = owner.get(edge.from);
    const to = owner.get(edge.to);
    const key = `${from}\n${to}`;
    if (from === to || seen.has(key)) continue;
    seen.add(key);
    joined.push({ from, to });
    nodes.get(from).to.push(to);
    nodes.get(to).from.push(from);
  }
  return joined;
}

/** Return the graph with one node for each folded group of like nodes. */
function foldGroups(graph, isUnfolded) {
  const layers = layersOf(graph.nodes);
  const nodes = new Map();
  const owner = new Map();
  for (const { key, ids } of groupsOf(graph.nodes, layers)) {
    const group = ids.length > 1 ? key : null;
    if (group !== null && !isUnfolded(key, false)) {
      const members = ids.map((id) => graph.nodes.get(id));
      const [first] = members;
      const folded = newNode(key, first.call, first.variable, namePattern(first.title), null, null);
      folded.ids = members.flatMap((member) => member.ids);
      folded.count = ids.length;
      folded.group = group;
      folded.isFolded = true;
      folded.states = statesOf(members);
      nodes.set(key, folded);
      for (const id of ids) owner.set(id, key);
      continue;
    }
    for (const id of ids) {
      const node = graph.nodes.get(id);
      const copy = newNode(id, node.call, node.variable, node.title, node.form, node.inside);
      copy.ids = node.ids;
      copy.group = group;
      copy.isFolded = node.isFolded;
      copy.isUnfolded = node.isUnfolded;
      copy.states = statesOf([node]);
      nodes.set(id, copy);
      owner.set(id, id);
    }
  }
  const edges = joinEdges(graph.edges, owner, nodes);
  return { nodes, edges };
}

/** Return the numbers of calls by kind of state. A form counts with the calls inside. */
function statesOf(members) {
  const states = { waiting: 0, running: 0, done: 0, failed: 0, cancelled: 0 };
  for (const { call, variable, form, isFolded } of members) {
    if (form !== null && isFolded) for (const kind of Object.keys(states)) states[kind] += form.states[kind];
    else states[stateKind((call ?? variable).state)] += 1;
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
