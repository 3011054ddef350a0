/**
 * Turn values of the server into text for people.
 *
 * All functions accept anything: a server may answer garbage. What they cannot show is a dash.
 */

export const DASH = "–";

/** Characters that would be invisible, or would change the order or the look of the text around them. */
const UNSEEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g;
const PICTURES = 0x2400;

/**
 * Return the text with every invisible character made visible: control characters as pictures, others as escapes.
 *
 * @param {unknown} value
 * @param {{ lines?: boolean }} [options] `lines`: keep line feeds and tabs.
 * @returns {string}
 */
export function visibleText(value, { lines = false } = {}) {
  const text = typeof value === "string" ? value : value === null || value === undefined ? "" : String(value);
  const source = lines ? text.replaceAll("\r\n", "\n") : text;
  return source.replace(UNSEEN, (found) => {
    if (found.length === 2) return isTag(found) ? escaped(found.codePointAt(0)) : found;
    if (lines && (found === "\n" || found === "\t")) return found;
    const code = found.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(PICTURES + code);
    if (code === 0x7f) return "␡";
    if (code < 0xa0) return `\\x${code.toString(16).padStart(2, "0")}`;
    return escaped(code);
  });
}

/** Return whether a surrogate pair is an invisible tag or variation selector of plane 14. */
function isTag(pair) {
  const code = pair.codePointAt(0);
  return code >= 0xe0000 && code <= 0xe0fff;
}

function escaped(code) {
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

/**
 * Return a name or a message for one line: visible, and at most `longest` characters.
 *
 * @param {unknown} value
 * @param {number} [longest]
 * @returns {string}
 */
export function label(value, longest = 120) {
  // cut first: escaping a megabyte to show a line would cost a frame
  const raw = typeof value === "string" ? value : value === null || value === undefined ? "" : String(value);
  const isLong = raw.length > longest;
  const end = isLong && isHighSurrogate(raw.charCodeAt(longest - 2)) ? longest - 2 : longest - 1;
  return visibleText(isLong ? raw.slice(0, end) : raw) + (isLong ? "…" : "");
}

/** Return whether a UTF-16 code unit is the first half of a character, so that a cut after it would break it. */
export function isHighSurrogate(code) {
  return code >= 0xd800 && code <= 0xdbff;
}

/** Return an integer with groups of digits. */
export function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en-US") : DASH;
}

/** Return a number with at most three digits and a unit: 950, 1.24k, 12.4M. */
export function compact(value) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  for (const [unit, factor] of [
    ["T", 1e12],
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ]) {
    if (size >= factor * 0.9995) return threeDigits(value / factor) + unit;
  }
  return size >= 100 || Number.isInteger(value) ? String(Math.round(value)) : threeDigits(value);
}

function threeDigits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
}

/** Return a duration in seconds as text with its unit: 8 ms, 1.24 s, 2 min 05 s, 3 h 20 min, 4 d 2 h. */
export function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  const value = Math.max(0, seconds);
  if (value < 0.9995) return `${Math.round(value * 1e3)} ms`;
  if (value < 59.95) return `${value.toFixed(value < 9.995 ? 2 : 1)} s`;
  const whole = Math.round(value);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

function pad(value) {
  return String(value).padStart(2, "0");
}

/** Return an age in whole seconds or longer units. */
export function age(seconds) {
  if (!isNumber(seconds)) return DASH;
  return seconds < 59.5 ? `${Math.max(0, Math.round(seconds))} s` : duration(Math.round(seconds));
}

/** Return a share from 0 to 1 as a percentage. */
export function percent(share) {
  if (!isNumber(share)) return DASH;
  const value = share * 100;
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)}\u202f%`;
}

/** Return a cost. Small ones keep two significant digits. */
export function cost(value) {
  if (!isNumber(value)) return DASH;
  if (value !== 0 && Math.abs(value) < 0.01) return value.toPrecision(2);
  return value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
}

/** Return the time of day of a Unix time, in the reader's time zone. */
export function clock(seconds) {
  if (!isNumber(seconds) || Math.abs(seconds) > 8.6e12) return DASH;
  return new Date(seconds * 1e3).toLocaleTimeString("en-GB");
}

/** Return whether a value is a finite number. */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** Return the words for a number of things: "1 call", "3 calls". */
export function plural(number, singular, several = `${singular}s`) {
  return `${count(number)} ${number === 1 ? singular : several}`;
}
