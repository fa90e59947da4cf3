// The conversations on the server's disk: their list, and what may be done with each.
//
// Promises that one is saved by one request at a time, in order; and that a server which keeps none
// is no error.

import { element } from "./rendering.js";

const PATH = "/conversations";

/** The list at the side. `actions` are open(name), renamed(name, new), deleted(name). */
export class Conversations {
  constructor(server, list, note, actions) {
    Object.assign(this, { server, list, note, actions });
    this.isKept = false;
    this.entries = [];
    this.current = null;
    this.saving = Promise.resolve();
  }

  /** Ask which there are. */
  async refresh() {
    const { kept, data } = await this.server.json(PATH);
    this.isKept = kept;
    this.entries = data;
    this.show();
  }

  select(name) {
    this.current = name;
    this.show();
  }

  show() {
    this.list.replaceChildren(...this.entries.map((entry) => this.item(entry.name)));
    const parts = this.isKept
      ? ["None yet. What is said here is kept on the server's disk."]
      : [
          "Nothing is kept here: llama4 serve was started without ",
          element("code", {}, "--sessions"),
          ".",
        ];
    this.note.replaceChildren(...parts);
    this.note.hidden = this.isKept && this.entries.length > 0;
  }

  item(name) {
    const open = element("button", { type: "button", className: "open", title: name, dir: "auto" }, name);
    if (name === this.current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => this.actions.open(name));
    const button = (label, text, act) => {
      const made = element("button", { type: "button", className: "small", title: label }, text);
      made.setAttribute("aria-label", `${label} ${name}`);
      made.addEventListener("click", act);
      return made;
    };
    return element(
      "li",
      {},
      open,
      button("Rename", "✎", () => this.rename(name)),
      button("Delete", "×", () => this.remove(name)),
    );
  }

  /** One conversation: its messages, and what saving it later needs. */
  read(name) {
    return this.server.json(pathOf(name));
  }

  /** Have the model take up what it had read of one, instead of reading it again. */
  resume(name) {
    return this.server.json(`${pathOf(name)}/resume`, { method: "POST", body: {} });
  }

  /**
   * Save a conversation {name, version} with what `take` gives, after all that is being saved. One
   * without a name gets one. Returns how many tokens it has, where the server knows.
   */
  save(talk, take) {
    const saved = this.saving.then(async () => {
      const isNew = talk.name === null;
      const messages = take();
      const body = isNew ? { messages } : { version: talk.version, messages };
      const options = { method: isNew ? "POST" : "PUT", body };
      const answer = await this.server.json(isNew ? PATH : pathOf(talk.name), options);
      const { name, version, tokens } = answer;
      Object.assign(talk, { name, version });
      this.entries = [{ name }, ...this.entries.filter((entry) => entry.name !== name)];
      return tokens;
    });
    this.saving = saved.catch(() => {});
    return saved;
  }

  async rename(name) {
    const dialog = document.querySelector("#rename");
    const input = dialog.querySelector("input");
    const fault = dialog.querySelector(".error");
    fault.hidden = true;
    input.value = name;
    await ask(dialog, async () => {
      try {
        const body = { name: input.value };
        const answer = await this.server.json(pathOf(name), { method: "PATCH", body });
        await this.actions.renamed(name, answer.name);
        return true;
      } catch (problem) {
        fault.textContent = problem.message;
        fault.hidden = false;
        input.focus();
        return false;
      }
    });
  }

  async remove(name) {
    const dialog = document.querySelector("#delete");
    dialog.querySelector("#delete-name").textContent = name;
    const isSure = await ask(dialog);
    if (!isSure) return;
    const at = this.entries.findIndex((entry) => entry.name === name);
    await this.actions.deleted(name, () => this.server.json(pathOf(name), { method: "DELETE" }));
    const buttons = this.list.querySelectorAll(".open");
    (buttons[Math.min(at, buttons.length - 1)] ?? document.querySelector("#new")).focus();
  }
}

const pathOf = (name) => `${PATH}/${encodeURIComponent(name)}`;

/** Show a dialog until it is cancelled (false) or sent and `accept` says that it is well (true). */
export function ask(dialog, accept = () => true) {
  const form = dialog.querySelector("form");
  const before = document.activeElement;
  return new Promise((resolve) => {
    let isAccepted = false;
    const submit = async (event) => {
      event.preventDefault();
      isAccepted = await accept();
      if (isAccepted) dialog.close();
    };
    const cancel = () => dialog.close();
    const button = form.querySelector("[value=cancel]");
    const closed = () => {
      form.removeEventListener("submit", submit);
      button.removeEventListener("click", cancel);
      if (before?.isConnected) before.focus();
      resolve(isAccepted);
    };
    form.addEventListener("submit", submit);
    button.addEventListener("click", cancel);
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
    dialog.querySelector("textarea, input")?.focus();
  });
}
