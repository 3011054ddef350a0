/** The graph: calls as nodes, forms and similar calls folded into one node each, the critical path marked. */

import { SIGNS, causeName, isFinal, stateKind } from "./causes.js";
import { fill, h, oncePerFrame, setAttribute, setText, svg } from "./dom.js";
import { compact, duration, label, plural } from "./format.js";
import { Folding, formKind, formProgress, formSummary } from "./forms.js";
import { NODE_WIDTH, edgePath, edgesIn, layoutGraph, nodesIn } from "./graph_layout.js";
import { callGraph, criticalPath, foldedGraph } from "./graph_model.js";
import { toolButton } from "./legend.js";
import { ownSeconds, wholeSeconds } from "./timeline_layout.js";

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
  const folding = new Folding();
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
      { class: "buttons", role: "group", "aria-label": "Forms and groups" },
      toolButton("Fold all", "Fold forms and similar calls into one node each", () => foldAll(true)),
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
    graph = foldedGraph(calls, (key, isSmall) => folding.isUnfolded(key, isSmall));
    for (const node of graph.nodes.values()) node.isCritical = node.ids.some((id) => path.has(id));
    pathEdges = edgesOfPath(path, graph.nodes);
    layout = layoutGraph(graph);
    setText(note, foldedText([...graph.nodes.values()].filter((node) => node.isFolded)));
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
      node.update(graph.nodes.get(id), layout.places.get(id), now());
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
    view.element.addEventListener("click", (event) => {
      const isToggle = event.target.closest(".node-toggle") !== null;
      if (isToggle && graph.nodes.get(id)?.isUnfolded) foldForm(graph.nodes.get(id));
      else openNode(id);
    });
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
      const [first] = node.form === null ? node.ids : node.form.children.map((child) => child.id);
      folding.set(node.form?.key ?? node.group, true);
      redraw();
      focusNode(graph.nodes.has(first) ? first : id);
    } else if (node.call !== null) select({ kind: "call", key: id });
    else select({ kind: "variable", key: node.variable.name });
  };
  const redraw = () => {
    drawnVersion = -1;
    drawNow();
  };
  const foldForm = ({ id, form }) => {
    folding.set(form.key, false);
    active = id;
    redraw();
    focusNode(id);
  };
  /** Fold what a node belongs to: the form that it is, its group, or the form that it is inside of. */
  const foldAround = (node) => {
    if (node.isUnfolded) foldForm(node);
    else if (node.group !== null && (!node.isFolded || node.form !== null)) {
      folding.set(node.group, false);
      redraw();
      focusNode(node.group);
    } else if (node.inside !== null) foldForm(graph.nodes.get(node.inside));
  };
  const foldAll = (isFolded) => {
    folding.setAll(!isFolded);
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
    const [width, height] = [NODE_WIDTH * scale, place.height * scale];
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
    } else if (event.key === "f") {
      event.preventDefault();
      foldAround(node);
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

function foldedText(nodes) {
  const forms = nodes.filter((node) => node.form !== null).length;
  const groups = nodes.length - forms;
  const parts = [forms > 0 && plural(forms, "form"), groups > 0 && `${plural(groups, "group")} of similar calls`];
  const text = parts.filter(Boolean).join(" and ");
  return text === "" ? "" : `${text} folded`;
}

function nodeElement() {
  const box = svg("rect", { class: "node-box", width: NODE_WIDTH, rx: 9 });
  const back = svg("rect", {
    class: "node-back",
    x: 4,
    y: -4,
    width: NODE_WIDTH,
    rx: 9,
  });
  const sign = svg("text", { class: "node-sign", x: 12, y: 22 });
  const title = svg("text", { class: "node-title", x: 30, y: 22 });
  const detail = svg("text", { class: "node-detail", x: 12, y: 41 });
  const more = svg("text", { class: "node-detail", x: 12, y: 58 });
  const arrow = svg("text", { class: "node-arrow", x: NODE_WIDTH - 20, y: 22 });
  const area = svg("rect", { class: "node-area", x: NODE_WIDTH - 30, width: 30, height: 30 });
  const toggle = svg("g", { class: "node-toggle" }, area, arrow);
  const bar = svg("g", { class: "node-bar" });
  const tip = svg("title");
  const parts = [tip, back, box, sign, title, detail, more, toggle, bar];
  const element = svg("g", { class: "node", role: "button" }, ...parts);
  let drawn = "";
  const update = (node, place, now) => {
    setAttribute(element, "transform", `translate(${place.x} ${place.y})`);
    const kind = node.form === null ? worstKind(node.states) : formKind(node.form);
    const lines = linesOf(node, now);
    const summary = node.form === null ? "" : formSummary(node.form, causeName);
    const { isCritical: onPath, isFolded, isUnfolded } = node;
    const key = `${kind} ${onPath} ${lines.join("\n")} ${isFolded} ${isUnfolded} ${summary} ${place.height}`;
    if (key === drawn) return;
    drawn = key;
    const shape = isFolded ? "folded" : node.call === null ? "variable" : "call";
    const form = node.form === null ? "" : " form";
    setAttribute(element, "class", `node ${shape}${form} state-${kind}${onPath ? " critical" : ""}`);
    for (const part of [box, back]) setAttribute(part, "height", place.height);
    setText(sign, SIGNS[kind]);
    [title, detail, more].forEach((part, index) => setText(part, lines[index] ?? ""));
    setText(arrow, isUnfolded ? "▾" : isFolded ? "▸" : "");
    setAttribute(element, "aria-expanded", isFolded ? "false" : isUnfolded ? "true" : null);
    const rest = onPath ? ", on the critical path" : "";
    setAttribute(element, "aria-label", `${nodeName(node)}: ${sentence(node, summary, lines)}${rest}`);
    setText(tip, `${nodeName(node)}\n${summary || lines.slice(1).join("\n")}`);
    fill(bar, ...(isFolded ? barParts(node, place.height) : []));
  };
  return { element, update };
}

/** Return the texts of a node: its title, then details. */
function linesOf(node, now) {
  const { call, form } = node;
  if (node.count > 1) {
    const title = call?.tool ?? node.title;
    return [`${label(title, 12)} ×${node.count}`, groupText(node)];
  }
  if (form !== null) {
    const title = label(`${call.form} ${node.title}`, 17);
    const time = duration(wholeSeconds(call, now));
    const cause = isFinal(call.state) || form.cause === null ? time : causeName(form.cause);
    if (node.isUnfolded) return [title, label(`${formProgress(form)} · ${cause}`, 25)];
    return [title, label(formProgress(form), 26), label(`${compact(form.tokens)} tokens · ${cause}`, 29)];
  }
  return [label(call?.tool ?? node.title, 19), detailText(node, now)];
}

/** Return the name of a node for screen readers and tooltips. */
function nodeName({ call, form, title, count }) {
  if (count === 1 && form !== null) return label(`${title}, ${call.form}`, 80);
  if (count === 1 && call?.tool) return label(`${title}, tool ${call.tool}`, 100);
  return label(title, 60);
}

function sentence(node, summary, lines) {
  if (node.form !== null) return `${summary}, press ${node.isFolded ? "Enter to unfold" : "F to fold"}`;
  if (node.isFolded) return `${lines[1]}, ${plural(node.count, "similar call")}, press Enter to unfold`;
  return lines[1];
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
  if (call.form !== null && call.form !== "tool") {
    const seconds = duration(wholeSeconds(call, now)); // a form that has added no calls yet
    return `${label(call.form, 8)} · ${label(call.error?.code ?? call.state, 12)} · ${seconds}`;
  }
  const kind = stateKind(call.state);
  if (kind === "failed") return label(call.error?.code ?? "failed", 27);
  if (kind === "done" || kind === "cancelled")
    return `${label(call.state, 12)} · ${duration(ownSeconds(call, now))}`;
  const isWaiting = call.waitsFor === "inputs" || call.waitsFor === "tool";
  const seconds = isWaiting ? now - (call.created ?? now) : ownSeconds(call, now);
  return `${call.waitsFor === null ? label(call.state, 12) : causeName(call.waitsFor)} · ${duration(seconds)}`;
}

function barParts(node, height) {
  const width = NODE_WIDTH - 24;
  const total = KINDS.reduce((sum, kind) => sum + node.states[kind], 0);
  let left = 12;
  return KINDS.filter((kind) => node.states[kind] > 0).map((kind) => {
    const part = (width * node.states[kind]) / total;
    const piece = svg("rect", { class: `bar-${kind}`, x: left, y: height - 7, width: part, height: 3 });
    left += part;
    return piece;
  });
}
