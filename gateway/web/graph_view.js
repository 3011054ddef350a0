/** The graph: calls as nodes, similar calls folded into one node, the critical path marked. */

import { SIGNS, causeName, stateKind } from "./causes.js";
import { fill, h, oncePerFrame, setAttribute, setText, svg } from "./dom.js";
import { duration, label, plural } from "./format.js";
import { NODE_HEIGHT, NODE_WIDTH, edgePath, edgesIn, layoutGraph, nodesIn } from "./graph_layout.js";
import { callGraph, criticalPath, foldedGraph } from "./graph_model.js";
import { toolButton } from "./legend.js";
import { ownSeconds } from "./timeline_layout.js";

const KINDS = ["done", "running", "waiting", "failed", "cancelled"];
/** Part of the time that rebuilding a changing graph may take. */
const REBUILD_SHARE = 0.2;
const ZOOMS = [0.35, 0.5, 0.7, 1, 1.3];

/**
 * Return the view.
 *
 * @param {{ now: () => number, select: (target: { kind: string, key: string }) => void }} context
 */
export function graphView({ now, select }) {
  const unfolded = new Set();
  let zoom = 3;
  let state = null;
  let drawnVersion = -1;
  let graph = { nodes: new Map(), edges: [] };
  let path = new Set();
  let pathEdges = new Set();
  let layout = layoutGraph(graph);
  let active = null;
  let isPlaced = false;
  let earliest = 0;
  let timer = 0;

  const edgeLayer = svg("g", { class: "edges", "aria-hidden": "true" });
  const nodeLayer = svg("g", { class: "nodes" });
  const canvas = svg(
    "svg",
    { class: "graph-canvas", role: "group", "aria-label": "Graph of calls" },
    edgeLayer,
    nodeLayer,
  );
  const scroller = h("div", { class: "graph", tabindex: -1 }, canvas);
  const empty = h("p", { class: "empty" }, "No calls yet.");
  const note = h("span", { class: "note", role: "status" });
  const toolbar = h(
    "div",
    { class: "toolbar" },
    h(
      "div",
      { class: "buttons", role: "group", "aria-label": "Zoom" },
      toolButton("−", "Zoom out", () => zoomTo(zoom - 1)),
      toolButton("+", "Zoom in", () => zoomTo(zoom + 1)),
    ),
    h(
      "div",
      { class: "buttons", role: "group", "aria-label": "Groups" },
      toolButton("Fold all", "Fold similar calls into one node", () => foldAll(true)),
      toolButton("Unfold all", "Show each call as a node", () => foldAll(false)),
    ),
    h(
      "ul",
      { class: "legend", "aria-label": "Signs" },
      ...KINDS.map((kind) =>
        h(
          "li",
          { class: `state-${kind}` },
          h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[kind]),
          kind,
        ),
      ),
      h("li", {}, h("span", { class: "swatch critical", "aria-hidden": "true" }), "critical path"),
    ),
    note,
  );
  const element = h("div", { class: "subview" }, toolbar, empty, scroller);
  const nodes = new Map();
  const edges = new Map();

  const rebuild = () => {
    const calls = callGraph(state);
    path = criticalPath(calls.nodes);
    graph = foldedGraph(calls, (key) => unfolded.has(key) || unfolded.has("all"));
    pathEdges = edgesOfPath(path, graph.nodes);
    layout = layoutGraph(graph);
    const folded = [...graph.nodes.values()].filter((node) => node.isFolded).length;
    setText(note, folded === 0 ? "" : `${plural(folded, "group")} of similar calls folded`);
    drawnVersion = state.version;
  };
  /** Rebuild the graph now, or later if rebuilds take too much of the time: a large graph changes in every frame. */
  const rebuildInTime = () => {
    const began = performance.now();
    if (drawnVersion >= 0 && began < earliest) {
      clearTimeout(timer);
      timer = setTimeout(draw, earliest - began);
      return;
    }
    rebuild();
    earliest = performance.now() + (performance.now() - began) / REBUILD_SHARE;
  };
  const drawNow = () => {
    if (state === null) return;
    if (state.version !== drawnVersion) rebuildInTime();
    empty.hidden = graph.nodes.size > 0;
    scroller.hidden = graph.nodes.size === 0;
    const scale = ZOOMS[zoom];
    setAttribute(canvas, "width", Math.ceil(layout.width * scale));
    setAttribute(canvas, "height", Math.ceil(layout.height * scale));
    setAttribute(canvas, "viewBox", `0 0 ${layout.width} ${layout.height}`);
    if (!isPlaced && graph.nodes.size > 0 && scroller.clientHeight > 0) {
      isPlaced = true;
      scroller.scrollTop = (layout.height * scale - scroller.clientHeight) / 2;
    }
    const view = {
      left: scroller.scrollLeft / scale,
      top: scroller.scrollTop / scale,
      right: (scroller.scrollLeft + (scroller.clientWidth || 900)) / scale,
      bottom: (scroller.scrollTop + (scroller.clientHeight || 600)) / scale,
    };
    drawNodes(nodesIn(layout, view));
    drawEdges(edgesIn(layout, graph.edges, view));
  };
  const draw = oncePerFrame(drawNow);
  const isCritical = (node) => node.ids.some((id) => path.has(id));
  const drawNodes = (ids) => {
    const shown = new Set(ids);
    if (active === null || !graph.nodes.has(active)) active = ids[0] ?? null;
    if (active !== null && graph.nodes.has(active)) shown.add(active); // it must be there to be reached by Tab
    for (const [id, node] of nodes) {
      if (!shown.has(id)) {
        node.element.remove();
        nodes.delete(id);
      }
    }
    for (const id of shown) {
      let node = nodes.get(id);
      if (node === undefined) {
        node = createNode(id);
        nodes.set(id, node);
        nodeLayer.append(node.element);
      }
      node.update(graph.nodes.get(id), layout.places.get(id), isCritical(graph.nodes.get(id)), now());
      setAttribute(node.element, "tabindex", id === active ? 0 : -1);
    }
  };
  const drawEdges = (visible) => {
    const shown = new Set();
    for (const { from, to } of visible) {
      const key = `${from}\n${to}`;
      shown.add(key);
      if (!edges.has(key)) {
        const line = svg("path", { class: "edge" });
        edges.set(key, line);
        edgeLayer.append(line);
      }
      const line = edges.get(key);
      setAttribute(line, "d", edgePath(layout, { from, to }));
      const onPath = pathEdges.has(key);
      setAttribute(line, "class", onPath ? "edge critical" : "edge");
    }
    for (const [key, line] of edges) {
      if (!shown.has(key)) {
        line.remove();
        edges.delete(key);
      }
    }
  };
  const createNode = (id) => {
    const view = nodeElement();
    view.element.addEventListener("click", () => openNode(id));
    view.element.addEventListener("focus", () => {
      active = id;
    });
    return view;
  };
  const openNode = (id) => {
    const node = graph.nodes.get(id);
    if (node === undefined) return;
    active = id;
    if (node.isFolded) {
      unfolded.add(node.group);
      drawnVersion = -1;
      active = node.ids[0];
      drawNow();
      focusNode(node.ids[0]);
    } else if (node.call !== null) select({ kind: "call", key: id });
    else select({ kind: "variable", key: node.variable.name });
  };
  const foldAll = (isFolded) => {
    unfolded.clear();
    if (!isFolded) unfolded.add("all");
    drawnVersion = -1;
    isPlaced = false;
    draw();
  };
  const zoomTo = (next) => {
    const before = ZOOMS[zoom];
    zoom = Math.max(0, Math.min(ZOOMS.length - 1, next));
    const ratio = ZOOMS[zoom] / before;
    const middle = {
      x: scroller.scrollLeft + scroller.clientWidth / 2,
      y: scroller.scrollTop + scroller.clientHeight / 2,
    };
    setAttribute(canvas, "width", Math.ceil(layout.width * ZOOMS[zoom]));
    setAttribute(canvas, "height", Math.ceil(layout.height * ZOOMS[zoom]));
    scroller.scrollTo(
      middle.x * ratio - scroller.clientWidth / 2,
      middle.y * ratio - scroller.clientHeight / 2,
    );
    draw();
  };
  const focusNode = (id) => {
    const place = layout.places.get(id);
    if (place === undefined) return;
    active = id;
    const scale = ZOOMS[zoom];
    const [x, y] = [place.x * scale, place.y * scale];
    const [width, height] = [NODE_WIDTH * scale, NODE_HEIGHT * scale];
    if (x < scroller.scrollLeft) scroller.scrollLeft = x - 12;
    if (x + width > scroller.scrollLeft + scroller.clientWidth)
      scroller.scrollLeft = x + width - scroller.clientWidth + 12;
    if (y < scroller.scrollTop) scroller.scrollTop = y - 12;
    if (y + height > scroller.scrollTop + scroller.clientHeight)
      scroller.scrollTop = y + height - scroller.clientHeight + 12;
    drawNow(); // not in the next frame: the focus would arrive after the next key
    nodes.get(id)?.element.focus({ preventScroll: true });
  };
  scroller.addEventListener("scroll", draw, { passive: true });
  nodeLayer.addEventListener("keydown", (event) => {
    const node = graph.nodes.get(active);
    if (node === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = neighbour(event.key, node, layout);
    if (next !== undefined) {
      event.preventDefault();
      if (next !== null) focusNode(next);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      openNode(active);
    } else if (event.key === "f" && node.group !== null && !node.isFolded) {
      event.preventDefault();
      unfolded.delete("all");
      unfolded.delete(node.group);
      active = node.group;
      drawnVersion = -1;
      drawNow();
      focusNode(node.group);
    }
  });
  const resize = new ResizeObserver(draw);
  resize.observe(scroller);
  return {
    element,
    update: (next) => {
      if (next !== state) drawnVersion = -1;
      state = next;
      draw();
    },
    activate: () => {},
    close: () => {
      resize.disconnect();
      clearTimeout(timer);
    },
  };
}

