// Markdown as models write it, to a tree of plain values: no DOM, no HTML.
//
// Promises that any text gives a tree, in time about proportional to its length, of bounded depth;
// that what is no Markdown here (HTML, links that are no web addresses, indented code, setext
// headings, reference links) stays the text that it is; and that more text at the end leaves all
// blocks as they are but those from `settled` on, so that what is before need not be read again.
//
// A block is {type, start, ...} with `start` the offset where it begins:
//   paragraph, heading (level): inlines     code: language, text, isOpen     rule
//   quote: blocks     list: isOrdered, number, isTight, items of {source, isDone, blocks}
//   table: alignments, head (cells of inlines), rows of {source, cells}
// An inline is a string, or {type: "code", text}, {type: "break"}, {type: "link", href, inlines},
// or {type: "strong" | "em" | "del", inlines}.

import { parseInlines } from "./inlines.js";

const DEEPEST = 12; // lists and quotes in each other; what is deeper is shown as text
const MOST_COLUMNS = 50;

/** The blocks of a text. */
export function parse(text) {
  const lines = [];
  let start = 0;
  for (const line of text.split("\n")) {
    lines.push({ text: line.endsWith("\r") ? line.slice(0, -1) : line, start });
    start += line.length + 1;
  }
  return parseLines(lines, 0);
}

/** Where those blocks of a text begin that more text may change: the last one's, mostly. */
export function settled(text, blocks) {
  const last = blocks.at(-1);
  if (!last) return 0;
  // A line may become an item of the list before it until it ends, and the head of a table until
  // the next one does.
  const lineEnd = text.indexOf("\n", last.start);
  const isWhole = lineEnd >= 0 && text.includes("\n", lineEnd + 1);
  return (isWhole ? last : (blocks.at(-2) ?? last)).start;
}

// --- blocks

function parseLines(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at].text)) {
      at += 1;
      continue;
    }
    const [block, end] = takeBlock(lines, at, depth);
    block.start = lines[at].start;
    blocks.push(block);
    at = end;
  }
  return blocks;
}

