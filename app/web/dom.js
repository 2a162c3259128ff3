// Helpers for the whole page: finding and creating elements, messages, announcements, and number formats.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * Creates an element. `attributes`: `class`, `text`, `on<event>` listeners, `dataset`, booleans, and other attributes.
 * null and undefined are skipped, also among the children.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon (a <symbol> in index.html), hidden from screen readers because its control has a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Shows a message in `node`, styled as an error if `wrong`. */
export function showMessage(node, text, wrong = false) {
  node.textContent = text;
  node.classList.toggle("wrong", wrong);
}

let announcing;

/** Announces text to screen readers in the page's live region; of several calls within 150 ms, only the last. */
export function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    $("live").textContent = text;
  }, 150);
}

/** Formats seconds as "0.42 s", "7.3 s", "1:02.3" or "1:02:03". */
export function clock(seconds) {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const tenths = Math.round(seconds * 10);
  const [whole, rest] = [Math.floor(tenths / 10), tenths % 10];
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}.${rest}`;
}

/** Formats bytes as "830 B", "12 kB", "4.2 MB". */
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(n, 1)) / 3), units.length - 1);
  const value = n / 1000 ** power;
  return `${value < 10 && power ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

/** "1 sound", "2 sounds", "1,204 sounds". */
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** Delays `fn` until `ms` after the last call; `.now()` runs a pending call at once, `.cancel()` drops it. */
export function debounce(fn, ms) {
  let timer = 0;
  let pending = null;
  const run = () => {
    const args = pending;
    pending = null;
    clearTimeout(timer);
    if (args) fn(...args);
  };
  const later = (...args) => {
    pending = args;
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  later.now = run;
  later.cancel = () => {
    clearTimeout(timer);
    pending = null;
  };
  return later;
}

/** Makes one row of a list current: only its controls are in the Tab order; the arrow keys reach the others. */
export function setCurrent(rows, row) {
  if (!row) return;
  for (const each of rows) {
    each.item.classList.toggle("current", each === row);
    for (const control of each.controls) control.tabIndex = each === row ? 0 : -1;
  }
}
