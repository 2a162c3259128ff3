// The form with the settings that turn scores into events: a common threshold, thresholds per phrase, smoothing, gaps and
// minimum duration.

import { conceptOf, named } from "./concept-names.js";
import { el } from "./dom.js";
import { DEFAULTS, MAX_MEDIAN_FILTER } from "./events.js";

export class Cutting {
  /** @param {HTMLElement} root  with #threshold and the fields named after the settings  @param {() => void} onChange */
  constructor(root, onChange) {
    this.onChange = onChange;
    this.threshold = root.querySelector("#threshold");
    this.output = root.querySelector("#threshold-value");
    this.own = root.querySelector("#own-thresholds");
    this.fields = ["medianFilter", "minDuration", "maxGap"].map((name) => [name, root.querySelector(`[name=${name}]`)]);
    this.thresholds = new Map(); // phrase → its own threshold
    for (const input of [this.threshold, ...this.fields.map(([, field]) => field)]) {
      input.addEventListener("input", () => this._changed());
    }
    root.querySelector("#cutting-reset").addEventListener("click", () => this.reset());
    this.reset();
    document.addEventListener("finelap:concepts", () => this._changed());
  }

  /** Restores the service's defaults. */
  reset() {
    this.threshold.value = DEFAULTS.threshold;
    for (const [name, field] of this.fields) field.value = DEFAULTS[name];
    this.thresholds.clear();
    for (const row of this.own.children) this._updateRow(row);
    this._changed();
  }

  /** Sets the common threshold. */
  set(threshold) {
    if (Number(this.threshold.value) === threshold) return;
    this.threshold.value = threshold;
    this._changed();
  }

  /** Creates a row per phrase. @param {string[]} phrases */
  setPhrases(phrases) {
    this.own.replaceChildren(...phrases.map((phrase, i) => this._row(phrase, i)));
  }

  /** The settings of one phrase. @returns {import("./events.js").Settings} */
  of(phrase) {
    const settings = { ...DEFAULTS, threshold: this._threshold(phrase) };
    for (const [name, field] of this.fields) {
      const most = name === "medianFilter" ? MAX_MEDIAN_FILTER : 86_400;
      const value = field.value === "" ? NaN : Number(field.value);
      field.toggleAttribute("aria-invalid", !(value >= 0 && value <= most));
      settings[name] = value >= 0 && value <= most ? value : DEFAULTS[name];
    }
    return settings;
  }

  /** The threshold of a phrase: its own, one set for its concept unless a common one was chosen, or the common one. */
  _threshold(phrase) {
    const common = Number(this.threshold.value);
    const concept = common === DEFAULTS.threshold && phrase ? conceptOf(phrase) : undefined;
    return this.thresholds.get(phrase) ?? (concept?.threshold_set ? concept.threshold : common);
  }

  /** Describes the settings for the footer of an exported image. @param {string[]} phrases */
  describe(phrases) {
    const { threshold, medianFilter, minDuration, maxGap } = this.of(null);
    const own = phrases.filter((phrase) => this._threshold(phrase) !== threshold);
    return [
      `threshold ${threshold.toFixed(2)}`,
      ...own.map((phrase) => `${named(phrase)} ${this._threshold(phrase).toFixed(2)}`),
      `median ${medianFilter} s`,
      `gaps up to ${maxGap} s joined`,
      ...(minDuration ? [`at least ${minDuration} s`] : []),
    ].join(" · ");
  }

  _changed() {
    this.output.value = Number(this.threshold.value).toFixed(2);
    for (const row of this.own.children) this._updateRow(row);
    this.onChange();
  }

  _row(phrase, i) {
    const id = `threshold-${i}`;
    const slider = el("input", { id, type: "range", min: "0.02", max: "0.98", step: "0.01" });
    const back = el("button", { type: "button", class: "ghost", "aria-label": `Reset the threshold of ${named(phrase)}` }, "Reset");
    const row = el("li", { dataset: { phrase } }, el("label", { for: id, text: named(phrase) }), slider, el("output", { for: id }), back);
    slider.addEventListener("input", () => {
      this.thresholds.set(phrase, Number(slider.value));
      this._changed();
    });
    back.addEventListener("click", () => {
      this.thresholds.delete(phrase);
      this._changed();
      slider.focus(); // the button is hidden now
    });
    this._updateRow(row);
    return row;
  }

  _updateRow(row) {
    const own = this.thresholds.get(row.dataset.phrase);
    const value = this._threshold(row.dataset.phrase);
    const [, slider, output, back] = row.children;
    slider.value = value;
    output.value = value.toFixed(2);
    back.hidden = own === undefined;
    row.toggleAttribute("data-own", own !== undefined);
  }
}
