// The list of phrases to detect, as chips, with a text field and suggestions.

import { Completion } from "./completion.js";
import { concepts, goesOn, labelOf, named, phraseOf, splitPhrases } from "./concept-names.js";
import { announce, el, icon } from "./dom.js";

const SUGGESTED = [
  "speech", "dog barking", "birds singing", "rain", "wind", "thunder", "car passing", "engine", "siren", "footsteps",
  "door slam", "glass breaking", "water dripping", "crowd", "laughter", "music", "bell", "explosion", "gunshot", "silence",
];
const SHOWN = 8;
const OWN = 4; // concepts among them
const MAX_LENGTH = 1000; // characters, the service's limit

export class Phrases {
  /** @param {{list: HTMLElement, field: HTMLInputElement, more: HTMLElement}} nodes  @param {() => void} onChange */
  constructor({ list, field, more }, onChange) {
    this.list = list;
    this.field = field;
    this.more = more;
    this.onChange = onChange;
    this.limit = 100;
    /** @type {string[]} */
    this.all = [];
    field.addEventListener("keydown", (event) => this._key(event));
    new Completion(field, { byName: true, onTake: (phrase) => this._take(phrase) });
    document.addEventListener("finelap:concepts", () => this._show());
    field.addEventListener("paste", (event) => this._paste(event));
    this._show();
  }

  /** Adds the text in the field, if any. */
  take() {
    const text = this.field.value;
    this.field.value = "";
    this.add(splitPhrases(text));
  }

  /** Adds a phrase instead of the text in the field. */
  _take(phrase) {
    this.field.value = "";
    this.add([phrase]);
    announce(`Added ${named(phrase)}`);
  }

  /** Adds phrases that are new and not empty. @param {string[]} texts */
  add(texts) {
    const before = this.all.length;
    for (const text of texts) {
      const phrase = text.replace(/\s+/g, " ").trim().slice(0, MAX_LENGTH);
      if (phrase && !this.all.includes(phrase) && this.all.length < this.limit) this.all.push(phrase);
    }
    if (this.all.length === before) return;
    this._show();
    this.onChange();
  }

  /** Replaces all phrases. @param {string[]} phrases */
  set(phrases) {
    this.all = [];
    this.add(phrases);
  }

  _remove(phrase) {
    const at = this.all.indexOf(phrase);
    this.all.splice(at, 1);
    this._show();
    const next = this.list.children[Math.min(at, this.all.length - 1)];
    (next?.querySelector("button") ?? this.field).focus();
    announce(`Removed ${named(phrase)}`);
    this.onChange();
  }

  _show() {
    this.list.replaceChildren(
      ...this.all.map((phrase) => {
        const remove = { type: "button", "aria-label": `Remove ${named(phrase)}`, onclick: () => this._remove(phrase) };
        return el("li", { class: "chip" }, labelOf(phrase), el("button", remove, icon("close")));
      }),
    );
    this.list.hidden = !this.all.length;
    const left = [...concepts().slice(0, OWN).map(phraseOf), ...SUGGESTED].filter((text) => !this.all.includes(text)).slice(0, SHOWN);
    this.more.replaceChildren(
      ...left.map((text) => el("button", { type: "button", class: "chip", onclick: () => this._suggested(text) }, labelOf(text))),
    );
  }

  _suggested(text) {
    const at = [...this.more.children].indexOf(document.activeElement);
    this.add([text]);
    announce(`Added ${named(text)}`);
    this.more.children[Math.min(Math.max(at, 0), this.more.children.length - 1)]?.focus();
  }

  _key(event) {
    if (event.isComposing) return;
    const text = this.field.value.trim();
    if (text && (event.key === "Enter" || (event.key === "," && !goesOn(`${text},`)))) {
      event.preventDefault();
      this.take();
    } else if (event.key === "Backspace" && !this.field.value && this.all.length) {
      this.field.value = this.all.at(-1); // put back for editing
      this.all.pop();
      this._show();
      this.onChange();
      event.preventDefault();
    }
  }

  _paste(event) {
    const text = event.clipboardData.getData("text");
    if (!/[,;\n]/.test(text.trim())) return;
    event.preventDefault();
    this.add(splitPhrases(text));
  }
}
