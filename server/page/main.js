// The page: what its buttons, keys and pictures do.

import { Problem, Server } from "./api.js";
import { Chat } from "./chat.js";
import { Conversations, ask } from "./conversations.js";
import { copyCode, grow, isSendKey } from "./messages.js";
import { Pictures } from "./pictures.js";
import { element } from "./rendering.js";
import { keepSettings, ofTab, settings, themeButton } from "./storage.js";

const LOOK_AGAIN = 2000; // milliseconds, while the model is being loaded
const find = (selector) => document.querySelector(selector);

const text = find("#text");
const notice = find("#notice");

const shown = {
  notice(problem, actions) {
    const buttons = Object.entries(actions).map(([label, act]) => {
      const button = element("button", { type: "button" }, label);
      button.addEventListener("click", () => {
        shown.clear();
        act();
      });
      return button;
    });
    const dismiss = element("button", { type: "button", className: "small", title: "Dismiss" }, "×");
    dismiss.setAttribute("aria-label", "Dismiss");
    dismiss.addEventListener("click", () => {
      shown.clear();
      text.focus();
    });
    const said = element("p", {}, problem.message);
    if (problem.advice) said.append(" ", element("span", { className: "advice" }, problem.advice));
    notice.replaceChildren(said, ...buttons, dismiss);
    notice.classList.toggle("plain", "Undo" in actions);
    notice.hidden = false;
  },
  clear() {
    notice.hidden = true;
    notice.replaceChildren();
  },
  announce(words) {
    find("#announcer").textContent = words;
  },
  title(name) {
    find("#title").textContent = name ?? "New conversation";
    document.title = name ? `${name} · llama4` : "llama4";
    const hash = name ? `#${encodeURIComponent(name)}` : "";
    if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  },
  context(tokens, isAbout) {
    const nCtx = chat.model?.meta?.n_ctx ?? chat.model?.max_model_len;
    find("#context").hidden = !nCtx;
    if (!nCtx) return;
    const share = Math.min(tokens / nCtx, 1);
    const count = (number) => number.toLocaleString("en");
    const words = `${isAbout ? "about " : ""}${count(tokens)} of ${count(nCtx)}`;
    const meter = find("#context-meter");
    find("#context-text").replaceChildren(words, element("span", { className: "unit" }, " tokens"));
    meter.setAttribute("aria-valuemax", nCtx);
    meter.setAttribute("aria-valuenow", Math.min(tokens, nCtx));
    meter.setAttribute("aria-valuetext", `${words} tokens`);
    meter.firstElementChild.style.width = `${100 * share}%`;
    meter.classList.toggle("nearly-full", share > 0.85);
  },
  progress(words) {
    find("#progress").textContent = words;
    find("#keys").hidden = Boolean(words);
  },
  answering(isSo) {
    const hadFocus = document.activeElement === find("#stop");
    find("#send").hidden = isSo;
    find("#stop").hidden = !isSo;
    find("#welcome").hidden = chat.talk.messages.length > 0;
    if (hadFocus && !isSo) text.focus();
  },
  focus: () => text.focus(),
};

// --- what is here

const server = new Server(async (wasRefused) => {
  const dialog = find("#key");
  const input = find("#key-text");
  find("#key-refused").hidden = !wasRefused;
  input.value = "";
  return (await ask(dialog)) ? input.value.trim() : null;
});

const conversations = new Conversations(server, find("#conversations"), find("#conversations-note"), {
  open,
  renamed(name, newName) {
    if (chat.talk.name === name) {
      chat.talk.name = newName;
      shown.title(newName);
      conversations.current = newName;
    }
    return conversations.refresh();
  },
  async deleted(name, remove) {
    await tryTo(async () => {
      if (chat.talk.name === name) await chat.begin();
      await conversations.saving;
      await remove();
      await conversations.refresh();
    });
  },
});

const chat = new Chat(server, conversations, { log: find("#log"), scroll: find("#scroll"), shown });

const pictures = new Pictures(find("#thumbnails"), () => {});

/** Do something, and say what goes wrong. */
async function tryTo(act) {
  try {
    return await act();
  } catch (error) {
    const advice = error instanceof Problem ? error.advice : "Reload the page.";
    shown.notice(new Problem(error.message, { advice }), {});
    return undefined;
  }
}

// --- writing

function send() {
  if (!text.value.trim() && !pictures.urls.length) return;
  if (!chat.send(text.value, pictures.urls)) return;
  pictures.take();
  write("");
}

