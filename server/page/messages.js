// A message: as a value, as the server takes it, and as it is shown.
//
// A value is {role, text, pictures: data URLs, toolCalls, stored, ending, stats}; `stored`
// is the server's own form of a message that was read from its disk, and kept as it was.

import { Pictures } from "./pictures.js";
import { LiveText, codeOf, element, textNodes } from "./rendering.js";

const NAMES = { user: "You", assistant: "Answer", system: "System prompt" };

/** A message of the user, or an answer that is about to come. */
export function newMessage(role, text = "", pictures = []) {
  return { role, text, pictures, toolCalls: [], stored: null, ending: "", stats: "" };
}

/** A message as the server has kept it. */
export function fromStored(stored) {
  const { role, content, tool_calls: calls } = stored;
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : (content ?? []);
  const text = parts.filter((part) => part.type === "text").map((part) => part.text).join("");
  const pictures = parts.filter((part) => part.type === "image_url").map((part) => part.image_url.url);
  const message = newMessage(role, text, pictures);
  const toolCalls = (calls ?? []).map(({ function: { name, arguments: args } }) => ({
    name,
    arguments: typeof args === "string" ? args : JSON.stringify(args),
  }));
  return { ...message, toolCalls, stored };
}

/** A message as OpenAI's protocol has it. */
export function toWire({ role, text, pictures, toolCalls, stored }) {
  if (stored) return stored;
  const images = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  const content = images.length ? [...images, { type: "text", text }] : text;
  if (!toolCalls.length) return { role, content };
  const calls = toolCalls.filter(Boolean).map(({ id, name, arguments: args }) => ({
    id,
    type: "function",
    function: { name, arguments: args },
  }));
  return { role, content: text || null, tool_calls: calls };
}

/** Add the pieces of tool calls that an event brought. */
export function addToolCalls(message, pieces) {
  for (const { index = 0, id, function: { name, arguments: args } = {} } of pieces) {
    message.toolCalls[index] ??= { id: "", name: "", arguments: "" };
    const call = message.toolCalls[index];
    if (id) call.id = id;
    if (name) call.name = name;
    if (args) call.arguments += args;
  }
}