/** Return the keys of the edges between neighbours on the critical path, in a graph with folded nodes. */
function edgesOfPath(path, nodes) {
  const owner = new Map();
  for (const node of nodes.values()) for (const id of node.ids) owner.set(id, node.id);
  const ids = [...path]; // from the last call to the first
  return new Set(ids.slice(1).map((id, index) => `${owner.get(id)}\n${owner.get(ids[index])}`));
}

/** Return the node that an arrow key leads to: null if there is none, undefined for other keys. */
function neighbour(key, node, layout) {
  const place = layout.places.get(node.id);
  const layer = layout.layers[place.layer];
  if (key === "ArrowDown") return layer[place.row + 1] ?? null;
  if (key === "ArrowUp") return layer[place.row - 1] ?? null;
  if (key === "ArrowRight") return node.to[0] ?? layout.layers[place.layer + 1]?.[0] ?? null;
  if (key === "ArrowLeft") return node.from[0] ?? layout.layers[place.layer - 1]?.[0] ?? null;
  if (key === "Home") return layout.layers[0]?.[0] ?? null;
  if (key === "End") return layout.layers[layout.layers.length - 1]?.[0] ?? null;
  return undefined;
}

function nodeElement() {
  const box = svg("rect", { class: "node-box", width: NODE_WIDTH, height: NODE_HEIGHT, rx: 9 });
  const back = svg("rect", {
    class: "node-back",
    x: 4,
    y: -4,
    width: NODE_WIDTH,
    height: NODE_HEIGHT,
    rx: 9,
  });
  const sign = svg("text", { class: "node-sign", x: 12, y: 22 });
  const title = svg("text", { class: "node-title", x: 30, y: 22 });
  const detail = svg("text", { class: "node-detail", x: 12, y: 41 });
  const bar = svg("g", { class: "node-bar" });
  const tip = svg("title");
  const element = svg("g", { class: "node", role: "button" }, tip, back, box, sign, title, detail, bar);
  let drawn = "";
  const update = (node, place, onPath, now) => {
    setAttribute(element, "transform", `translate(${place.x} ${place.y})`);
    const kind = worstKind(node.states);
    const text = node.isFolded ? `${label(node.title, 14)} ×${node.ids.length}` : label(node.title, 19);
    const second = node.isFolded ? groupText(node) : detailText(node, now);
    const key = `${kind} ${onPath} ${text} ${second} ${node.isFolded}`;
    if (key === drawn) return;
    drawn = key;
    const shape = node.isFolded ? "folded" : node.call === null ? "variable" : "call";
    setAttribute(element, "class", `node ${shape} state-${kind}${onPath ? " critical" : ""}`);
    setText(sign, SIGNS[kind]);
    setText(title, text);
    setText(detail, second);
    const rest = onPath ? ", on the critical path" : "";
    const act = node.isFolded ? `, ${plural(node.ids.length, "similar call")}, press Enter to unfold` : "";
    setAttribute(element, "aria-label", `${label(node.title, 60)}: ${second}${act}${rest}`);
    setText(tip, `${label(node.title, 100)}\n${second}`);
    fill(bar, ...(node.isFolded ? barParts(node) : []));
  };
  return { element, update };
}

