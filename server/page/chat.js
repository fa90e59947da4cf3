// The conversation that is open: asking, answering, stopping, editing, saving.
//
// Promises that one answer is made at a time, and that what was typed stays, whatever goes wrong.

import { Problem } from "./api.js";
import { MessageView, addToolCalls, copy, fromStored, newMessage, toWire } from "./messages.js";
import { settings, ofTab } from "./storage.js";

const NEAR = 100; // pixels from the end within which the end is followed
const SHARE = 4; // of the time, what painting may take is one in so many and one

/** What is said, and under which name and version the server keeps it; null where it does not. */
class Talk {
  constructor(messages = [], { name = null, version = null } = {}) {
    Object.assign(this, { messages, name, version });
    this.isUnsaved = false; // which the server was asked to keep
  }

  get isEmpty() {
    return !this.messages.some((message) => message.role !== "system");
  }
}

/** Calls a function when the browser draws, and leaves most of the time to others. */
class Painter {
  constructor(paint) {
    this.paint = paint;
    this.isWaiting = false;
    this.isOver = false;
    this.pause = 0;
  }

  request() {
    if (this.isWaiting || this.isOver) return;
    this.isWaiting = true;
    setTimeout(() => requestAnimationFrame(() => this.now()), this.pause);
  }

  now() {
    this.isWaiting = false;
    if (this.isOver) return;
    const begun = performance.now();
    this.paint();
    this.pause = Math.min(SHARE * (performance.now() - begun), 1000);
  }

  end() {
    this.isOver = true;
    this.paint();
  }
}

export class Chat {
  /**
   * `shown` are functions that show something else than messages: notice(problem, actions), clear(),
   * announce(text), title(name), context(tokens, isAbout), progress(text), answering(isSo).
   */
  constructor(server, conversations, { log, scroll, shown }) {
    Object.assign(this, { server, conversations, log, scroll, shown });
    this.model = null;
    this.talk = new Talk();
    this.views = [];
    this.tokens = 0;
    this.isAbout = false; // or counted by the model
    this.controller = null;
    this.coming = null; // the answer that is being made
    this.answered = Promise.resolve();
    this.isAtEnd = true; // and stays there when what is below needs more room
    scroll.addEventListener("scroll", () => {
      this.isAtEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
    });
    new ResizeObserver(() => this.follow(() => {})).observe(scroll);
    this.actions = {
      copy: (view, button) => copy(view.message.text, button, shown.announce),
      edit: (view) => this.edit(view),
      retry: (view) => this.retry(view),
    };
  }

  get isAnswering() {
    return this.controller !== null;
  }

  // --- what is open

  /** Begin anew. */
  async begin() {
    await this.stop();
    this.show(new Talk());
    this.setTokens(0);
  }

  /** Open what the server has under a name. */
  async open(name) {
    await this.stop();
    const { messages, tokens, ...about } = await this.conversations.read(name);
    this.show(new Talk(messages.map(fromStored), about));
    this.setTokens(tokens ?? 0);
    const { talk } = this;
    const isHere = () => this.talk === talk && !this.isAnswering;
    this.shown.progress("Taking up what was read");
    try {
      const { note } = await this.conversations.resume(name);
      if (note && isHere()) this.shown.notice(new Problem(note), {});
    } catch (problem) {
      if (isHere()) this.shown.notice(problem, {});
    }
    if (isHere()) this.shown.progress("");
  }

  /** Open what this tab has kept, where the server keeps nothing. */
  restore() {
    const kept = ofTab.get("conversation");
    if (!Array.isArray(kept)) return;
    this.show(new Talk(kept.map((one) => ({ ...newMessage("user"), ...one }))));
  }

  /** The system prompt here, or that of a new conversation. */
  get system() {
    const [first] = this.talk.messages;
    if (this.talk.isEmpty) return settings().system;
    return first.role === "system" ? first.text : "";
  }

  set system(text) {
    const { talk } = this;
    if (talk.isEmpty || text === this.system) return;
    const rest = talk.messages.filter((message, at) => at > 0 || message.role !== "system");
    talk.messages = text ? [newMessage("system", text), ...rest] : rest;
    this.show(talk);
    this.save();
  }

  show(talk) {
    this.talk = talk;
    this.shown.clear();
    this.shown.title(talk.name);
    this.conversations.select(talk.name);
    this.views = talk.messages.map((message) => new MessageView(message, this.actions));
    this.log.replaceChildren(...this.views.map((view) => view.node));
    this.updateViews();
    this.goToEnd();
  }

