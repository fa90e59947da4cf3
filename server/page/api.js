// What the page asks the server for.
//
// Promises that everything which goes wrong is a Problem that says what happened and what to do.
// The key is kept until the tab is closed, and sent to this server alone.

import { ofTab } from "./storage.js";

/** Something that went wrong: what happened, and what to do about it. */
export class Problem extends Error {
  constructor(message, { advice = "", status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { advice, status, code, retryAfter });
  }
}

/** The server; `askForKey` gives a key, or null where there is none to be had. */
export class Server {
  constructor(askForKey) {
    this.askForKey = askForKey;
    this.asking = null;
  }

  /** What the server answers, as a value. */
  async json(path, options = {}) {
    const response = await this.fetch(path, options);
    return response.json();
  }

  /**
   * The events of an answer as they come: {content}, {toolCalls}, {usage}, {reason}.
   * Leaving the loop ends the answer.
   */
  async *answer(request, signal) {
    const body = { ...request, stream: true, stream_options: { include_usage: true } };
    const response = await this.fetch("/v1/chat/completions", { method: "POST", body, signal });
    let isEnded = false;
    try {
      for await (const data of serverEvents(response.body)) {
        if (data === "[DONE]") {
          isEnded = true;
          break;
        }
        const event = JSON.parse(data);
        if (event.error) throw problemOf(event.error, 500);
        const [choice] = event.choices ?? [];
        const { content, tool_calls: toolCalls } = choice?.delta ?? {};
        if (content) yield { content };
        if (toolCalls) yield { toolCalls };
        if (choice?.finish_reason) yield { reason: choice.finish_reason };
        if (event.usage) yield { usage: event.usage, timings: event.timings };
      }
    } catch (error) {
      throw signal.aborted || error instanceof Problem ? error : cutOff();
    }
    if (!isEnded) throw cutOff();
  }

  async fetch(path, { method = "GET", body, signal } = {}) {
    for (;;) {
      const key = ofTab.get("key");
      const headers = {};
      if (key) headers.Authorization = `Bearer ${key}`;
      if (body !== undefined) headers["Content-Type"] = "application/json";
      const options = { method, headers, signal, cache: "no-store" };
      if (body !== undefined) options.body = JSON.stringify(body);
      let response;
      try {
        response = await fetch(path, options);
      } catch (error) {
        throw signal?.aborted ? error : unreachable();
      }
      if (response.ok) return response;
      const problem = await problemIn(response);
      const isAnother = key !== ofTab.get("key"); // meanwhile, for another request
      if (problem.status !== 401 || !(isAnother || (await this.newKey(key)))) throw problem;
    }
  }

  /** Whether there is another key now; several requests ask once. */
  async newKey(key) {
    this.asking ??= this.askForKey(Boolean(key)).finally(() => {
      this.asking = null;
    });
    const given = await this.asking;
    if (given) ofTab.set("key", given);
    return Boolean(given);
  }
}

/** The data of server-sent events in a body. */
async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const lines = buffer.split("\n");
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- problems

async function problemIn(response) {
  const { status } = response;
  let error = {};
  try {
    ({ error = {} } = await response.json());
  } catch {
    // Something between here and the server answered.
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  return problemOf(error, status, retryAfter);
}

function problemOf(error, status, retryAfter = 0) {
  const code = error?.code ?? "";
  const message = error?.message || `The server answered with an error (${status}).`;
  return new Problem(message, { advice: adviceFor(status, code, retryAfter), status, code, retryAfter });
}

function adviceFor(status, code, retryAfter) {
  if (code === "context_length_exceeded") {
    return "Shorten the message, edit an earlier one, or begin a new conversation.";
  }
  if (status === 401) return "Reload the page to enter another key.";
  if (status === 413) return "Send fewer or smaller pictures, or a shorter text.";
  if (status === 429 || status === 503) {
    const when = retryAfter ? `in ${retryAfter} seconds` : "in a moment";
    return `Try again ${when}.`;
  }
  if (status >= 500) return "Try again. If it happens again, see what the server's log says.";
  return "";
}

function unreachable() {
  const advice = "See whether llama4 serve still runs, then try again. What you typed is kept.";
  return new Problem("The server cannot be reached.", { advice });
}

function cutOff() {
  const advice = "See whether llama4 serve still runs, then try again.";
  return new Problem("The connection ended before the answer did.", { advice });
}
