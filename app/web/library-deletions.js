// Deletion with undo. The request is only sent once the undo period has passed, so undoing keeps the clip with its id and
// vectors, and a browser crash loses nothing. Leaving the page sends pending deletions.

import { at, call, key } from "./api.js";
import { $, announce, el, icon } from "./dom.js";

const TIME = 8; // seconds; paused while the notice has the focus or the pointer

export class Deletions {
  /** @type {Map<string, {clip: any, left: number, notice: HTMLElement, held: number}>} */
  #pending = new Map();
  #going = new Set(); // requests in progress
  #on;
  #timer = 0;

  /**
   * @param {{back: (clip: any) => void, gone: (clip: any) => void, failed: (clip: any, error: Error) => void}} on
   *   `back`: undone; `gone`: deleted; `failed`: not deleted
   */
  constructor(on) {
    this.#on = on;
    addEventListener("pagehide", () => this.#leave());
  }

  /** Whether this clip is being deleted. */
  has(id) {
    return this.#pending.has(id) || this.#going.has(id);
  }

  get any() {
    return this.#pending.size > 0;
  }

  add(clip) {
    const undo = el("button", { type: "button", class: "undo", text: "Undo", "aria-label": `Undo deleting ${clip.filename}`, onclick: () => this.undo(clip.id) });
    const now = el(
      "button",
      { type: "button", class: "ghost round", "aria-label": `Delete ${clip.filename} now`, title: "Delete now", onclick: () => this.#finish(clip.id) },
      icon("trash"),
    );
    const notice = el("div", { class: "notice" }, el("p", {}, "Deleting ", el("strong", { text: clip.filename })), undo, now);
    const entry = { clip, left: TIME, notice, held: 0 };
    const hold = (by) => () => (entry.held += by);
    for (const name of ["pointerenter", "focusin"]) notice.addEventListener(name, hold(1));
    for (const name of ["pointerleave", "focusout"]) notice.addEventListener(name, hold(-1));
    this.#pending.set(clip.id, entry);
    $("notices").append(notice);
    announce(`Deleting ${clip.filename}. Press Control+Z to undo.`);
    this.#timer ||= setInterval(() => this.#tick(), 250);
  }

  /** Cancels the deletion of a clip, by default the most recent one. */
  undo(id = [...this.#pending.keys()].at(-1)) {
    const entry = this.#take(id);
    if (!entry) return;
    announce(`Kept ${entry.clip.filename}`);
    this.#on.back(entry.clip);
  }

  #tick() {
    for (const [id, entry] of this.#pending) {
      if (entry.held > 0) continue;
      entry.left -= 0.25;
      entry.notice.style.setProperty("--left", entry.left / TIME);
      if (entry.left <= 0) this.#finish(id);
    }
  }

  #take(id) {
    const entry = this.#pending.get(id);
    this.#pending.delete(id);
    entry?.notice.remove();
    if (!this.#pending.size) {
      clearInterval(this.#timer);
      this.#timer = 0;
    }
    return entry;
  }

  async #finish(id) {
    const entry = this.#take(id);
    if (!entry) return;
    this.#going.add(id);
    try {
      await call(`/clips/${encodeURIComponent(id)}`, { method: "DELETE" });
    } catch (error) {
      this.#going.delete(id);
      if (error.status !== 404) return this.#on.failed(entry.clip, error); // 404: already deleted elsewhere
    }
    this.#going.delete(id);
    this.#on.gone(entry.clip);
  }

  #leave() {
    for (const id of [...this.#pending.keys(), ...this.#going]) {
      this.#take(id);
      const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
      fetch(at(`/clips/${encodeURIComponent(id)}`), { method: "DELETE", headers, keepalive: true }).catch(() => {});
    }
  }
}
