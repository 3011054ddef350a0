/** A box with a text of any length, which may grow. Only a part of a long text is in the document. */

import { h, oncePerFrame, setText } from "./dom.js";
import { count, isHighSurrogate, visibleText } from "./format.js";

/** Number of characters that are shown first, and added by "Show more". */
export const SHOWN = 10_000;

/**
 * Return where a text can be cut at or before `end`, so that no character is split.
 *
 * @param {string} text
 * @param {number} end
 */
export function cutAt(text, end) {
  if (end >= text.length) return text.length;
  return end > 0 && isHighSurrogate(text.charCodeAt(end - 1)) ? end - 1 : end;
}

/** Return the box: `append`, `clear`, `set` change the text, `note` the line below it. */
export function valueBox(name) {
  const content = h("pre", { class: "value", tabindex: 0, role: "region", "aria-label": name });
  const more = h("button", {
    type: "button",
    class: "button",
    hidden: true,
    on: { click: () => showMore() },
  });
  const status = h("p", { class: "note" });
  const element = h("div", { class: "value-box" }, content, h("div", { class: "value-foot" }, status, more));
  let text = "";
  let drawn = 0;
  let limit = SHOWN;
  let remark = "";
  const draw = oncePerFrame(() => {
    const end = cutAt(text, Math.min(limit, text.length));
    if (end > drawn) {
      const isAtEnd = content.scrollHeight - content.scrollTop - content.clientHeight < 24;
      content.append(document.createTextNode(visibleText(text.slice(drawn, end), { lines: true })));
      drawn = end;
      if (isAtEnd) content.scrollTop = content.scrollHeight;
    }
    const rest = text.length - end;
    more.hidden = rest <= 0;
    if (rest > 0) setText(more, `Show ${count(Math.min(SHOWN, rest))} more`);
    const size = text.length === 0 ? "" : `${count(text.length)} characters`;
    const part = rest > 0 ? `, the first ${count(end)} are shown` : "";
    setText(status, [size + part, remark].filter((piece) => piece !== "").join(" · "));
  });
  const showMore = () => {
    limit += SHOWN;
    draw();
    content.focus();
  };
  const clear = () => {
    text = "";
    drawn = 0;
    content.replaceChildren();
    draw();
  };
  return {
    element,
    clear,
    append: (piece) => {
      text += piece;
      draw();
    },
    set: (whole) => {
      if (whole !== text) {
        if (!whole.startsWith(text)) clear();
        text = whole;
      }
      draw();
    },
    note: (sentence) => {
      remark = sentence;
      draw();
    },
    get length() {
      return text.length;
    },
  };
}