/** The block that begins at a line, and the line after it. */
function takeBlock(lines, at, depth) {
  const line = lines[at].text;
  const fence = fenceOf(line);
  if (fence) return takeCode(lines, at, fence);
  const level = headingLevel(line);
  if (level) return [{ type: "heading", level, inlines: parseInlines(headingText(line)) }, at + 1];
  if (isRule(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST) {
    if (isQuote(line)) return takeQuote(lines, at, depth);
    if (markerOf(line)) return takeList(lines, at, depth);
  }
  const alignments = tableAt(lines, at);
  if (alignments) return takeTable(lines, at, alignments);
  return takeParagraph(lines, at, depth);
}

const isBlank = (line) => line.trim() === "";
const isQuote = (line) => /^ {0,3}>/.test(line);
const isRule = (line) => /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/.test(line);
const indentOf = (line) => /^ */.exec(line)[0].length;

function fenceOf(line) {
  const match = /^( {0,3})(`{3,}|~{3,})(.*)$/.exec(line);
  if (!match || (match[2][0] === "`" && match[3].includes("`"))) return null;
  return { indent: match[1].length, marks: match[2], language: match[3].trim().split(/\s/)[0] };
}

function headingLevel(line) {
  const match = /^ {0,3}(#{1,6})(?:[ \t]|$)/.exec(line);
  return match ? match[1].length : 0;
}

function headingText(line) {
  const text = line.trim().replace(/^#+/, "").trim();
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  const isClosed = end === 0 || text[end - 1] === " ";
  return isClosed ? text.slice(0, end).trimEnd() : text;
}

/** The marker of a list's item: where its text begins, and what it is. */
function markerOf(line) {
  const match = /^( {0,3})([-*+]|(\d{1,9})[.)])(?:([ \t]+)|$)/.exec(line);
  if (!match) return null;
  const [all, indent, mark, number, spaces = " "] = match;
  const rest = line.slice(all.length);
  const gap = rest === "" || spaces.length > 4 ? 1 : spaces.length;
  return {
    indent: indent.length,
    width: indent.length + mark.length + gap,
    isOrdered: number !== undefined,
    number: Number(number ?? 0),
  };
}

function beginsBlock(lines, at, depth) {
  const line = lines[at].text;
  return Boolean(
    fenceOf(line) ||
      headingLevel(line) ||
      isRule(line) ||
      (depth < DEEPEST && (isQuote(line) || markerOf(line))) ||
      tableAt(lines, at),
  );
}

function takeCode(lines, at, fence) {
  const [mark, least] = [fence.marks[0], fence.marks.length];
  const closing = new RegExp(`^ {0,3}\\${mark}{${least},}[ \\t]*$`);
  const code = [];
  for (let end = at + 1; end < lines.length; end += 1) {
    const line = lines[end].text;
    if (closing.test(line)) return [codeBlock(fence, code, false), end + 1];
    code.push(line.slice(Math.min(fence.indent, indentOf(line))));
  }
  return [codeBlock(fence, code, true), lines.length];
}

function codeBlock(fence, lines, isOpen) {
  return { type: "code", language: fence.language, text: lines.join("\n"), isOpen };
}

function takeQuote(lines, at, depth) {
  const inner = [];
  let end = at;
  while (end < lines.length && isQuote(lines[end].text)) {
    inner.push({ text: lines[end].text.replace(/^ {0,3}> ?/, ""), start: 0 });
    end += 1;
  }
  return [{ type: "quote", blocks: parseLines(inner, depth + 1) }, end];
}

function takeList(lines, at, depth) {
  const first = markerOf(lines[at].text);
  const list = {
    type: "list",
    isOrdered: first.isOrdered,
    number: first.number,
    isTight: true,
    items: [],
  };
  let end = at;
  while (end < lines.length) {
    const marker = markerOf(lines[end].text);
    if (!marker || marker.isOrdered !== first.isOrdered || isRule(lines[end].text)) break;
    const [item, next, hasGap] = takeItem(lines, end, marker, depth);
    list.items.push(item);
    const goesOn = next < lines.length && markerOf(lines[next].text);
    if (hasGap && goesOn && goesOn.isOrdered === first.isOrdered) list.isTight = false;
    if (item.isLoose) list.isTight = false;
    end = next;
  }
  return [list, end];
}

/** An item of a list, the line after it, and whether there is a blank one before that. */
function takeItem(lines, at, marker, depth) {
  // Models indent by two what belongs to "1. ", which is three wide.
  const least = Math.min(marker.width, marker.indent + 2);
  const inner = [lines[at].text.slice(marker.width)];
  let end = at + 1;
  let blanks = 0;
  for (; end < lines.length; end += 1) {
    const line = lines[end].text;
    if (isBlank(line)) {
      blanks += 1;
      continue;
    }
    const indent = indentOf(line);
    const belongs = indent >= least;
    const isLazy = !blanks && inner.at(-1) !== "" && !beginsBlock(lines, end, depth);
    if (!belongs && !isLazy) break;
    for (; blanks; blanks -= 1) inner.push("");
    inner.push(line.slice(Math.min(indent, marker.width)));
  }
  const task = /^\[([ xX])\](?: |$)/.exec(inner[0]);
  if (task) inner[0] = inner[0].slice(4);
  const blocks = parseLines(
    inner.map((text) => ({ text, start: 0 })),
    depth + 1,
  );
  const isLoose = blocks.filter((block) => block.type === "paragraph").length > 1;
  const isDone = task ? task[1] !== " " : null;
  return [{ source: inner.join("\n"), isDone, isLoose, blocks }, end, blanks > 0];
}

function takeParagraph(lines, at, depth) {
  const texts = [lines[at].text.trimStart()];
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end].text) && !beginsBlock(lines, end, depth)) {
    texts.push(lines[end].text.trimStart());
    end += 1;
  }
  return [{ type: "paragraph", inlines: parseInlines(texts.join("\n").trimEnd()) }, end];
}

/** The alignments of a table whose head is this line; null where there is none. */
function tableAt(lines, at) {
  if (!lines[at].text.includes("|") || at + 1 >= lines.length) return null;
  const rule = lines[at + 1].text;
  if (!rule.includes("-") || !/^[ \t|:-]+$/.test(rule)) return null;
  const cells = cellsOf(rule);
  if (cells.length > MOST_COLUMNS || cells.length !== cellsOf(lines[at].text).length) return null;
  if (!cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return cells.map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
}

function cellsOf(line) {
  const cells = [];
  let cell = "";
  for (let at = 0; at < line.length; at += 1) {
    if (line[at] === "\\" && line[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (line[at] === "|") {
      cells.push(cell.trim());
      cell = "";
    } else {
      cell += line[at];
    }
  }
  cells.push(cell.trim());
  if (cells.length > 1 && cells[0] === "") cells.shift();
  if (cells.length > 1 && cells.at(-1) === "") cells.pop();
  return cells;
}

function takeTable(lines, at, alignments) {
  const width = alignments.length;
  const read = (line) => {
    const cells = cellsOf(line).slice(0, width).map(parseInlines);
    while (cells.length < width) cells.push([]);
    return cells;
  };
  const rows = [];
  let end = at + 2;
  for (; end < lines.length; end += 1) {
    const line = lines[end].text;
    if (isBlank(line) || !line.includes("|") || fenceOf(line)) break;
    rows.push({ source: line, cells: read(line) });
  }
  return [{ type: "table", alignments, head: read(lines[at].text), rows }, end];
}