  updateViews() {
    const { length } = this.views;
    const isAnswering = this.isAnswering;
    for (const [at, view] of this.views.entries()) {
      view.update({ isAnswering: isAnswering && at === length - 1, isLast: at === length - 1 });
    }
    this.log.classList.toggle("busy", isAnswering);
    this.log.setAttribute("aria-busy", String(isAnswering));
    this.shown.answering(isAnswering);
  }

  add(message) {
    const view = new MessageView(message, this.actions);
    this.talk.messages.push(message);
    this.views.push(view);
    this.log.append(view.node);
    return view;
  }

  /** Leave so many messages. */
  cut(count) {
    this.talk.messages = this.talk.messages.slice(0, count);
    for (const view of this.views.splice(count)) view.node.remove();
  }

  // --- asking

  /** Send a message; false where that cannot be done now. */
  send(text, pictures) {
    if (this.isAnswering) {
      this.shown.announce("The answer goes on. Escape stops it.");
      return false;
    }
    if (!this.model) {
      this.shown.notice(new Problem("The model is still being loaded."), {});
      return false;
    }
    this.shown.clear();
    const { system } = settings();
    if (this.talk.isEmpty && system) {
      this.cut(0);
      this.add(newMessage("system", system));
    }
    this.add(newMessage("user", text, pictures));
    this.answered = this.answer();
    return true;
  }

  /** Have the last message of the user changed in its place. */
  editLast() {
    const view = this.views.findLast((one) => one.message.role === "user");
    if (view && !this.isAnswering) this.edit(view);
  }

  edit(view) {
    if (this.isAnswering) return;
    view.edit((result) => {
      this.shown.focus();
      if (!result || this.isAnswering) return;
      const at = this.views.indexOf(view);
      this.replaceFrom(at, newMessage("user", result.text, result.pictures));
    });
  }

  /** Have another answer to the question before a message, or to the message. */
  retry(view) {
    if (this.isAnswering) return;
    const at = this.views.indexOf(view);
    this.replaceFrom(view.message.role === "user" ? at + 1 : at, null);
    this.shown.focus();
  }

  replaceFrom(at, message) {
    if (!this.model) {
      this.shown.notice(new Problem("The model is still being loaded."), {});
      return;
    }
    const { talk } = this;
    const before = talk.messages;
    const count = before.length - at;
    this.shown.clear();
    this.cut(at);
    this.isAbout = true;
    if (message) this.add(message);
    if (count > 0) {
      const undo = async () => {
        await this.stop();
        talk.messages = before;
        this.show(talk);
        this.isAbout = true;
        this.save();
        this.shown.focus();
      };
      const text = count === 1 ? "A message was replaced." : `${count} messages were replaced.`;
      this.shown.notice(new Problem(text), { Undo: undo });
    }
    this.answered = this.answer();
  }

  /** End the answer, which keeps what there is of it. */
  async stop() {
    this.controller?.abort();
    await this.answered;
  }

  // --- answering

  async answer() {
    const { talk } = this;
    const asked = talk.messages.map(toWire);
    const message = newMessage("assistant");
    const controller = new AbortController();
    this.controller = controller;
    this.coming = message;
    const view = this.add(message);
    this.updateViews();
    this.goToEnd();
    this.save(asked);
    const painter = new Painter(() => this.follow(() => view.paint()));
    const clock = new Clock((text) => this.shown.progress(text));
    let problem = null;
    try {
      for await (const event of this.server.answer(this.request(asked), controller.signal)) {
        this.take(event, message, clock);
        painter.request();
      }
    } catch (error) {
      if (!controller.signal.aborted) problem = error;
      message.ending = problem ? "Cut off" : "Stopped";
    }
    painter.end();
    clock.end();
    this.controller = this.coming = null;
    this.finish(view, clock, problem);
  }

  take(event, message, clock) {
    if (event.content || event.toolCalls) {
      message.text += event.content ?? "";
      addToolCalls(message, event.toolCalls ?? []);
      clock.piece();
    } else if (event.usage) {
      clock.nTokens = event.usage.completion_tokens;
      clock.rate = event.timings?.predicted_per_second ?? 0;
      this.setTokens(event.usage.total_tokens);
    } else if (event.reason === "length") {
      const { maxTokens } = settings();
      message.ending = maxTokens ? `Ended after ${maxTokens} tokens` : "The context is full";
    }
  }