/** Return the kind of state that a node shows: failures first, then unfinished calls. */
function worstKind(states) {
  for (const kind of ["failed", "running", "waiting", "cancelled"]) if (states[kind] > 0) return kind;
  return "done";
}

function groupText(node) {
  const parts = KINDS.filter((kind) => node.states[kind] > 0).map((kind) => `${node.states[kind]} ${kind}`);
  return label(parts.join(", "), 30);
}

function detailText(node, now) {
  if (node.call === null) return `set by a client, ${label(node.variable.state, 12)}`;
  const { call } = node;
  const kind = stateKind(call.state);
  if (kind === "failed") return label(call.error?.code ?? "failed", 27);
  if (kind === "done" || kind === "cancelled")
    return `${label(call.state, 12)} · ${duration(ownSeconds(call, now))}`;
  const isWaiting = call.waitsFor === "inputs" || call.waitsFor === "tool";
  const seconds = isWaiting ? now - (call.created ?? now) : ownSeconds(call, now);
  return `${call.waitsFor === null ? label(call.state, 12) : causeName(call.waitsFor)} · ${duration(seconds)}`;
}

function barParts(node) {
  const width = NODE_WIDTH - 24;
  let left = 12;
  return KINDS.filter((kind) => node.states[kind] > 0).map((kind) => {
    const part = (width * node.states[kind]) / node.ids.length;
    const piece = svg("rect", { class: `bar-${kind}`, x: left, y: NODE_HEIGHT - 7, width: part, height: 3 });
    left += part;
    return piece;
  });
}