/**
 * A message in the document. `actions` are what may be done with it, by name: copy, edit, retry.
 */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const name = NAMES[message.role] ?? `Result of a tool`;
    this.pictures = element("div", { className: "pictures" });
    this.body = element("div", { className: "body", dir: "auto" });
    this.calls = element("div", { className: "calls" });
    this.foot = element("div", { className: "message-foot" });
    this.content = element("div", { className: "content" }, this.pictures, this.body, this.calls);
    this.node = element(
      "li",
      { className: `message ${message.role === "assistant" ? "assistant" : "user"}` },
      element("h2", { className: "visually-hidden" }, name),
      this.content,
      this.foot,
    );
    if (message.role === "system" || message.role === "tool" || message.role === "ipython") {
      this.node.classList.add("aside");
      this.content.prepend(element("p", { className: "quiet" }, name));
    }
    // Only answers are Markdown: what people write is shown as they wrote it.
    this.live = message.role === "assistant" ? new LiveText(this.body) : null;
    this.shownText = null;
    const pictures = message.pictures.map((url, at) =>
      element("img", { src: url, alt: `Picture ${at + 1}`, loading: "lazy" }),
    );
    this.pictures.append(...pictures);
    this.update();
  }

  /** Show the text as it is now, while it grows. */
  paint() {
    const { text } = this.message;
    if (this.live) this.live.update(text);
    else if (text !== this.shownText) this.body.replaceChildren(...textNodes(text));
    this.shownText = text;
    const { toolCalls } = this.message;
    if (toolCalls.length) this.calls.replaceChildren(...toolCalls.filter(Boolean).map(callNode));
  }

  /** Show all of it, and what may be done with it now. */
  update({ isAnswering = false, isLast = false } = {}) {
    this.paint();
    const { message } = this;
    this.node.classList.toggle("answering", isAnswering);
    const nodes = [];
    if (message.ending) nodes.push(element("span", { className: "ending" }, message.ending));
    if (message.stats) nodes.push(element("span", { className: "quiet" }, message.stats));
    const names = isAnswering ? [] : this.actionNames(isLast);
    nodes.push(...names.map((name) => this.button(name)));
    this.foot.replaceChildren(...nodes);
  }

  actionNames(isLast) {
    const { role, text } = this.message;
    const names = text ? ["copy"] : [];
    if (role === "user") names.push("edit");
    if (role === "assistant" || (role === "user" && isLast)) names.push("retry");
    return names;
  }

  button(name) {
    const labels = { copy: "Copy", edit: "Edit", retry: "Retry" };
    const label = { copy: "Copy the message", edit: "Edit the message and ask again" };
    const again = `Retry: ${this.message.role === "user" ? "ask again" : "have another answer"}`;
    const properties = { type: "button", className: `action ${name}` };
    const button = element("button", properties, labels[name]);
    button.setAttribute("aria-label", label[name] ?? again);
    button.title = label[name] ?? again;
    button.addEventListener("click", () => this.actions[name](this, button));
    return button;
  }

  /** Have the message written anew in its place; `done` gets text and pictures, or null. */
  edit(done) {
    const area = element("textarea", { value: this.message.text, dir: "auto" });
    area.setAttribute("aria-label", "Message, to be sent again");
    const list = element("ul", { className: "thumbnails", "aria-label": "Pictures of this message" });
    const form = element(
      "form",
      { className: "edit" },
      list,
      area,
      element(
        "div",
        { className: "row end" },
        element("button", { type: "button", value: "cancel" }, "Cancel"),
        element("button", { type: "submit", className: "primary" }, "Send"),
      ),
    );
    const pictures = new Pictures(list, () => {});
    pictures.set(this.message.pictures);
    const end = (result) => {
      form.replaceWith(this.content);
      this.foot.hidden = false;
      done(result);
    };
    const send = () => {
      if (area.value.trim() || pictures.urls.length) end({ text: area.value, pictures: pictures.urls });
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    form.querySelector("[value=cancel]").addEventListener("click", () => end(null));
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end(null);
      } else if (isSendKey(event)) {
        event.preventDefault();
        send();
      }
    });
    this.foot.hidden = true;
    this.content.replaceWith(form);
    grow(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** Whether a key sends what is written: Enter alone, and not the one that ends a composition. */
export function isSendKey(event) {
  const { key, shiftKey, ctrlKey, altKey, metaKey, isComposing } = event;
  return key === "Enter" && !(shiftKey || ctrlKey || altKey || metaKey || isComposing);
}

/** Have an area for text as high as its text, within bounds that the style sheet sets. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Copy a text, and say so on the button for a moment. */
export async function copy(text, button, announce) {
  const before = button.textContent;
  const hasCopied = await copied(text);
  button.textContent = hasCopied ? "Copied" : "Not copied";
  announce(hasCopied ? "Copied" : "It could not be copied");
  setTimeout(() => {
    button.textContent = before;
  }, 1500);
}

/** Copy the code of a block whose button was clicked. */
export function copyCode(button, announce) {
  return copy(codeOf(button.closest(".code").querySelector("pre")), button, announce);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over HTTP from another machine, browsers have the older way alone.
  }
  const active = document.activeElement;
  const area = element("textarea", { value: text, className: "visually-hidden" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  active?.focus();
  return done;
}

function callNode(call) {
  let shown = call.arguments;
  try {
    shown = JSON.stringify(JSON.parse(call.arguments), null, 2);
  } catch {
    // It is still coming, or is not JSON.
  }
  const code = element("code", {}, ...textNodes(shown));
  const name = element("strong", {}, ...textNodes(call.name));
  return element("div", { className: "call" }, element("p", {}, "Calls ", name), element("pre", {}, code));
}