  finish(view, clock, problem) {
    const { message } = view;
    message.stats = clock.stats;
    if (clock.nTokens === null && clock.nPieces) this.setTokens(this.tokens + clock.nPieces, true);
    const isEmpty = !message.text && !message.toolCalls.length;
    if (isEmpty && message.ending) this.cut(this.talk.messages.length - 1);
    this.follow(() => this.updateViews());
    if (problem) {
      this.shown.notice(asProblem(problem), this.waysOn(problem));
    } else if (isEmpty) {
      this.shown.announce(message.ending || "The answer is empty");
    } else {
      const text = view.content.textContent.slice(0, 2000);
      this.shown.announce(`${message.ending || "Answer"}: ${text}`);
    }
    this.save();
  }

  /** What may be done about an answer that failed. */
  waysOn({ status = 0 }) {
    const last = this.views.at(-1);
    const isRefused = status >= 400 && status < 500 && status !== 401 && status !== 429;
    if (isRefused) return { "Edit the message": () => this.editLast() };
    return { "Try again": () => this.retry(last) };
  }

  request(messages) {
    const { temperature, maxTokens } = settings();
    const request = { model: this.model.id, messages };
    if (temperature !== null) request.temperature = temperature;
    if (maxTokens !== null) request.max_tokens = maxTokens;
    return request;
  }

  /** Change what is shown, and stay at the end if that is where the reader is. */
  follow(change) {
    const { isAtEnd } = this;
    change();
    if (isAtEnd) this.goToEnd();
  }

  goToEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
    this.isAtEnd = true;
  }

  setTokens(count, isAbout = false) {
    Object.assign(this, { tokens: count, isAbout });
    this.shown.context(count, isAbout);
  }

  // --- keeping

  /** Have the conversation where it is kept; `messages` are all of it but an answer to come. */
  async save(messages = null) {
    const { talk } = this;
    if (!this.conversations.isKept) {
      this.keepInTab();
      return;
    }
    const take = () =>
      messages ?? talk.messages.filter((message) => message !== this.coming).map(toWire);
    try {
      const tokens = await this.conversations.save(talk, take);
      talk.isUnsaved = false;
      if (this.talk !== talk) {
        this.conversations.show();
        return;
      }
      this.shown.title(talk.name);
      this.conversations.select(talk.name);
      if (tokens && this.isAbout && !this.isAnswering) this.setTokens(tokens);
    } catch (problem) {
      talk.isUnsaved = true;
      if (this.talk === talk) this.shown.notice(asProblem(problem), this.waysToSave(talk, problem));
    }
  }

  waysToSave(talk, { status }) {
    const anew = () => {
      Object.assign(talk, { name: null, version: null });
      this.save();
    };
    if (status !== 409 && status !== 404) return { "Save again": () => this.save() };
    const ways = { "Save as another": anew };
    if (status === 409) ways["Open what is saved"] = () => this.open(talk.name);
    return ways;
  }

  keepInTab() {
    const { messages } = this.talk;
    if (ofTab.set("conversation", messages)) return;
    const without = messages.map((message) => ({ ...message, pictures: [] }));
    ofTab.set("conversation", without); // there is room for some megabytes
  }
}

function asProblem(error) {
  if (error instanceof Problem) return error;
  return new Problem(`This page failed: ${error.message}`, { advice: "Reload it." });
}

/** How long an answer takes, told while it does. */
class Clock {
  constructor(show) {
    this.show = show;
    this.begun = performance.now();
    this.first = 0;
    this.nPieces = 0;
    this.nTokens = null;
    this.rate = 0;
    this.timer = setInterval(() => this.tick(), 500);
    this.tick();
  }

  piece() {
    this.first ||= performance.now();
    this.nPieces += 1;
  }

  tick() {
    const seconds = Math.round((performance.now() - this.begun) / 1000);
    const doing = this.first ? "Answering" : "Reading";
    this.show(seconds ? `${doing}, ${seconds} s` : doing);
  }

  end() {
    clearInterval(this.timer);
    this.show("");
  }

  get stats() {
    if (!this.first) return "";
    const first = ((this.first - this.begun) / 1000).toFixed(1);
    if (this.nTokens === null) return `${first} s to the first`;
    const speed = this.rate ? ` · ${this.rate.toFixed(1)} tokens/s` : "";
    return `${this.nTokens.toLocaleString("en")} tokens${speed} · ${first} s to the first`;
  }
}
