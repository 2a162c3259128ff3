// Small things that every part of the page needs: finding and making elements, saying things, numbers as people read them.
// Knows nothing of the service.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. `attributes`: `class`, `text`, `on<event>` listeners, `dataset`, properties that are booleans, and
 * attributes. null and undefined are left out, also among the children.
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

/** One of the page's icons (a <symbol> of index.html), hidden from screen readers: the control around it has a name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Puts a message into `node`, marked as a problem if `wrong`. */
export function say(node, text, wrong = false) {
  node.textContent = text;
  node.classList.toggle("wrong", wrong);
}

let announcing;

/** Says something to screen readers, by the page's one live region; the last of several within 150 ms. */
export function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    $("live").textContent = text;
  }, 150);
}

/** Seconds as "0.42 s", "7.3 s", "1:02.3" or "1:02:03". */
export function clock(seconds) {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const tenths = Math.round(seconds * 10);
  const [whole, rest] = [Math.floor(tenths / 10), tenths % 10];
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}.${rest}`;
}

/** Bytes as "830 B", "12 kB", "4.2 MB". */
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(n, 1)) / 3), units.length - 1);
  const value = n / 1000 ** power;
  return `${value < 10 && power ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

/** "1 sound", "2 sounds", "1,204 sounds". */
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** `fn` once nobody has called for `ms`; `.now()` calls it at once if a call waits, `.cancel()` forgets it. */
export function debounce(fn, ms) {
  let timer = 0;
  let waiting = null;
  const run = () => {
    const args = waiting;
    waiting = null;
    clearTimeout(timer);
    if (args) fn(...args);
  };
  const later = (...args) => {
    waiting = args;
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  later.now = run;
  later.cancel = () => {
    clearTimeout(timer);
    waiting = null;
  };
  return later;
}
