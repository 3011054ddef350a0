/** Parts that several views share: the legend of causes, signs of states, stacked bars. */

import { CAUSES, SIGNS, stateKind } from "./causes.js";
import { h, place, setAttribute, setText } from "./dom.js";
import { label } from "./format.js";

/** Return the legend of the causes of waits. */
export function causeLegend() {
  return h(
    "ul",
    { class: "legend", "aria-label": "Colours of the causes" },
    ...CAUSES.map(({ key, name, help }) =>
      h("li", { title: help }, h("span", { class: `swatch cause-${key}`, "aria-hidden": "true" }), name),
    ),
  );
}

/** Return a badge with the sign and the name of a state. */
export function stateBadge(state = "") {
  const sign = h("span", { class: "sign", "aria-hidden": "true" });
  const name = h("span");
  const element = h("span", { class: "badge" }, sign, name);
  const update = (next) => {
    const kind = stateKind(next);
    setAttribute(element, "class", `badge state-${kind}`);
    setText(sign, SIGNS[kind]);
    setText(name, label(next, 24));
  };
  update(state);
  return { element, update };
}

/**
 * Return a bar of stacked parts. `update` gets `{ key, name, value }` for each part; the total is their sum.
 *
 * @param {string} kind Prefix of the parts' classes, such as `cause`.
 */
export function stackedBar(kind) {
  const element = h("div", { class: "stack", role: "img" });
  const pieces = new Map();
  const update = (parts) => {
    const total = parts.reduce((sum, part) => sum + part.value, 0);
    let left = 0;
    for (const { key, value } of parts) {
      let piece = pieces.get(key);
      if (piece === undefined) {
        piece = h("span", { class: `${kind}-${key}` });
        pieces.set(key, piece);
        element.append(piece);
      }
      const width = total > 0 ? (100 * value) / total : 0;
      piece.hidden = width === 0;
      place(piece, left, width);
      left += width;
    }
    const described = parts
      .filter((part) => part.value > 0)
      .map((part) => `${part.name} ${part.text ?? part.value}`);
    setAttribute(element, "aria-label", described.join(", ") || "nothing");
  };
  return { element, update };
}
