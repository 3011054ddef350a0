/** A small line of the latest values. */

import { setAttribute, svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 44;
/** Minimum number of steps across the width: two values must not look like a long history. */
const FEWEST = 14;

/**
 * Return the points of a line through the values, in a box of `width` and `height`.
 *
 * @param {number[]} values
 * @param {number} most Number of values that fill the width.
 */
export function linePoints(values, most, width = WIDTH, height = HEIGHT) {
  const top = values.reduce((largest, value) => Math.max(largest, value), 0) || 1;
  const step = width / Math.max(FEWEST, Math.min(most, values.length) - 1);
  const first = width - (values.length - 1) * step;
  return values.map((value, index) => [
    first + index * step,
    height - 2 - (Math.max(0, value) / top) * (height - 6),
  ]);
}

/** Return the drawing, hidden from screen readers: the figures beside it say the same. */
export function sparkline(most) {
  const line = svg("path", { class: "spark-line" });
  const area = svg("path", { class: "spark-area" });
  const element = svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    area,
    line,
  );
  const update = (values) => {
    const points = linePoints(values, most);
    const path = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
    setAttribute(line, "d", points.length > 1 ? `M${path}` : null);
    const closed =
      points.length > 1 ? `M${path}L${WIDTH} ${HEIGHT}L${points[0][0].toFixed(1)} ${HEIGHT}Z` : null;
    setAttribute(area, "d", closed);
  };
  return { element, update };
}
