// Completes the names of concepts in a text field: a list below it, by the pattern of an ARIA combobox.

import { concepts, goesOn, phraseOf, splitPhrases } from "./concept-names.js";
import { announce, count, el, icon } from "./dom.js";

const START = "concept:";
const LEAST = 4; // letters of "concept:" that open the list, where plain words are usual
const MOST = 8; // names

let lists = 0;

export class Completion {
  #field;
  #options;
  #list;
  #found = [];
  #active = 0;

  /**
   * @param {HTMLInputElement} field  in a positioned box, below which the list appears
   * @param {object} [options]
   * @param {RegExp} [options.separator]  between the phrases of the field; only the last one is completed
   * @param {boolean} [options.byName]  also complete what is typed without "concept:"
   * @param {(phrase: string) => void} [options.onTake]  a name was chosen; by default it is written into the field
   */
  constructor(field, options = {}) {
    this.#field = field;
    this.#options = options;
    this.#list = el("ul", { id: `names-${lists++}`, class: "completion", role: "listbox", "aria-label": "Concepts", hidden: true });
    field.parentElement.append(this.#list);
    for (const [name, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": this.#list.id })) {
      field.setAttribute(name, value);
    }
    field.addEventListener("input", () => this.#update());
    field.addEventListener("keydown", (event) => this.#key(event), true);
    field.addEventListener("blur", () => this.#close());
    this.#list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.#list.addEventListener("click", ({ target }) => {
      const option = target.closest("[role=option]");
      if (option) this.#take([...this.#list.children].indexOf(option));
    });
  }

  /** The last phrase of the field, and what is before it. */
  #parts() {
    const { value } = this.#field;
    const { separator } = this.#options;
    if (!separator) return ["", value];
    const phrases = splitPhrases(value, separator);
    let last = phrases.at(-1);
    for (let n = 2; n <= phrases.length; n++) {
      const longer = value.slice(value.length - phrases.slice(-n).join(" ").length); // a separator is one character
      if (goesOn(longer.trimStart())) last = longer;
    }
    return [value.slice(0, value.length - last.length), last];
  }

  #update() {
    const typed = this.#parts()[1].trimStart().toLowerCase();
    const prefixed = typed.startsWith(START);
    const begun = typed.length >= LEAST && START.startsWith(typed);
    const name = prefixed ? typed.slice(START.length).trim() : typed;
    const fits = (one) => begun || ` ${one.name.toLowerCase()}`.includes(prefixed && !name ? "" : ` ${name}`);
    const open = prefixed || begun || (this.#options.byName && name);
    this.#found = open ? concepts().filter(fits).slice(0, MOST) : [];
    if (this.#found.some((one) => phraseOf(one).toLowerCase() === typed.trim())) this.#found = []; // nothing is missing
    this.#active = 0;
    if (this.#found.length) this.#show();
    else this.#close();
  }

  #show() {
    const { id, hidden } = this.#list;
    this.#list.replaceChildren(
      ...this.#found.map((one, i) => {
        const about = count(one.positives + one.negatives, "example");
        return el("li", { role: "option", id: `${id}-${i}`, "aria-selected": String(i === this.#active) }, icon("concept"), one.name, el("span", { class: "hint", text: about }));
      }),
    );
    this.#list.hidden = false;
    this.#field.setAttribute("aria-expanded", "true");
    this.#field.setAttribute("aria-activedescendant", `${id}-${this.#active}`);
    if (hidden) announce(`${count(this.#found.length, "concept")}, press Enter to choose`);
  }

  #close() {
    this.#found = [];
    this.#list.hidden = true;
    this.#list.replaceChildren();
    this.#field.setAttribute("aria-expanded", "false");
    this.#field.removeAttribute("aria-activedescendant");
  }

  #take(place) {
    const phrase = phraseOf(this.#found[place]);
    const [before] = this.#parts();
    this.#close();
    if (this.#options.onTake) return this.#options.onTake(phrase);
    this.#field.value = `${before}${before && !/\s$/.test(before) ? " " : ""}${phrase}`;
    this.#field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #key(event) {
    if (!this.#found.length || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      this.#active = (this.#active + step + this.#found.length) % this.#found.length;
      this.#show();
    } else if (event.key === "Enter" || (event.key === "Tab" && !event.shiftKey)) this.#take(this.#active);
    else if (event.key === "Escape") this.#close();
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }
}
