// What is kept in the browser: settings for good, and what is typed until the tab is closed.
//
// Promises that a browser which keeps nothing, or no more, is no error.

const PREFIX = "llama4-edge.";

class Shelf {
  constructor(storage) {
    this.storage = storage;
  }

  get(name) {
    try {
      return JSON.parse(this.storage().getItem(PREFIX + name));
    } catch {
      return null;
    }
  }

  /** Whether it is kept; null removes it. */
  set(name, value) {
    try {
      if (value === null) this.storage().removeItem(PREFIX + name);
      else this.storage().setItem(PREFIX + name, JSON.stringify(value));
      return true;
    } catch {
      return false; // full, or not allowed
    }
  }
}

/** Of this browser. */
export const lasting = new Shelf(() => localStorage);

/** Of this tab. */
export const ofTab = new Shelf(() => sessionStorage);

/** The settings, each null where the server's own counts. */
export function settings() {
  const kept = lasting.get("settings") ?? {};
  const { system = "", temperature = null, maxTokens = null } = kept;
  return { system, temperature, maxTokens };
}

export const keepSettings = (values) => lasting.set("settings", values);

// --- light and dark

const THEMES = ["auto", "light", "dark"];
const THEME_NAMES = { auto: "as the system", light: "light", dark: "dark" };

/** Have a button go through the themes. */
export function themeButton(button) {
  const root = document.documentElement;
  const show = () => {
    const label = `Theme: ${THEME_NAMES[root.dataset.theme] ?? THEME_NAMES.auto}`;
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    root.dataset.theme = next;
    try {
      localStorage.setItem(`${PREFIX}theme`, next);
    } catch {
      // It counts until the page is left.
    }
    show();
  });
  show();
}
