// Counts of values as chips, to narrow a list by collection, tag, category, length and channels.

import { get } from "./api.js";
import { el } from "./dom.js";
import { including, without } from "./filters.js";

const GROUPS = { collections: "Collection", tags: "Tag", category: "Category", label: "Label", duration: "Length", channels: "Channels" };
const SHOWN = 12; // values of a group
const LENGTHS = [0, 2, 10, 60, 600]; // seconds: the lower ends of the service's ranges
const WORDS = { 0: "under 2 s", 2: "2 to 10 s", 10: "10 to 60 s", 60: "1 to 10 min", 600: "over 10 min" };
const CHANNELS = { 1: "mono", 2: "stereo" };

export class Facets {
  #box;
  #keys;
  #change;
  #asked = 0;

  /** @param {HTMLElement} box  @param {string[]} keys  of GROUPS  @param {(filter: Record<string, any>) => void} change */
  constructor(box, keys, change) {
    this.#box = box;
    this.#keys = keys;
    this.#change = change;
  }

  /** Counts the sounds that pass the filter; for a key that is in it, those that pass the rest. */
  async show(filter) {
    const asked = ++this.#asked;
    const own = this.#keys.filter((key) => key in filter);
    const others = this.#keys.filter((key) => !(key in filter));
    const ask = (key, left) => get("/clips/facets", { key, limit: SHOWN, filter: Object.keys(left).length ? JSON.stringify(left) : null });
    const answers = await Promise.all([
      ...(others.length ? [ask(others, filter)] : []),
      ...own.map((key) => ask([key], Object.fromEntries(Object.entries(filter).filter(([other]) => other !== key)))),
    ]).catch(() => null);
    if (!answers || asked !== this.#asked) return; // the list says what is wrong
    const found = Object.assign({}, ...answers.map(({ facets }) => facets));
    const focused = this.#box.contains(document.activeElement) ? document.activeElement.dataset.value : null;
    const groups = this.#keys.filter((key) => found[key]?.length).map((key) => this.#group(key, found[key], filter));
    this.#box.replaceChildren(...groups);
    this.#box.hidden = !groups.length;
    if (focused) [...this.#box.querySelectorAll("button")].find(({ dataset }) => dataset.value === focused)?.focus();
  }

  #group(key, values, filter) {
    const sorted = key === "duration" ? [...values].sort((a, b) => a.value - b.value) : values;
    const chips = sorted.map(({ value, clips }) => {
      const pressed = holds(filter, key, value);
      const act = () => this.#change(pressed ? dropped(filter, key, value) : taken(filter, key, value));
      const about = { type: "button", class: "chip", "aria-pressed": String(pressed), dataset: { value: `${key} ${value}` }, onclick: act };
      return el("button", about, el("span", { text: wordOf(key, value) }), el("span", { class: "quiet", text: ` ${clips.toLocaleString("en")}` }));
    });
    return el("div", { class: "facet", role: "group", "aria-label": GROUPS[key] }, el("span", { class: "hint", text: GROUPS[key] }), el("div", { class: "chips" }, ...chips));
  }
}

function wordOf(key, value) {
  if (key === "duration") return WORDS[value];
  return key === "channels" ? (CHANNELS[value] ?? `${value} channels`) : String(value);
}

const range = (low) => {
  const next = LENGTHS[LENGTHS.indexOf(low) + 1];
  return { ...(low && { gte: low }), ...(next && { lt: next }) };
};
const holds = (filter, key, value) =>
  key === "duration" ? JSON.stringify(filter.duration) === JSON.stringify(range(value)) : [filter[key]].flat().includes(value);
const taken = (filter, key, value) => (key === "duration" ? { ...filter, duration: range(value) } : including(filter, key, value));
const dropped = (filter, key, value) => (key === "duration" ? without(filter, key) : without(filter, key, value));
