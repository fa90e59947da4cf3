// Markdown within a line or a paragraph: emphasis, code and links, to plain values; see markdown.js.

const MOST_OPEN = 30; // delimiters that wait for their closing
const LONGEST_URL = 2000;
const LONGEST_FORMULA = 2000;

const SPECIAL = /[\\`*_~[\]!<&$\n]|https?:\/\//g;
// LaTeX between dollars, or between \( and \), or \[ and \]; "$5 and $10" is none.
const FORMULA =
  /^(?:\$\$[^$]+\$\$|\$(?![\s$])[^$\n]*[^\s$\\]\$(?!\d)|\\\((?:(?!\\\()[^])*?\\\)|\\\[(?:(?!\\\[)[^])*?\\\])/;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", "#39": "'", nbsp: "\u00a0" };

/** The inlines of a text of one or more lines. */
export function parseInlines(text) {
  return new Inlines(text).all();
}

/** One pass over a text; `open` are the delimiters that wait for their closing, inmost last. */
class Inlines {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.open = [{ mark: "", count: 0, inlines: [] }];
  }

  all() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const match = SPECIAL.exec(text);
      const next = match ? match.index : text.length;
      this.add(text.slice(this.at, next));
      this.at = next;
      if (match) this.take(match[0]);
    }
    while (this.open.length > 1) this.giveUp();
    return this.open[0].inlines;
  }

  take(mark) {
    const { text, at } = this;
    if (mark === "\n") this.lineEnd();
    else if (mark === "\\") this.formula() || this.escape();
    else if (mark === "$") this.formula() || this.literally(1);
    else if (mark === "`") this.code();
    else if (mark === "[") this.push("[", 1);
    else if (mark === "!") this.literally(text[at + 1] === "[" ? 0 : 1) || this.push("![", 1);
    else if (mark === "]") this.closeBracket();
    else if (mark === "<") this.bracketedUrl();
    else if (mark === "&") this.entity();
    else if (mark.length > 1) this.bareUrl();
    else this.emphasis(mark);
  }

  add(inline) {
    const { inlines } = this.open.at(-1);
    if (typeof inline === "string" && typeof inlines.at(-1) === "string") {
      inlines[inlines.length - 1] += inline;
    } else if (inline !== "") {
      inlines.push(inline);
    }
  }

  /** Take so many characters as they are; false for none. */
  literally(count) {
    this.add(this.text.slice(this.at, this.at + count));
    this.at += count;
    return count > 0;
  }

  lineEnd() {
    this.add({ type: "break" });
    this.at += 1;
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") {
      this.at += 1;
    } else if (/[!-/:-@[-`{-~]/.test(next)) {
      this.add(next);
      this.at += 2;
    } else {
      this.literally(1);
    }
  }

  /** A formula, every sign of which is shown as it was written; false where none begins. */
  formula() {
    const match = FORMULA.exec(this.text.slice(this.at, this.at + LONGEST_FORMULA));
    if (!match) return false;
    for (const [number, line] of match[0].split("\n").entries()) {
      if (number) this.add({ type: "break" });
      this.add(line);
    }
    this.at += match[0].length;
    return true;
  }

  entity() {
    const match = /^&(amp|lt|gt|quot|apos|#39|nbsp);/.exec(this.text.slice(this.at, this.at + 7));
    if (!match) return this.literally(1);
    this.add(ENTITIES[match[1]]);
    this.at += match[0].length;
    return true;
  }

  code() {
    const length = this.runLength("`");
    const end = this.closingTicks(length, this.at + length);
    if (end < 0) return this.literally(length);
    let code = this.text.slice(this.at + length, end).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim() !== "") code = code.slice(1, -1);
    this.add({ type: "code", text: code });
    this.at = end + length;
    return true;
  }

  /** Where the next run of so many backticks begins, which all together are looked for once. */
  closingTicks(length, from) {
    if (!this.ticks) {
      this.ticks = new Map();
      for (const match of this.text.matchAll(/`+/g)) {
        const starts = this.ticks.get(match[0].length);
        if (starts) starts.push(match.index);
        else this.ticks.set(match[0].length, [match.index]);
      }
      for (const starts of this.ticks.values()) starts.reverse();
    }
    const starts = this.ticks.get(length) ?? [];
    while (starts.length && starts.at(-1) < from) starts.pop();
    return starts.at(-1) ?? -1;
  }

  runLength(mark) {
    let end = this.at;
    while (this.text[end] === mark) end += 1;
    return end - this.at;
  }

  // --- emphasis

  emphasis(mark) {
    let count = this.runLength(mark);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + count] ?? " ";
    this.at += count;
    const isWord = (letter) => mark === "_" && /[\p{L}\p{N}_]/u.test(letter);
    const opens = !/\s/.test(after) && !isWord(before);
    const closes = !/\s/.test(before) && !isWord(after);
    if (mark === "~" && count !== 2) return this.add(mark.repeat(count));
    const size = count;
    if (closes) count = this.close(mark, count, opens);
    if (!count) return undefined;
    if (!opens || this.open.length > MOST_OPEN) return this.add(mark.repeat(count));
    return this.open.push({ mark, count, size, closes, inlines: [] });
  }

  /** Close what is open with this mark; returns how many of the marks are left. */
  close(mark, count, opens) {
    const size = count;
    // CommonMark's rule of three, so that "**a*b**" has an asterisk in it.
    const fits = (one) =>
      !(opens || one.closes) || (one.size + size) % 3 || !(one.size % 3 || size % 3);
    while (count) {
      const place = this.open.findLastIndex(
        (one) => one.mark.endsWith("[") || (one.mark === mark && fits(one)),
      );
      if (place < 1 || this.open[place].mark !== mark) return count;
      while (this.open.length - 1 > place) this.giveUp();
      const opener = this.open[place];
      if (!opener.inlines.length) return count;
      const used = mark === "~" ? 2 : Math.min(opener.count, count, 2);
      const type = mark === "~" ? "del" : used === 2 ? "strong" : "em";
      const inline = { type, inlines: opener.inlines };
      opener.count -= used;
      count -= used;
      if (opener.count) opener.inlines = [inline];
      else this.leave(inline);
    }
    return 0;
  }

  /** Leave the inmost that is open, which became an inline of what is around it. */
  leave(inline) {
    this.open.pop();
    this.add(inline);
  }

  /** What waited for its closing was text. */
  giveUp() {
    const { mark, count, inlines } = this.open.pop();
    this.add(mark.repeat(count));
    for (const inline of inlines) this.add(inline);
  }

  // --- links

  push(mark, count) {
    if (this.open.length > MOST_OPEN) return this.literally(mark.length);
    this.open.push({ mark, count, inlines: [] });
    this.at += mark.length;
    return true;
  }

  closeBracket() {
    const place = this.open.findLastIndex((one) => one.mark.endsWith("["));
    if (place < 1) return this.literally(1);
    while (this.open.length - 1 > place) this.giveUp();
    const target = destination(this.text, this.at + 1);
    const href = target && safeUrl(target.url);
    if (!href) {
      this.giveUp();
      return this.literally(1);
    }
    const { inlines } = this.open[place];
    this.at = target.end;
    this.leave({ type: "link", href, inlines: inlines.length ? withoutLinks(inlines) : [href] });
    return true;
  }

  bracketedUrl() {
    const text = this.text.slice(this.at + 1, this.at + LONGEST_URL);
    const match = /^(?:https?:\/\/|mailto:)[^\s<>]+>/i.exec(text);
    const href = match && safeUrl(match[0].slice(0, -1));
    if (!href) return this.literally(1);
    this.add({ type: "link", href, inlines: [match[0].slice(0, -1)] });
    this.at += match[0].length + 1;
    return true;
  }

  bareUrl() {
    const before = this.text[this.at - 1] ?? " ";
    const text = this.text.slice(this.at, this.at + LONGEST_URL);
    let url = /^[^\s<>"`|]+/.exec(text)[0].split(/\*\*|\]/)[0];
    const count = (mark) => url.split(mark).length - 1;
    while (/[.,;:!?*_~'"]$/.test(url) || (url.endsWith(")") && count(")") > count("("))) {
      url = url.slice(0, -1);
    }
    const href = /[\p{L}\p{N}]/u.test(before) ? null : safeUrl(url);
    if (!href) return this.literally(8);
    this.add({ type: "link", href, inlines: [url] });
    this.at += url.length;
    return true;
  }
}

/** What stands in the parentheses after a link's text: its URL, and where they end. */
function destination(text, at) {
  if (text[at] !== "(") return null;
  const part = text.slice(at, at + LONGEST_URL);
  const match =
    /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(
      part,
    );
  if (!match) return null;
  return { url: match[1] ?? match[2].replace(/\\([!-/:-@[-`{-~])/g, "$1"), end: at + match[0].length };
}

/** The URL as it is written in a link; null for what is no address on the web or of mail. */
function safeUrl(url) {
  if (!/^(?:https?:\/\/|mailto:)[^\s\u0000-\u001f\u202a-\u202e\u2066-\u2069]+$/i.test(url)) {
    return null;
  }
  try {
    const { protocol, href } = new URL(url);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

function withoutLinks(inlines) {
  return inlines.flatMap((inline) => {
    if (inline.type === "link") return withoutLinks(inline.inlines);
    return inline.inlines ? [{ ...inline, inlines: withoutLinks(inline.inlines) }] : [inline];
  });
}
