// Pictures that go with a message: chosen, pasted or dropped, shown small until they are sent.

import { Problem } from "./api.js";
import { element } from "./rendering.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const MOST_BYTES = 8 << 20; // of a file that is sent as it is
const LONGEST_SIDE = 4096; // pixels, of a larger one
const MOST_PICTURES = 16;

/** The pictures of the message that is being written; `changed` is called after each change. */
export class Pictures {
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.urls = [];
  }

  /** Take files, and say which of them are no pictures. */
  async add(files) {
    const refused = [];
    for (const file of files) {
      if (this.urls.length >= MOST_PICTURES) {
        throw new Problem(`A message has at most ${MOST_PICTURES} pictures here.`);
      }
      const url = await dataUrl(file).catch(() => null);
      if (url) this.urls.push(url);
      else refused.push(file.name || file.type || "what was pasted");
    }
    this.show();
    if (refused.length) {
      const advice = "Choose PNG, JPEG, WebP, GIF or BMP.";
      throw new Problem(`Not a picture that can be read: ${refused.join(", ")}.`, { advice });
    }
  }

  set(urls) {
    this.urls = [...urls];
    this.show();
  }

  /** Hand the pictures over, and have none. */
  take() {
    const { urls } = this;
    this.set([]);
    return urls;
  }

  show() {
    const items = this.urls.map((url, at) => {
      const name = `Picture ${at + 1}`;
      const remove = element("button", { type: "button", title: `Remove picture ${at + 1}` }, "×");
      remove.setAttribute("aria-label", `Remove picture ${at + 1}`);
      remove.addEventListener("click", () => this.remove(at));
      return element("li", {}, element("img", { src: url, alt: name }), remove);
    });
    this.list.replaceChildren(...items);
    this.list.hidden = !items.length;
    this.changed();
  }

  remove(at) {
    this.urls.splice(at, 1);
    this.show();
    const buttons = this.list.querySelectorAll("button");
    (buttons[Math.min(at, buttons.length - 1)] ?? document.querySelector("#text")).focus();
  }
}

/** A picture as a data URL; one that is very large is made smaller first. */
async function dataUrl(file) {
  if (!KINDS.includes(file.type)) throw new TypeError(file.type);
  const bitmap = await createImageBitmap(file); // fails for what is no picture
  try {
    const isSmall = file.size <= MOST_BYTES && Math.max(bitmap.width, bitmap.height) <= 16384;
    return isSmall ? await read(file) : smaller(bitmap);
  } finally {
    bitmap.close();
  }
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function smaller(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas", {
    width: Math.round(bitmap.width * scale),
    height: Math.round(bitmap.height * scale),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}
