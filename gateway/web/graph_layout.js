/**
 * Place the nodes of a graph in layers from left to right, and find those in a viewport.
 *
 * The order within a layer follows the mean position of the neighbours (Sugiyama's barycentre heuristic).
 */

import { layersOf } from "./graph_model.js";

export const NODE_WIDTH = 176;
export const NODE_HEIGHT = 54;
const GAP_X = 72;
const GAP_Y = 18;
const MARGIN = 20;
const SWEEPS = 4;
/** Largest number of edges that are drawn together. */
export const MAX_EDGES = 2_500;

/**
 * Return the places of the nodes.
 *
 * @param {{ nodes: Map<string, any>, edges: { from: string, to: string }[] }} graph
 * @returns {{ width: number, height: number, places: Map<string, { x: number, y: number, layer: number, row: number }>,
 *   layers: string[][] }}
 */
export function layoutGraph(graph) {
  const layers = [];
  for (const [id, layer] of layersOf(graph.nodes)) (layers[layer] ??= []).push(id);
  const rows = new Map();
  const number = (layer) => layer.forEach((id, row) => rows.set(id, row - (layer.length - 1) / 2));
  layers.forEach(number);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const isForward = sweep % 2 === 0;
    const order = isForward ? layers.slice(1) : layers.slice(0, -1).reverse();
    for (const layer of order) {
      const middle = new Map();
      for (const id of layer) {
        const node = graph.nodes.get(id);
        middle.set(id, mean(isForward ? node.from : node.to, rows) ?? rows.get(id));
      }
      layer.sort((one, other) => middle.get(one) - middle.get(other) || rows.get(one) - rows.get(other));
      number(layer);
    }
  }
  const tallest = layers.reduce((most, layer) => Math.max(most, layer.length), 1);
  const stepY = NODE_HEIGHT + GAP_Y;
  const places = new Map();
  layers.forEach((layer, index) => {
    const top = MARGIN + ((tallest - layer.length) * stepY) / 2;
    layer.forEach((id, row) => {
      places.set(id, { x: MARGIN + index * (NODE_WIDTH + GAP_X), y: top + row * stepY, layer: index, row });
    });
  });
  return {
    width: 2 * MARGIN + Math.max(1, layers.length) * (NODE_WIDTH + GAP_X) - GAP_X,
    height: 2 * MARGIN + tallest * stepY - GAP_Y,
    places,
    layers,
  };
}

function mean(ids, rows) {
  if (ids.length === 0) return null;
  let sum = 0;
  for (const id of ids) sum += rows.get(id);
  return sum / ids.length;
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
    const top = layout.places.get(layer[0]).y;
    const stepY = NODE_HEIGHT + GAP_Y;
    const from = Math.max(0, Math.ceil((view.top - top - NODE_HEIGHT) / stepY));
    const to = Math.min(layer.length - 1, Math.floor((view.bottom - top) / stepY));
    for (let row = from; row <= to; row += 1) found.push(layer[row]);
  }
  return found;
}

/** Return the edges that may cross a rectangle, at most `MAX_EDGES`. See `nodesIn`. */
export function edgesIn(layout, edges, view) {
  const found = [];
  for (const edge of edges) {
    const from = layout.places.get(edge.from);
    const to = layout.places.get(edge.to);
    if (from.x + NODE_WIDTH > view.right || to.x < view.left) continue;
    if (Math.min(from.y, to.y) > view.bottom || Math.max(from.y, to.y) + NODE_HEIGHT < view.top) continue;
    found.push(edge);
    if (found.length === MAX_EDGES) break;
  }
  return found;
}

/** Return the path of an edge as a curve. */
export function edgePath(from, to) {
  const [x1, y1] = [from.x + NODE_WIDTH, from.y + NODE_HEIGHT / 2];
  const [x2, y2] = [to.x, to.y + NODE_HEIGHT / 2];
  const bend = Math.max(24, (x2 - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}
