// Selecting several sounds of a list, with check boxes or keys, and the bar at the bottom that acts on them.

import { $, announce, count, el, icon } from "./dom.js";

const shown = { selection: null }; // whose bar it is

/**
 * The selected sounds of one list. Rows are {item, link, …}; `clipOf(row)` is a row's sound.
 * @typedef {{name: string, label: string, title: string, danger?: boolean, act: (clips: any[]) => void}} Action
 */
export class Selection {
  #list;
  #rows;
  #clipOf;
  #actions;
  #toggle;
  #clips = new Map(); // id → clip
  #on = false;
  #last = null; // the clip that was selected or cleared last, for ranges

  /**
   * @param {HTMLElement} list  @param {HTMLButtonElement} toggle  the button that shows check boxes
   * @param {{rows: () => any[], clipOf: (row: any) => any, actions: Action[]}} options
   */
  constructor(list, toggle, { rows, clipOf, actions }) {
    this.#list = list;
    this.#rows = rows;
    this.#clipOf = clipOf;
    this.#actions = actions;
    this.#toggle = toggle;
    toggle.addEventListener("click", () => (this.#on ? this.clear() : this.begin()));
  }

  get size() {
    return this.#clips.size;
  }

  /** The selected sounds, in the order of the list. */
  get clips() {
    const order = this.#rows().map((row) => this.#clipOf(row).id);
    return [...this.#clips.values()].sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
  }

  /** A row's check box. */
  box(clip) {
    const input = el("input", { type: "checkbox", "aria-label": `Select ${clip.filename}`, tabindex: -1 });
    input.addEventListener("click", (event) => {
      if (event.shiftKey && this.#last) this.#range(this.#last, clip.id);
      else this.#set(clip, input.checked);
      this.show();
    });
    return el("label", { class: "select" }, input);
  }

  /** Shows check boxes. */
  begin() {
    this.#on = true;
    this.show();
    this.#rows()[0]?.item.querySelector(".select input").focus();
  }

  clear() {
    const focused = $("selection").contains(document.activeElement) || document.activeElement.closest?.(".select");
    this.#on = false;
    this.#clips.clear();
    this.show();
    if (focused) (this.#rows().find(({ link }) => link.tabIndex === 0)?.link ?? this.#toggle).focus();
  }

  all() {
    for (const row of this.#rows()) this.#set(this.#clipOf(row), true);
    this.show();
    announce(`${count(this.size, "sound")} selected`);
  }

  /** Forgets what is no longer in the list, and shows what is selected; called when the rows have changed. */
  show() {
    const rows = new Map(this.#rows().map((row) => [this.#clipOf(row).id, row]));
    for (const id of this.#clips.keys()) if (!rows.has(id)) this.#clips.delete(id);
    this.#on ||= this.size > 0;
    this.#on &&= rows.size > 0;
    this.#list.toggleAttribute("data-selecting", this.#on);
    this.#toggle.setAttribute("aria-pressed", String(this.#on));
    this.#toggle.hidden = !rows.size;
    for (const [id, row] of rows) {
      const selected = this.#clips.has(id);
      if (selected) this.#clips.set(id, this.#clipOf(row)); // as it is now
      row.item.classList.toggle("selected", selected);
      const box = row.item.querySelector(".select input");
      box.checked = selected;
      box.tabIndex = this.#on ? 0 : -1;
    }
    if (this.#on || shown.selection === this) this.#showBar();
  }

  /** Hides the bar when the tab is left. */
  hide() {
    if (shown.selection !== this) return;
    $("selection").hidden = true;
    shown.selection = null;
  }

  /** Handles a key in the list; `row`: where. Returns whether it was one of the selection's. */
  key(event, row, letters) {
    const act = this.#keyed(event, row, letters);
    if (!act) return false;
    event.preventDefault();
    act();
    return true;
  }

  #keyed(event, row, letters) {
    const plain = !(event.ctrlKey || event.metaKey || event.altKey);
    if (event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey) && !event.shiftKey) return () => this.all();
    if (!plain) return null;
    if (event.key === "Escape" && this.#on) return () => this.clear();
    if (!row) return null;
    if (event.key.toLowerCase() === "x" && letters) return () => this.#flip(row);
    const step = event.shiftKey && { ArrowDown: 1, ArrowUp: -1 }[event.key];
    return step ? () => this.#extend(row, step) : null;
  }

  #flip(row) {
    const clip = this.#clipOf(row);
    const selected = !this.#clips.has(clip.id);
    this.#set(clip, selected);
    this.show();
    announce(`${clip.filename} ${selected ? "selected" : "not selected"}, ${this.size} in all`);
  }

  /** Selects a row and the next one, and moves there; back over a selected row takes the first one out again. */
  #extend(row, step) {
    const rows = this.#rows();
    const next = rows[rows.indexOf(row) + step];
    const back = next && this.#clips.has(this.#clipOf(next).id) && this.#clips.has(this.#clipOf(row).id);
    this.#set(this.#clipOf(row), !back);
    if (next) {
      this.#set(this.#clipOf(next), true);
      next.link.focus();
      next.item.scrollIntoView({ block: "nearest" });
    }
    this.show();
    announce(`${this.size} selected`);
  }

  #set(clip, selected) {
    this.#last = clip.id;
    if (selected) this.#clips.set(clip.id, clip);
    else this.#clips.delete(clip.id);
  }

  #range(from, to) {
    const clips = this.#rows().map((row) => this.#clipOf(row));
    const ends = [from, to].map((id) => clips.findIndex((clip) => clip.id === id)).sort((a, b) => a - b);
    for (const clip of clips.slice(Math.max(ends[0], 0), ends[1] + 1)) this.#set(clip, true);
  }

  #showBar() {
    const bar = $("selection");
    const fresh = shown.selection !== this;
    shown.selection = this;
    bar.hidden = !this.#on;
    if (!this.#on) return (shown.selection = null);
    if (fresh) {
      const button = ({ name, label, title, danger, act }) =>
        el("button", { type: "button", class: danger ? "ghost danger" : "ghost", title, onclick: () => act(this.clips) }, icon(name), el("span", { text: label }));
      const all = el("button", { type: "button", class: "ghost", title: "Select all that are shown (Ctrl+A)", text: "All", onclick: () => this.all() });
      const done = el("button", { type: "button", class: "ghost round", "aria-label": "Clear the selection", title: "Clear the selection (Esc)", onclick: () => this.clear() }, icon("close"));
      bar.replaceChildren(el("output", {}), all, ...this.#actions.map(button), done);
    }
    bar.querySelector("output").textContent = `${this.size} selected`;
    for (const each of bar.querySelectorAll("button[title]:not([aria-label])")) each.disabled = !this.size && each.textContent !== "All";
  }
}