function write(words) {
  text.value = words;
  ofTab.set("draft", words || null);
  grow(text);
}

function addPictures(files) {
  if (!files.length) return;
  tryTo(async () => {
    if (chat.model?.meta?.vision === false) {
      const advice = "Put its mmproj file beside the model, and start llama4 serve again.";
      throw new Problem("This model sees no pictures, because it has no projector.", { advice });
    }
    await pictures.add(files);
    const { length } = pictures.urls;
    shown.announce(length === 1 ? "The message has a picture" : `The message has ${length} pictures`);
  });
}

find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
text.addEventListener("input", () => write(text.value));
text.addEventListener("keydown", (event) => {
  if (isSendKey(event)) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !text.value && !event.isComposing) {
    event.preventDefault();
    chat.editLast();
  }
});
text.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  addPictures(files);
});
find("#attach").addEventListener("click", () => find("#files").click());
find("#files").addEventListener("change", ({ target }) => {
  addPictures([...target.files]);
  target.value = "";
  text.focus();
});
find("#stop").addEventListener("click", () => chat.stop());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (chat.isAnswering) {
    event.preventDefault();
    chat.stop();
  } else {
    closeSidebar();
  }
});
find("#log").addEventListener("click", (event) => {
  const button = event.target.closest(".copy-code");
  if (button) copyCode(button, shown.announce);
});

// --- dropping

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  find("#drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("#drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  find("#drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  addPictures([...event.dataTransfer.files]);
  text.focus();
});

// --- the side

const narrow = matchMedia("(max-width: 50rem)");

function openSidebar(isOpen) {
  document.body.classList.toggle("sidebar-open", isOpen);
  find("#menu").setAttribute("aria-expanded", String(isOpen || !narrow.matches));
  find("#backdrop").hidden = !isOpen;
  if (isOpen) find("#new").focus();
}

function closeSidebar() {
  if (!document.body.classList.contains("sidebar-open")) return;
  openSidebar(false);
  text.focus();
}

find("#menu").addEventListener("click", () => {
  openSidebar(!document.body.classList.contains("sidebar-open"));
});
find("#backdrop").addEventListener("click", closeSidebar);
find("#new").addEventListener("click", async () => {
  await tryTo(() => chat.begin());
  ofTab.set("conversation", null);
  closeSidebar();
  text.focus();
});

// --- settings

find("#settings-open").addEventListener("click", async () => {
  const fields = { system: find("#system"), temperature: find("#temperature"), maxTokens: find("#max-tokens") };
  const kept = settings();
  fields.system.value = chat.system;
  fields.temperature.value = kept.temperature ?? "";
  fields.maxTokens.value = kept.maxTokens ?? "";
  const number = ({ value }) => (value === "" ? null : Number(value));
  if (!(await ask(find("#settings")))) return;
  const system = fields.system.value.trim();
  keepSettings({ system, temperature: number(fields.temperature), maxTokens: number(fields.maxTokens) });
  chat.system = system;
});

// --- the beginning

async function waitForModel() {
  for (;;) {
    const { data } = await server.json("/v1/models");
    if (data.length) return data[0];
    find("#model").textContent = "The model is being loaded";
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
  }
}

async function start() {
  themeButton(find("#theme"));
  write(ofTab.get("draft") ?? "");
  text.focus();
  await tryTo(async () => {
    await conversations.refresh();
    chat.model = await waitForModel();
    find("#model").textContent = chat.model.id;
    chat.setTokens(chat.tokens);
    if (openedName()) await open(openedName());
    else if (!conversations.isKept) chat.restore();
  });
}

/** The name in the address. */
function openedName() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** Open a conversation; the address is that of one that there is. */
async function open(name) {
  await tryTo(async () => {
    try {
      await chat.open(name);
    } catch (problem) {
      if (problem.status === 404) shown.title(chat.talk.name);
      throw problem;
    }
  });
  closeSidebar();
}

addEventListener("popstate", () => {
  const name = openedName();
  if (name === (chat.talk.name ?? "")) return;
  if (name) open(name);
  else tryTo(() => chat.begin());
});

// What other windows did, and what is to be there when this one is opened again.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") conversations.refresh().catch(() => {});
});
addEventListener("beforeunload", (event) => {
  if (chat.talk.isUnsaved) event.preventDefault(); // the browser asks
});
addEventListener("pagehide", () => {
  if (!conversations.isKept) chat.keepInTab();
});

start();
