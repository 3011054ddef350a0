import assert from "node:assert/strict";
import { test } from "node:test";

import * as format from "../../../gateway/web/format.js";

test("control characters are visible", () => {
  assert.equal(format.visibleText("a\u0000b\u001b[31m\u007f\n\t"), "a␀b␛[31m␡␊␉");
  assert.equal(format.visibleText("\u0085\u009f"), "\\x85\\x9f");
  assert.equal(format.visibleText("a\r\nb\n\tc\rd", { lines: true }), "a\nb\n\tc␍d");
});

test("characters that reorder or hide text are escaped", () => {
  assert.equal(format.visibleText("user\u202egnp.exe"), "user\\u202egnp.exe");
  for (const code of [
    0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068, 0x2069, 0x200e, 0x200f, 0x061c,
  ]) {
    assert.equal(format.visibleText(String.fromCharCode(code)), `\\u${code.toString(16).padStart(4, "0")}`);
  }
  for (const code of [0x200b, 0xfeff, 0x2028, 0x2029, 0x2060, 0x3164, 0x00ad]) {
    assert.match(format.visibleText(String.fromCodePoint(code)), /^\\u[0-9a-f]{4}$/);
  }
  assert.equal(format.visibleText("\u{e0041}"), "\\u{e0041}");
});

test("other characters stay", () => {
  for (const text of ["日本語", "👩‍👩‍👧", "naïve", "مرحبا", "<b>&amp;</b>", "می‌خواهم"]) {
    assert.equal(format.visibleText(text), text);
  }
});

test("a lone surrogate is escaped", () => {
  assert.equal(format.visibleText("a\ud800b"), "a\\ud800b");
  assert.equal(format.visibleText("\udc00"), "\\udc00");
});

test("labels are cut and never split a character", () => {
  assert.equal(format.label("abcdef", 4), "abc…");
  assert.equal(format.label("abcd", 4), "abcd");
  assert.equal(format.label("ab👩cd", 4), "ab…");
  assert.ok(format.label("x".repeat(5_000_000), 50).length <= 50);
});

test("garbage becomes a dash or text", () => {
  for (const value of [null, undefined, "x", {}, [], NaN, Infinity]) {
    for (const name of ["count", "compact", "duration", "percent", "cost", "clock"]) {
      assert.equal(format[name](value), format.DASH, name);
    }
  }
  assert.equal(format.label(null), "");
  assert.equal(format.label({}), "[object Object]");
  assert.equal(format.clock(1e300), format.DASH);
});

test("numbers", () => {
  assert.deepEqual([0, 7, 999, 1234, 56_789, 1_250_000, 3e9].map(format.compact), [
    "0",
    "7",
    "999",
    "1.23k",
    "56.8k",
    "1.25M",
    "3.00G",
  ]);
  assert.equal(format.compact(999_950), "1.00M");
  assert.equal(format.compact(0.5), "0.50");
  assert.equal(format.count(1234567), "1,234,567");
  assert.deepEqual([0, 0.38, 0.005, 1].map(format.percent), [
    "0\u202f%",
    "38\u202f%",
    "0.5\u202f%",
    "100\u202f%",
  ]);
  assert.deepEqual([0, 0.00123, 1.5, 1234].map(format.cost), ["0.00", "0.0012", "1.50", "1,234.00"]);
  assert.deepEqual([format.plural(1, "call"), format.plural(2, "call")], ["1 call", "2 calls"]);
});

test("ages", () => {
  assert.deepEqual([-3, 0.4, 12.6, 59.7, 125, null].map(format.age), [
    "0 s",
    "0 s",
    "13 s",
    "1 min 00 s",
    "2 min 05 s",
    "–",
  ]);
});

test("durations", () => {
  const expected = new Map([
    [-1, "0 ms"],
    [0.0084, "8 ms"],
    [0.9999, "1.00 s"],
    [1.239, "1.24 s"],
    [12.34, "12.3 s"],
    [59.97, "1 min 00 s"],
    [125, "2 min 05 s"],
    [12_000, "3 h 20 min"],
    [356_400, "4 d 3 h"],
  ]);
  for (const [seconds, text] of expected) assert.equal(format.duration(seconds), text);
});
