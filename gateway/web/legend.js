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
 * Return a button of a toolbar. A sign gets the sentence as its name; a word keeps itself, so that a reader who speaks to
 * the browser can say it.
 */
export function toolButton(text, sentence, onClick) {
  const name = /[a-z]/i.test(text) ? null : sentence;
  return h(
    "button",
    { type: "button", class: "button", "aria-label": name, title: sentence, on: { click: onClick } },
    text,
  );
}

/**
 * Return a bar of stacked parts. `update` gets `{ key, name, value }` for each part; the total is their sum.
 *
 * @param {string} kind Prefix of the parts' classes, such as `cause`.
 * @param {string} name What the bar shows, for screen readers.
 */
export function stackedBar(kind, name) {
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
    setAttribute(element, "aria-label", `${name}: ${described.join(", ") || "none"}`);
  };
  return { element, update };
}
