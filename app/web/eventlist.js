// The table of events with keyboard navigation, in pages of fifty so that thousands of events stay fast. Rows are reused
// when events change, which keeps the focus.

import { el, icon } from "./dom.js";
import { fixed } from "./events.js";
import { formatTime } from "./paint.js";

const ROWS = 50;

/** @typedef {{phrase: number, event: number, onset: number, offset: number, score: number}} Row  `event`: index among its phrase's events */

export class EventList {
  /**
   * @param {{body: HTMLElement, pages: HTMLElement, before: HTMLButtonElement, after: HTMLButtonElement, where: HTMLElement}} nodes
   * @param {{onPick: (row: number) => void, onMove: (row: number) => void}} calls  plays a row; moves to a row
   */
  constructor(nodes, { onPick, onMove }) {
    this.nodes = nodes;
    this.onPick = onPick;
    this.onMove = onMove;
    /** @type {Row[]} */
    this.rows = [];
    this.phrases = [];
    this.page = 0;
    this.chosen = -1;
    nodes.before.addEventListener("click", () => this._turn(-1));
    nodes.after.addEventListener("click", () => this._turn(1));
    nodes.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row) this.onPick(this.page * ROWS + row.sectionRowIndex);
    });
  }

  /** @param {Row[]} rows  sorted by time  @param {string[]} phrases  @param {number} chosen  -1: none */
  show(rows, phrases, chosen) {
    this.rows = rows;
    this.phrases = phrases;
    this.chosen = chosen;
    this.page = Math.max(0, Math.min(this.page, Math.ceil(rows.length / ROWS) - 1));
    this._draw();
  }

  /** Selects a row and shows its page; `focus` also moves the keyboard focus there. */
  choose(chosen, focus = false) {
    this.chosen = chosen;
    if (chosen >= 0) this.page = Math.floor(chosen / ROWS);
    this._draw();
    if (focus && chosen >= 0) this._button(chosen - this.page * ROWS)?.focus();
  }

  /** Rows per page. */
  get size() {
    return ROWS;
  }

  /** Whether the table has the keyboard focus. */
  get focused() {
    return this.nodes.body.contains(document.activeElement);
  }

  _turn(step) {
    this.page += step;
    this._draw();
    this.nodes.body.closest("table").scrollIntoView({ block: "nearest" });
  }

  _button(index) {
    return this.nodes.body.rows[index]?.querySelector("button");
  }

  _draw() {
    const { body, pages, before, after, where } = this.nodes;
    const first = this.page * ROWS;
    const count = Math.min(ROWS, this.rows.length - first);
    while (body.rows.length > count) body.deleteRow(-1);
    while (body.rows.length < count) body.append(emptyRow());
    const stop = this.chosen >= first && this.chosen < first + count ? this.chosen - first : 0; // the row in the Tab order
    for (let i = 0; i < count; i++) {
      const { phrase, onset, offset, score } = this.rows[first + i];
      const row = body.rows[i];
      const [play, name, end, length, sure] = row.cells;
      const button = play.firstChild;
      const begin = formatTime(onset, 3);
      set(button.lastChild, begin);
      const label = `Play ${this.phrases[phrase]} at ${begin}`;
      if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
      button.tabIndex = i === stop ? 0 : -1;
      set(name, this.phrases[phrase]);
      set(end, formatTime(offset, 3));
      set(length, `${fixed(offset - onset, 2)} s`);
      set(sure, fixed(score, 2));
      sure.style.setProperty("--score", score.toFixed(3));
      row.toggleAttribute("data-chosen", first + i === this.chosen);
    }
    pages.hidden = this.rows.length <= ROWS;
    before.disabled = this.page === 0;
    after.disabled = first + count >= this.rows.length;
    set(where, `${first + 1}–${first + count} of ${this.rows.length.toLocaleString("en")}`);
  }
}

function emptyRow() {
  const button = el("button", { type: "button", class: "ghost", tabindex: "-1" }, icon("play"), el("span"));
  return el("tr", {}, el("td", {}, button), el("td"), el("td"), el("td"), el("td", { class: "sure" }));
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
