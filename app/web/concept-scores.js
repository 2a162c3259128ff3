// The scores that a concept gives the sounds of the library, as a histogram with the threshold, and its examples' scores.

import { get, json } from "./api.js";
import { phraseOf } from "./concept-names.js";
import { $, count, debounce, el } from "./dom.js";

const MOST = 1000; // hits
const BINS = 50;
const HEIGHT = 100; // of the plot's own units, in which a bin is 1 wide
const MARKS = 14; // below the bars: yes above no
const LATER = 500; // ms after the last answer
const SVG = "http://www.w3.org/2000/svg";

export class Scores {
  #shell;
  #on;
  #concept = null;
  #scores = []; // best first
  #labels = []; // {score, label} of examples that are clips among the hits
  #moved = false; // whether the slider has moved, and the service doesn't know yet
  #pending = new AbortController();

  /**
   * @param {import("./main.js").Shell} shell
   * @param {{threshold: (value: number | null) => Promise<void>, failed: (error: Error) => void}} on
   *   `threshold`: another was chosen, null for the fitted one
   */
  constructor(shell, on) {
    this.#shell = shell;
    this.#on = on;
    this.later = debounce(() => this.#load(), LATER);
    $("concept-threshold").addEventListener("input", () => {
      this.#moved = true;
      this.#draw();
    });
    $("concept-threshold").addEventListener("change", () => this.#choose(this.threshold));
    $("concept-threshold-reset").addEventListener("click", () => this.#choose(null));
  }

  /** The threshold of the slider. */
  get threshold() {
    return Number($("concept-threshold").value);
  }

  show(concept) {
    if (concept.id !== this.#concept?.id) {
      this.#scores = this.#labels = [];
      this.#moved = false;
    }
    this.update(concept);
    return this.#load();
  }

  /** The concept has changed; its threshold is the slider's unless that is moving. */
  update(concept) {
    this.#concept = concept;
    if (!this.#moved) $("concept-threshold").value = concept.threshold;
    $("concept-threshold-reset").hidden = !concept.threshold_set;
    this.#draw();
  }

  async #choose(threshold) {
    const focused = document.activeElement === $("concept-threshold-reset");
    try {
      await this.#on.threshold(threshold);
    } finally {
      this.#moved = false;
      this.update(this.#concept);
      if (focused) $("concept-threshold").focus(); // the button is hidden now
    }
  }

  async #load() {
    this.#pending.abort();
    const { signal } = (this.#pending = new AbortController());
    const { id, text, positives } = this.#concept;
    try {
      if (!text && !positives) throw Object.assign(new Error(), { status: 409 });
      const body = { query: phraseOf({ name: id }), k: MOST, mode: "semantic", moments: false };
      const [{ hits }, { examples }] = await Promise.all([
        json("/search", { body, signal }),
        get(`/concepts/${id}/examples`, {}, { signal }),
      ]);
      if (signal.aborted) return;
      const scores = new Map(hits.map(({ clip, score }) => [clip.id, score]));
      this.#scores = hits.map(({ score }) => score);
      const known = examples.filter((one) => scores.has(one.clip_id));
      this.#labels = known.map((one) => ({ score: scores.get(one.clip_id), label: one.label }));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      this.#scores = this.#labels = [];
      if (error.status !== 409) this.#on.failed(error);
    }
    this.#draw();
  }

  #draw() {
    const { threshold } = this;
    const reach = this.#scores.filter((score) => score >= threshold).length;
    const all = this.#scores.length;
    const library = (this.#shell.info?.clips ?? all) > all;
    const of = library ? `the best ${count(all, "sound")}` : count(all, "sound");
    const about = all ? `${reach.toLocaleString("en")} of ${of} ${reach === 1 ? "reaches" : "reach"} ${threshold.toFixed(2)}` : "";
    $("scores-about").textContent = about;
    $("concept-threshold-value").value = threshold.toFixed(2);
    $("concept-threshold").setAttribute("aria-valuetext", `${threshold.toFixed(2)}${all ? `, ${about}` : ""}`);
    $("scores-plot").hidden = !all;
    if (all) $("scores-plot").replaceChildren(this.#plot(threshold), this.#axis(), this.#legend());
  }

  /** Bars on a logarithmic scale, for most sounds of a library score low. */
  #plot(threshold) {
    const bins = new Array(BINS).fill(0);
    for (const score of this.#scores) bins[Math.min(Math.floor(score * BINS), BINS - 1)]++;
    const highest = Math.log1p(Math.max(...bins));
    const bars = bins.map((n, i) => {
      const height = n ? Math.max((Math.log1p(n) / highest) * HEIGHT, 3) : 0;
      return shape("rect", { class: (i + 0.5) / BINS >= threshold ? "column above" : "column", x: i + 0.1, y: HEIGHT - height, width: 0.8, height });
    });
    const marks = this.#labels.map(({ score, label }) => {
      const x = Math.min(score * BINS, BINS - 0.3);
      const y = HEIGHT + (label ? 2 : MARKS / 2 + 2);
      return shape("rect", { class: label ? "tick yes" : "tick no", x, y, width: 0.3, height: MARKS / 2 - 1 });
    });
    const line = shape("rect", { class: "line", x: threshold * BINS - 0.1, y: 0, width: 0.2, height: HEIGHT + MARKS });
    const label = `Scores of ${count(this.#scores.length, "sound")}: ${$("scores-about").textContent}`;
    const box = `0 0 ${BINS} ${HEIGHT + MARKS + 2}`;
    return shape("svg", { viewBox: box, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...bars, ...marks, line);
  }

  #axis() {
    return el("div", { class: "scale", "aria-hidden": "true" }, ...["0", "0.25", "0.5", "0.75", "1"].map((text) => el("span", { text })));
  }

  #legend() {
    if (!this.#labels.length) return "";
    const key = (name, text) => el("span", { class: `key ${name}` }, text);
    return el("p", { class: "legend hint" }, key("yes", "examples"), key("no", "counterexamples"));
  }
}

function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}
