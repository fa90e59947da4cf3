// Text of answers to elements: made with createElement and text nodes alone, so that nothing in an
// answer is read as HTML.
//
// Promises that a text which grows costs what is new of it: what is settled stays as it is in the
// document, and of the last block, items, rows and lines of code do.

import { parse, settled } from "./markdown.js";

const HIDDEN = /([\u202a-\u202e\u2066-\u2069])/;
const rawTexts = new WeakMap();

/** An element with properties (or attributes) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A text as nodes, in which characters that turn the direction of others are named. */
export function textNodes(text) {
  if (!HIDDEN.test(text)) return [document.createTextNode(text)];
  return text.split(HIDDEN).map((part) => {
    if (!HIDDEN.test(part)) return document.createTextNode(part);
    const code = part.codePointAt(0).toString(16).toUpperCase();
    const title = "A character that changes the direction of text";
    return element("span", { className: "hidden-character", title }, `U+${code}`);
  });
}

/** The code of a block as it came, for the clipboard. */
export const codeOf = (pre) => rawTexts.get(pre) ?? pre.textContent;

/** Markdown in an element, to which more may be added at the end. */
export class LiveText {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.from = 0; // where what may change begins
    this.shown = []; // blocks with their sources and elements, of the whole text
  }

  /** Show this text, which mostly is the one before and some more. */
  update(text) {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.clear();
    this.text = text;
    const blocks = parse(text.slice(this.from));
    for (const block of blocks) block.start += this.from;
    let at = this.shown.findIndex((one) => one.block.start >= this.from);
    if (at < 0) at = this.shown.length;
    for (const [number, block] of blocks.entries()) {
      const source = text.slice(block.start, blocks[number + 1]?.start).trimEnd();
      this.showAt(at + number, block, source);
    }
    for (const { node } of this.shown.splice(at + blocks.length)) node.remove();
    this.from = settled(
      text,
      this.shown.map((one) => one.block),
    );
  }

  /** Show a block in place of the one that is shown there, of which what is the same stays. */
  showAt(at, block, source) {
    const before = this.shown[at];
    const isKept = before?.block.type === block.type && before.source === source;
    if (isKept || (before && patch(before, block))) {
      Object.assign(before, { block, source });
      return;
    }
    const node = blockNode(block);
    if (before) before.node.replaceWith(node);
    else this.root.append(node);
    this.shown[at] = { block, source, node };
  }

  clear() {
    this.root.replaceChildren();
    this.text = "";
    this.from = 0;
    this.shown = [];
  }
}

// --- blocks

/** Have an element show a block like the one that it shows; false where it is of another kind. */
function patch(shown, block) {
  const { block: before, node } = shown;
  if (before.type !== block.type) return false;
  if (block.type === "code") {
    const code = node.querySelector("code");
    if (before.language !== block.language || !block.text.startsWith(before.text)) return false;
    appendText(code, block.text.slice(before.text.length));
    rawTexts.set(code.parentElement, block.text);
  } else if (block.type === "list") {
    const isSame = ["isOrdered", "number", "isTight"].every((name) => before[name] === block[name]);
    if (!isSame) return false;
    patchParts(node, before.items, block.items, (item) => itemNode(item, block.isTight));
  } else if (block.type === "table") {
    if (String(before.alignments) !== String(block.alignments)) return false;
    const body = node.querySelector("tbody");
    patchParts(body, before.rows, block.rows, (row) => rowNode(row.cells, "td", block.alignments));
  } else {
    return false;
  }
  return true;
}

/** Keep the children whose source is the same, from the first on. */
function patchParts(parent, before, parts, make) {
  let same = 0;
  while (
    same < before.length &&
    same < parts.length &&
    before[same].source === parts[same].source &&
    before[same].isDone === parts[same].isDone
  ) {
    same += 1;
  }
  while (parent.children.length > same) parent.lastChild.remove();
  parent.append(...parts.slice(same).map(make));
}

function appendText(code, text) {
  const last = code.lastChild;
  if (last?.nodeType === Node.TEXT_NODE && !HIDDEN.test(text)) last.appendData(text);
  else code.append(...textNodes(text));
}

function blockNode(block) {
  switch (block.type) {
    case "heading":
      return headingNode(block);
    case "code":
      return codeNode(block);
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(blockNode));
    case "list": {
      const items = block.items.map((item) => itemNode(item, block.isTight));
      const properties = block.isOrdered ? { start: block.number } : {};
      return element(block.isOrdered ? "ol" : "ul", properties, ...items);
    }
    case "table":
      return tableNode(block);
    default:
      return inlineParent("p", block.inlines);
  }
}

/** Two levels of headings are the page's own, and answers begin with any. */
function headingNode({ level, inlines }) {
  const node = inlineParent(level < 4 ? "h3" : "h4", inlines);
  node.className = `level-${level}`;
  return node;
}

function itemNode({ blocks, isDone }, isTight) {
  const nodes = blocks.map(blockNode);
  const item = element("li", { className: isTight ? "tight" : "" }, ...nodes);
  if (isDone !== null) {
    item.classList.add("task");
    const label = isDone ? "Done: " : "To do: ";
    item.prepend(element("span", { role: "img", "aria-label": label }, isDone ? "☑ " : "☐ "));
  }
  return item;
}

function codeNode({ language, text }) {
  const code = element("code", {}, ...textNodes(text));
  const label = language ? `Code, ${language}` : "Code";
  const pre = element("pre", { tabIndex: 0, role: "region", "aria-label": label }, code);
  rawTexts.set(pre, text);
  const copy = element("button", { type: "button", className: "copy-code" }, "Copy");
  copy.setAttribute("aria-label", "Copy the code");
  const name = element("span", {}, ...textNodes(language.slice(0, 40)));
  return element("div", { className: "code", dir: "ltr" }, element("div", {}, name, copy), pre);
}

function tableNode({ alignments, head, rows }) {
  const body = rows.map((row) => rowNode(row.cells, "td", alignments));
  const table = element(
    "table",
    {},
    element("thead", {}, rowNode(head, "th", alignments)),
    element("tbody", {}, ...body),
  );
  const properties = { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" };
  return element("div", properties, table);
}

function rowNode(cells, tag, alignments) {
  const nodes = cells.map((cell, at) => {
    const node = inlineParent(tag, cell);
    if (alignments[at]) node.className = alignments[at];
    if (tag === "th") node.scope = "col";
    return node;
  });
  return element("tr", {}, ...nodes);
}

// --- inlines

function inlineParent(tag, inlines) {
  return element(tag, { dir: "auto" }, ...inlines.flatMap(inlineNodes));
}

function inlineNodes(inline) {
  if (typeof inline === "string") return textNodes(inline);
  switch (inline.type) {
    case "code":
      return [element("code", {}, ...textNodes(inline.text))];
    case "break":
      return [element("br")];
    case "link":
      return [linkNode(inline)];
    default:
      return [element(inline.type, {}, ...inline.inlines.flatMap(inlineNodes))];
  }
}

function linkNode({ href, inlines }) {
  const properties = { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href };
  return element("a", properties, ...inlines.flatMap(inlineNodes));
}
