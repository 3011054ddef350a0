/** A grid with rows of equal height, of which only the visible ones are in the document. */

import { h, oncePerFrame, setAttribute } from "./dom.js";

/** Number of rows above and below the visible ones. */
const MARGIN_ROWS = 8;
let grids = 0;

/**
 * Return which rows are in the document.
 *
 * @param {{ scrollTop: number, height: number, rowHeight: number, rows: number }} view
 * @returns {{ first: number, end: number }} `end` is not included.
 */
export function rowsInView({ scrollTop, height, rowHeight, rows }) {
  const first = Math.max(0, Math.floor(scrollTop / rowHeight) - MARGIN_ROWS);
  const end = Math.min(rows, Math.ceil((scrollTop + height) / rowHeight) + MARGIN_ROWS);
  return { first: Math.min(first, rows), end: Math.max(end, Math.min(first, rows)) };
}

/**
 * Grid of rows, or a tree of rows that can be folded. The keyboard moves the active row; Enter opens it. The focus stays on the grid, and
 * `aria-activedescendant` names the row, because a row may leave the document while it is active.
 */
export class VirtualRows {
  #items = [];
  #rows = new Map();
  #spare = [];
  #active = -1;
  #rowHeight = 0;
  #prefix = `grid${(grids += 1)}`;

  /**
   * @param {object} options
   * @param {string} options.name Name for screen readers.
   * @param {HTMLElement} options.head Content of the head, with the role `row`.
   * @param {() => { element: HTMLElement, update: (item: any, index: number) => void }} options.createRow
   * @param {(item: any) => void} options.onOpen Called for Enter, Space and clicks.
   * @param {((item: any, isUnfolded: boolean | null) => void) | null} [options.onToggle] Makes the grid a tree. Called for
   *   clicks on an element of the class `row-toggle` with null, and for the keys Right with true and Left with false.
   * @param {(item: any) => string} options.keyOf Key by which an item stays active while the items change.
   */
  constructor({ name, head, createRow, onOpen, onToggle = null, keyOf }) {
    this.createRow = createRow;
    this.onOpen = onOpen;
    this.onToggle = onToggle;
    this.keyOf = keyOf;
    this.body = h("div", { class: "rows-body", role: "rowgroup" });
    setAttribute(head, "aria-rowindex", 1);
    this.element = h(
      "div",
      {
        class: "rows",
        role: onToggle === null ? "grid" : "treegrid",
        tabindex: 0,
        "aria-label": name,
        "aria-rowcount": 1,
      },
      h("div", { class: "rows-head", role: "rowgroup" }, head),
      this.body,
    );
    this.draw = oncePerFrame(() => this.#draw());
    this.element.addEventListener("scroll", this.draw, { passive: true });
    this.element.addEventListener("keydown", (event) => this.#onKey(event));
    this.element.addEventListener("focus", () => this.#focus());
    this.resize = new ResizeObserver(() => {
      this.#rowHeight = 0;
      this.draw();
    });
    this.resize.observe(this.element);
  }

  /** Stop to observe the size. */
  close() {
    this.resize.disconnect();
  }

  /** Show these items. The active item stays active if it is still there. */
  setItems(items) {
    const active = this.#items[this.#active];
    this.#items = items;
    if (active !== undefined) {
      const key = this.keyOf(active);
      // nearly always at its old index
      const same = items[this.#active] !== undefined && this.keyOf(items[this.#active]) === key;
      if (!same) this.#active = items.findIndex((item) => this.keyOf(item) === key);
    }
    setAttribute(this.element, "aria-rowcount", items.length + 1);
    this.draw();
  }

  /** Make an item active and scroll to it. */
  activate(key) {
    const index = this.#items.findIndex((item) => this.keyOf(item) === key);
    if (index >= 0) this.#move(index);
  }

  get #height() {
    if (this.#rowHeight === 0) {
      this.#rowHeight = parseFloat(getComputedStyle(this.element).getPropertyValue("--row-height")) || 32;
    }
    return this.#rowHeight;
  }

  #draw() {
    const rowHeight = this.#height;
    const { first, end } = rowsInView({
      scrollTop: this.element.scrollTop,
      height: this.element.clientHeight || 600,
      rowHeight,
      rows: this.#items.length,
    });
    this.body.style.height = `${this.#items.length * rowHeight}px`;
    for (const [index, row] of this.#rows) {
      if (index < first || index >= end) {
        this.#rows.delete(index);
        this.#spare.push(row);
        row.element.hidden = true;
      }
    }
    for (let index = first; index < end; index += 1) {
      let row = this.#rows.get(index);
      if (row === undefined) {
        row = this.#spare.pop() ?? this.#newRow();
        this.#rows.set(index, row);
        row.element.hidden = false;
        row.element.id = `${this.#prefix}-${index}`;
        row.index = index;
        setAttribute(row.element, "aria-rowindex", index + 2);
        row.element.style.transform = `translateY(${index * rowHeight}px)`;
        row.height = rowHeight;
      } else if (row.height !== rowHeight) {
        row.element.style.transform = `translateY(${index * rowHeight}px)`;
        row.height = rowHeight;
      }
      setAttribute(row.element, "aria-selected", index === this.#active ? "true" : "false");
      row.update(this.#items[index], index);
    }
    const isShown = this.#active >= first && this.#active < end;
    setAttribute(this.element, "aria-activedescendant", isShown ? `${this.#prefix}-${this.#active}` : null);
    // elements of rows that left must not be counted by screen readers, nor pile up
    while (this.#spare.length > 2 * MARGIN_ROWS) this.#spare.pop().element.remove();
  }

  #newRow() {
    const row = this.createRow();
    setAttribute(row.element, "role", "row");
    row.element.addEventListener("click", (event) => {
      this.#active = row.index;
      const item = this.#items[row.index];
      if (this.onToggle !== null && event.target.closest(".row-toggle") !== null) this.onToggle(item, null);
      else this.onOpen(item);
      this.draw();
    });
    this.body.append(row.element);
    return row;
  }

  #focus() {
    if (this.#active < 0 && this.#items.length > 0) {
      const top = Math.ceil(this.element.scrollTop / this.#height);
      this.#active = Math.min(top, this.#items.length - 1);
      this.draw();
    }
  }

  #onKey(event) {
    if (event.target !== this.element || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.#height) - 2);
    const steps = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    if (event.key in steps) {
      event.preventDefault();
      const next = this.#active < 0 ? 0 : this.#active + steps[event.key];
      this.#move(Math.max(0, Math.min(this.#items.length - 1, next)));
    } else if (this.onToggle !== null && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      event.preventDefault();
      if (this.#items[this.#active] !== undefined)
        this.onToggle(this.#items[this.#active], event.key === "ArrowRight");
    } else if ((event.key === "Enter" || event.key === " ") && this.#items[this.#active] !== undefined) {
      event.preventDefault();
      this.onOpen(this.#items[this.#active]);
    }
  }

  #move(index) {
    if (this.#items.length === 0) return;
    this.#active = index;
    const top = index * this.#height;
    const head = this.element.firstElementChild.clientHeight;
    const height = this.element.clientHeight - head;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + this.#height > this.element.scrollTop + height) {
      this.element.scrollTop = top + this.#height - height;
    }
    this.draw();
  }
}
