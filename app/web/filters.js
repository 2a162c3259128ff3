// Filters as the API takes them ({"tags": "field", "duration": {"lt": 5}}), shown as chips and edited in a form that
// suggests metadata of the newest clips.

import { get } from "./api.js";
import { $, clock, el, icon } from "./dom.js";
import { Facets } from "./facets.js";

const SAMPLED = 300; // clips from which keys and values are suggested
const MAX_VALUES = 200; // suggested per key
const IGNORED = new Set(["sha1", "path", "umid", "time_reference"]); // unique per clip, so useless as filters
const KEYS = ["tags", "category"]; // suggested first

/** A chip with a remove button. */
export function chip(text, remove) {
  const button = el("button", { type: "button", "aria-label": `Remove ${text}`, onclick: remove }, icon("close"));
  return el("span", { class: "chip removable" }, el("span", { text }), button);
}

/** The chips of a filter: one per key, or per value of a list. `change(filter)` receives the rest after a removal. */
export function filterChips(filter, change) {
  return Object.entries(filter).flatMap(([key, wanted]) => {
    if (Array.isArray(wanted)) return wanted.map((value) => chip(`${key}: ${value}`, () => change(without(filter, key, value))));
    if (wanted === null || typeof wanted !== "object") return chip(`${key}: ${wanted}`, () => change(without(filter, key, wanted)));
    return chip(bounds(key, wanted), () => change(without(filter, key)));
  });
}

function bounds(key, wanted) {
  const number = (n) => (key === "duration" ? clock(n) : String(n));
  const low = wanted.gte ?? wanted.gt;
  const high = wanted.lte ?? wanted.lt;
  if (low === undefined) return `${key}: up to ${number(high)}`;
  if (high === undefined) return `${key}: from ${number(low)}`;
  return `${key}: ${number(low)} to ${number(high)}`;
}

/** A filter with an added value; values of the same key are alternatives. */
export function including(filter, key, value) {
  const before = filter[key];
  if (before === undefined || (typeof before === "object" && !Array.isArray(before))) return { ...filter, [key]: value };
  const values = [...new Set([before, value].flat())];
  return { ...filter, [key]: values.length > 1 ? values : values[0] };
}

/** A filter without one value of a key, or without the key. */
export function without(filter, key, value) {
  const { [key]: before, ...others } = filter;
  const left = value === undefined ? [] : [before].flat().filter((each) => each !== value);
  if (!left.length) return others;
  return { ...filter, [key]: left.length > 1 ? left : left[0] };
}

/**
 * How a search narrows beside its filter. `mode`: what counts, as in search.js; `score`: the least one, 0 for any.
 * @typedef {{mode: string, score: number}} Narrowing
 */

export const MODES = { hybrid: "everything", semantic: "sound", lexical: "words", moments: "moments" };

/** The chips of what narrows a search beside its filter; `change` receives what differs after a removal. */
export function narrowingChips({ mode, score }, change) {
  const chips = [];
  if (mode !== "hybrid") chips.push(chip(`by ${MODES[mode]} only`, () => change({ mode: "hybrid" })));
  if (score) chips.push(chip(`score from ${score.toFixed(2)}`, () => change({ score: 0 })));
  return chips;
}

/** The form behind the "Filters" button; calls `change` with every new filter, or `narrow` with what else is new. */
export class FilterForm {
  #filter = {};
  #values = null; // key → Map(value → number of clips)
  #change;
  #facets;

  /** @param {(filter: Record<string, any>) => void} change  @param {(changes: Partial<Narrowing>) => void} narrow */
  constructor(change, narrow) {
    this.#change = change;
    this.#facets = new Facets($("facets"), ["collections", "tags", "category", "label", "duration", "channels"], change);
    $("mode").addEventListener("change", (event) => narrow({ mode: event.target.value }));
    $("least-score").addEventListener("input", () => this.#showScore(Number($("least-score").value)));
    $("least-score").addEventListener("change", () => narrow({ score: Number($("least-score").value) }));
    $("filter-toggle").addEventListener("click", () => this.toggle());
    $("filter-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
    for (const name of ["shortest", "longest"]) $(name).addEventListener("change", () => this.#setDuration());
    $("filter-key").addEventListener("input", () => this.#suggestValues());
    $("filter-form").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.toggle(false);
      $("filter-toggle").focus();
    });
  }

  /** @param {Record<string, any>} filter  @param {Narrowing} narrowing */
  show(filter, narrowing) {
    this.#filter = filter;
    if (!$("filter-form").hidden) this.#facets.show(filter);
    for (const radio of $("mode").querySelectorAll("input")) radio.checked = radio.value === narrowing.mode;
    $("least-score").value = narrowing.score;
    this.#showScore(narrowing.score);
    const { gte, lte } = typeof filter.duration === "object" ? filter.duration : {};
    $("shortest").value = gte ?? "";
    $("longest").value = lte ?? "";
    const number = Object.keys(filter).length + narrowingChips(narrowing).length;
    $("filter-count").replaceChildren(...(number ? [String(number), el("span", { class: "unseen", text: " set" })] : []));
  }

  #showScore(score) {
    $("least-score-value").textContent = score ? score.toFixed(2) : "any";
  }

  toggle(open = $("filter-form").hidden) {
    $("filter-form").hidden = !open;
    $("filter-toggle").setAttribute("aria-expanded", String(open));
    if (!open) return;
    $("filter-key").focus();
    this.#loadSuggestions();
    this.#facets.show(this.#filter);
  }

  async #loadSuggestions() {
    if (this.#values) return;
    this.#values = new Map();
    const { clips } = await get("/clips", { limit: SAMPLED }).catch(() => ({ clips: [] }));
    for (const { metadata } of clips) {
      for (const [key, content] of Object.entries(metadata)) {
        if (IGNORED.has(key)) continue;
        const counts = this.#values.get(key) ?? new Map();
        this.#values.set(key, counts);
        for (const value of [content].flat()) {
          if (["string", "number", "boolean"].includes(typeof value)) counts.set(String(value), (counts.get(String(value)) ?? 0) + 1);
        }
      }
    }
    const rank = (key) => (KEYS.includes(key) ? KEYS.indexOf(key) : KEYS.length);
    const keys = [...this.#values.keys()].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    $("filter-keys").replaceChildren(...keys.map((key) => el("option", { value: key })));
    if (!$("filter-key").value && keys.length) $("filter-key").placeholder = keys[0];
    this.#suggestValues();
  }

  #key() {
    return $("filter-key").value.trim() || $("filter-key").placeholder;
  }

  #suggestValues() {
    const counts = [...(this.#values?.get(this.#key()) ?? [])].sort(([a, n], [b, m]) => m - n || a.localeCompare(b));
    const options = counts.slice(0, MAX_VALUES).map(([value, n]) => el("option", { value, label: `${value} (${n})` }));
    $("filter-values").replaceChildren(...options);
  }

  #add() {
    const value = $("filter-value").value.trim();
    if (!value) return $("filter-value").focus();
    $("filter-value").value = "";
    this.#change(including(this.#filter, this.#key(), value));
  }

  #setDuration() {
    const seconds = (name) => ($(name).value === "" ? undefined : Math.max(0, Number($(name).value)));
    const [gte, lte] = [seconds("shortest"), seconds("longest")];
    const range = { ...(gte !== undefined && { gte }), ...(lte !== undefined && { lte }) };
    this.#change(Object.keys(range).length ? { ...this.#filter, duration: range } : without(this.#filter, "duration"));
  }
}
