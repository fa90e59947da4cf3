// Reads texts as JSON from standard input, and writes what markdown.js makes of each: as HTML in
// short, for people to compare, or what is measured of it. The page itself makes no HTML.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, what] = process.argv.slice(2);
const { parse, settled } = await import(pathToFileURL(module));

const tag = (name, inner) => `<${name}>${inner}</${name}>`;

function inline(one) {
  if (typeof one === "string") return one.replaceAll("<", "&lt;");
  if (one.type === "break") return "<br>";
  if (one.type === "code") return tag("code", one.text);
  const inner = one.inlines.map(inline).join("");
  return one.type === "link" ? `<a ${one.href}>${inner}</a>` : tag(one.type, inner);
}

const inlines = (all) => all.map(inline).join("");

function block(one) {
  switch (one.type) {
    case "paragraph":
      return tag("p", inlines(one.inlines));
    case "heading":
      return tag(`h${one.level}`, inlines(one.inlines));
    case "rule":
      return "<hr>";
    case "code":
      return `<pre ${one.language}${one.isOpen ? " open" : ""}>${one.text}</pre>`;
    case "quote":
      return tag("quote", one.blocks.map(block).join(""));
    case "list": {
      const items = one.items.map(({ isDone, blocks }) => {
        const task = isDone === null ? "" : isDone ? "[x]" : "[ ]";
        return tag("li", task + blocks.map(block).join(""));
      });
      const name = one.isOrdered ? `ol ${one.number}` : "ul";
      return `<${name}${one.isTight ? "" : " loose"}>${items.join("")}</>`;
    }
    case "table": {
      const row = (cells) => cells.map(inlines).join("|");
      const rows = [one.head, ...one.rows.map(({ cells }) => cells)].map(row).join("/");
      return `<table ${one.alignments.map((name) => name || "-").join(",")}>${rows}</table>`;
    }
  }
}

function depth(value) {
  if (typeof value !== "object" || value === null) return 0;
  return 1 + Math.max(0, ...Object.values(value).map(depth));
}

const measures = {
  html: (text) => parse(text).map(block).join(""),
  size: (text) => {
    const tree = parse(text);
    return { letters: JSON.stringify(tree, (key, value) => (key === "source" ? "" : value)).length, depth: depth(tree) };
  },
  // Whether what comes of it piece by piece, of unsettled text alone, is what comes of the whole.
  pieces: (text) => {
    let [from, kept] = [0, []];
    for (let end = 0; end <= text.length; end += 1) {
      const rest = parse(text.slice(from, end));
      for (const one of rest) one.start += from;
      const all = [...kept, ...rest];
      from = settled(text.slice(0, end), all);
      kept = all.filter((one) => one.start < from);
      if (end === text.length) return JSON.stringify(all) === JSON.stringify(parse(text));
    }
  },
};

const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map(measures[what])));
