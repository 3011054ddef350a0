/** Build elements. Texts become text nodes only: no function here parses markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return a new element.
 *
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] Attributes; `class`; `on` with event handlers; `data` for the dataset.
 *   A value of false, null or undefined leaves the attribute out, and true sets it without a value.
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** Return a new SVG element. See `h`. */
export function svg(tag, properties = {}, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on")
      for (const [type, handler] of Object.entries(value)) element.addEventListener(type, handler);
    else if (name === "data") Object.assign(element.dataset, value);
    else setAttribute(element, name, value);
  }
  append(element, children);
  return element;
}

/** Append children to an element; leave out null, undefined and false. */
export function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Set an attribute if it differs; remove it for false, null and undefined. */
export function setAttribute(element, name, value) {
  if (value === false || value === null || value === undefined) element.removeAttribute(name);
  else {
    const text = value === true ? "" : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** Set the text of an element if it differs: an unchanged text must not wake a screen reader. */
export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

/** Replace all children. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/** Set the width and the offset of an element in percent. Styles in attributes would violate the page's policy. */
export function place(element, left, width) {
  element.style.left = `${left.toFixed(3)}%`;
  element.style.width = `${width.toFixed(3)}%`;
}

/** Return the element, which must exist. */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element ${id}`);
  return element;
}

/**
 * Return a function that runs `draw` in the next animation frame, once for all calls until then.
 *
 * @param {() => void} draw
 */
export function oncePerFrame(draw) {
  let frame = 0;
  return () => {
    if (frame === 0) {
      frame = requestAnimationFrame(() => {
        frame = 0;
        draw();
      });
    }
  };
}

let lastAnnouncement = "";

/** Let screen readers say a sentence, once. */
export function announce(text) {
  if (text === lastAnnouncement) return;
  lastAnnouncement = text;
  setText(byId("announcer"), text);
}
