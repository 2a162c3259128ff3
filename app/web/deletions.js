// Deletion with undo. The requests are only sent once the undo period has passed, so undoing keeps the clips with their ids
// and vectors, and a browser crash loses nothing. Leaving the page sends pending deletions.

import { at, call, key } from "./api.js";
import { $, announce, count, el, icon } from "./dom.js";

const TIME = 8; // seconds; paused while the notice has the focus or the pointer
const PARALLEL = 6; // requests at once

/** @typedef {{clips: any[], left: number, notice: HTMLElement, held: number}} Entry */

export class Deletions {
  /** @type {Entry[]} */
  #pending = [];
  #going = new Set(); // ids of requests in progress
  #listeners = [];
  #timer = 0;

  constructor() {
    addEventListener("pagehide", () => this.#leave());
  }

  /**
   * @param {{back: (clips: any[]) => void, gone: (clips: any[]) => void, failed: (clip: any, error: Error) => void}} on
   *   `back`: undone; `gone`: deleted; `failed`: not deleted
   */
  listen(on) {
    this.#listeners.push(on);
  }

  /** Whether this clip is being deleted. */
  has(id) {
    return this.#going.has(id) || this.#pending.some(({ clips }) => clips.some((clip) => clip.id === id));
  }

  get any() {
    return this.#pending.length > 0;
  }

  /** @param {any[]} clips  deleted, and undone, together */
  add(clips) {
    if (!clips.length) return;
    const what = clips.length === 1 ? clips[0].filename : count(clips.length, "sound");
    const undo = el("button", { type: "button", class: "undo", text: "Undo", "aria-label": `Undo deleting ${what}`, onclick: () => this.undo(entry) });
    const now = el(
      "button",
      { type: "button", class: "ghost round", "aria-label": `Delete ${what} now`, title: "Delete now", onclick: () => this.#finish(entry) },
      icon("trash"),
    );
    const notice = el("div", { class: "notice" }, el("p", {}, "Deleting ", el("strong", { text: what })), undo, now);
    const entry = { clips, left: TIME, notice, held: 0 };
    const hold = (by) => () => (entry.held += by);
    for (const name of ["pointerenter", "focusin"]) notice.addEventListener(name, hold(1));
    for (const name of ["pointerleave", "focusout"]) notice.addEventListener(name, hold(-1));
    this.#pending.push(entry);
    $("notices").append(notice);
    announce(`Deleting ${what}. Press Control+Z to undo.`);
    this.#timer ||= setInterval(() => this.#tick(), 250);
  }

  /** Cancels a deletion, by default the most recent one. */
  undo(entry = this.#pending.at(-1)) {
    if (!entry || !this.#take(entry)) return;
    announce(`Kept ${entry.clips.length === 1 ? entry.clips[0].filename : count(entry.clips.length, "sound")}`);
    for (const on of this.#listeners) on.back(entry.clips);
  }

  #tick() {
    for (const entry of [...this.#pending]) {
      if (entry.held > 0) continue;
      entry.left -= 0.25;
      entry.notice.style.setProperty("--left", entry.left / TIME);
      if (entry.left <= 0) this.#finish(entry);
    }
  }

  #take(entry) {
    if (!this.#pending.includes(entry)) return false;
    this.#pending = this.#pending.filter((other) => other !== entry);
    entry.notice.remove();
    if (!this.#pending.length) {
      clearInterval(this.#timer);
      this.#timer = 0;
    }
    return true;
  }

  async #finish(entry) {
    if (!this.#take(entry)) return;
    const left = [...entry.clips];
    const gone = [];
    for (const { id } of left) this.#going.add(id);
    const work = async () => {
      for (let clip; (clip = left.shift()); ) {
        try {
          await call(`/clips/${encodeURIComponent(clip.id)}`, { method: "DELETE" });
          gone.push(clip);
        } catch (error) {
          this.#going.delete(clip.id);
          if (error.status === 404) gone.push(clip); // already deleted elsewhere
          else for (const on of this.#listeners) on.failed(clip, error);
        }
        this.#going.delete(clip.id);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, work));
    for (const on of this.#listeners) on.gone(gone);
  }

  #leave() {
    const ids = [...this.#pending.flatMap(({ clips }) => clips.map(({ id }) => id)), ...this.#going];
    for (const entry of [...this.#pending]) this.#take(entry);
    const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
    for (const id of ids) fetch(at(`/clips/${encodeURIComponent(id)}`), { method: "DELETE", headers, keepalive: true }).catch(() => {});
  }
}
