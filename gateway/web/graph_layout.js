/**
 * Place the nodes of a graph in layers from left to right, and find those in a viewport.
 *
 * The order within a layer follows the mean position of the neighbours (Sugiyama's barycentre heuristic). An edge over
 * several layers gets a lane in each layer between its ends, so that it passes beside the nodes and not behind them.
 */

import { layersOf } from "./graph_model.js";

export const NODE_WIDTH = 176;
export const NODE_HEIGHT = 54;
/** Height of a folded form, which has one line more. */
export const FORM_HEIGHT = 72;
const LANE_HEIGHT = 8;
const GAP_X = 72;
const GAP_Y = 18;
const MARGIN = 20;
const SWEEPS = 4;
/** Largest number of edges that are drawn together. */
export const MAX_EDGES = 2_500;
/** Largest number of lanes. A larger graph has none: its edges may pass behind nodes. */
const MAX_LANES = 600;

/**
 * Return the places of the nodes.
 *
 * @param {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} graph
 * @returns {{ width: number, height: number, places: Map<string, Place>, layers: string[][],
 *   lanes: Map<string, Place[]> }} `lanes`: the places that edges from a node pass, by the node, from left to right.
 *
 * @typedef {{ x: number, y: number, height: number, layer: number, row: number }} Place `row`: its place among the nodes of its layer.
 */
export function layoutGraph(graph) {
  const layerOf = layersOf(graph.nodes);
  const layers = [];
  for (const [id, layer] of layerOf) {
    const { form = null, isFolded = false } = graph.nodes.get(id);
    const height = form !== null && isFolded ? FORM_HEIGHT : NODE_HEIGHT;
    (layers[layer] ??= []).push({ id, lane: null, height, from: [], to: [] });
  }
  const items = new Map(layers.flat().map((item) => [item.id, item]));
  addLanes(graph, layerOf, layers, items);
  orderLayers(layers);
  return placeLayers(layers);
}

/** Connect the items along the edges, with a lane in each layer that an edge crosses. Edges from a node share lanes. */
function addLanes(graph, layerOf, layers, items) {
  const lastLayer = (id) =>
    graph.nodes.get(id).to.reduce((last, next) => Math.max(last, layerOf.get(next)), 0);
  let needed = 0;
  for (const [id, layer] of layerOf) needed += Math.max(0, lastLayer(id) - layer - 1);
  const hasLanes = needed <= MAX_LANES;
  for (const node of graph.nodes.values()) {
    const chain = [items.get(node.id)];
    const first = layerOf.get(node.id);
    for (let layer = first + 1; hasLanes && layer < lastLayer(node.id); layer += 1) {
      const lane = { id: `lane ${layer} ${node.id}`, lane: node.id, height: LANE_HEIGHT, from: [], to: [] };
      layers[layer].push(lane);
      connect(chain[chain.length - 1], lane);
      chain.push(lane);
    }
    for (const next of node.to) {
      const before = Math.max(0, layerOf.get(next) - first - 1);
      connect(chain[Math.min(before, chain.length - 1)], items.get(next));
    }
  }
}

function connect(from, to) {
  from.to.push(to);
  to.from.push(from);
}

function orderLayers(layers) {
  const number = (layer) => layer.forEach((item, row) => (item.row = row - (layer.length - 1) / 2));
  layers.forEach(number);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const isForward = sweep % 2 === 0;
    for (const layer of isForward ? layers.slice(1) : layers.slice(0, -1).reverse()) {
      for (const item of layer) item.middle = mean(isForward ? item.from : item.to) ?? item.row;
      layer.sort((one, other) => one.middle - other.middle || one.row - other.row);
      number(layer);
    }
  }
}

function mean(items) {
  if (items.length === 0) return null;
  let sum = 0;
  for (const item of items) sum += item.row;
  return sum / items.length;
}

function placeLayers(layers) {
  const heights = layers.map((layer) => layer.reduce((sum, item) => sum + item.height + GAP_Y, -GAP_Y));
  const tallest = heights.reduce((most, height) => Math.max(most, height), NODE_HEIGHT);
  const places = new Map();
  const lanes = new Map();
  layers.forEach((layer, index) => {
    const x = MARGIN + index * (NODE_WIDTH + GAP_X);
    let y = MARGIN + (tallest - heights[index]) / 2;
    let row = 0;
    for (const item of layer) {
      if (item.lane === null) {
        places.set(item.id, { x, y, height: item.height, layer: index, row });
        row += 1;
      } else {
        if (!lanes.has(item.lane)) lanes.set(item.lane, []);
        lanes.get(item.lane).push({ x, y: y + LANE_HEIGHT / 2, layer: index, row });
      }
      y += item.height + GAP_Y;
    }
  });
  return {
    width: 2 * MARGIN + Math.max(1, layers.length) * (NODE_WIDTH + GAP_X) - GAP_X,
    height: 2 * MARGIN + tallest,
    places,
    layers: layers.map((layer) => layer.filter((item) => item.lane === null).map((item) => item.id)),
    lanes,
  };
}

/**
 * Return the ids of the nodes that a rectangle shows.
 *
 * @param {ReturnType<typeof layoutGraph>} layout
 * @param {{ left: number, top: number, right: number, bottom: number }} view
 */
export function nodesIn(layout, view) {
  const found = [];
  const step = NODE_WIDTH + GAP_X;
  const first = Math.max(0, Math.ceil((view.left - MARGIN - NODE_WIDTH) / step));
  const last = Math.min(layout.layers.length - 1, Math.floor((view.right - MARGIN) / step));
  for (let index = first; index <= last; index += 1) {
    const layer = layout.layers[index];
    for (let row = firstRow(layout, layer, view.top); row < layer.length; row += 1) {
      if (layout.places.get(layer[row]).y > view.bottom) break;
      found.push(layer[row]);
    }
  }
  return found;
}

/** Return the first row of a layer whose lower end is at or below `top`. */
function firstRow(layout, layer, top) {
  let low = 0;
  let high = layer.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const place = layout.places.get(layer[middle]);
    if (place.y + place.height < top) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Return the edges that may cross a rectangle, at most `MAX_EDGES`. See `nodesIn`. */
export function edgesIn(layout, edges, view) {
  const found = [];
  for (const edge of edges) {
    const from = layout.places.get(edge.from);
    const to = layout.places.get(edge.to);
    if (from.x + NODE_WIDTH > view.right || to.x < view.left) continue;
    const isOneStep = to.layer - from.layer <= 1; // a lane may lead outside the space between the ends
    if (isOneStep && Math.min(from.y, to.y) > view.bottom) continue;
    if (isOneStep && Math.max(from.y + from.height, to.y + to.height) < view.top) continue;
    found.push(edge);
    if (found.length === MAX_EDGES) break;
  }
  return found;
}

/** Return the path of an edge as a curve through its lanes. */
export function edgePath(layout, { from, to }) {
  const begin = layout.places.get(from);
  const end = layout.places.get(to);
  let [x, y] = [begin.x + NODE_WIDTH, begin.y + begin.height / 2];
  let path = `M${x} ${y}`;
  const curve = (nextX, nextY) => {
    const bend = Math.max(24, (nextX - x) / 2);
    path += `C${x + bend} ${y} ${nextX - bend} ${nextY} ${nextX} ${nextY}`;
  };
  for (const lane of layout.lanes.get(from) ?? []) {
    if (lane.layer >= end.layer) break;
    curve(lane.x, lane.y);
    [x, y] = [lane.x + NODE_WIDTH, lane.y];
    path += `L${x} ${y}`;
  }
  curve(end.x, end.y + end.height / 2);
  return path;
}
