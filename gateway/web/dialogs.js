/** Dialogs: the API key, and confirmations. */

import { h } from "./dom.js";

/**
 * Ask for the API key. Return it, or null if the dialog was closed.
 *
 * @param {string} reason Why the server needs it.
 * @returns {Promise<string | null>}
 */
export function askForKey(reason) {
  const field = h("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  return open({
    title: "API key",
    content: [
      h("p", {}, reason),
      h("label", { for: "key" }, "API key"),
      field,
      h("p", { class: "note" }, "The page keeps the key in memory until it is closed or loaded again."),
    ],
    confirm: "Connect",
    result: () => field.value.trim() || null,
    first: field,
  });
}

/**
 * Ask before something that cannot be undone. Return whether the reader agrees.
 *
 * @param {{ title: string, text: string, confirm: string }} question
 * @returns {Promise<boolean>}
 */
export async function confirmed({ title, text, confirm }) {
  return (
    (await open({ title, content: [h("p", {}, text)], confirm, result: () => "yes", isDangerous: true })) ===
    "yes"
  );
}

function open({ title, content, confirm, result, first = null, isDangerous = false }) {
  return new Promise((resolve) => {
    const cancel = h("button", { type: "button", class: "button" }, "Cancel");
    const accept = h(
      "button",
      { type: "submit", class: isDangerous ? "button danger" : "button primary" },
      confirm,
    );
    const form = h("form", { method: "dialog" }, ...content, h("div", { class: "actions" }, cancel, accept));
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title),
      form,
    );
    const before = document.activeElement;
    let value = null;
    cancel.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      value = result();
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before instanceof HTMLElement || before instanceof SVGElement) before.focus();
      resolve(value);
    });
    document.body.append(dialog);
    dialog.showModal();
    (first ?? cancel).focus();
  });
}
