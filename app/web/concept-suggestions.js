// Suggestions of a concept: moments that it is unsure of, seen, heard and answered by keys. The list renews itself with
// every answer; the suggestion that has the focus stays.

import { call, get, json } from "./api.js";
import { $, announce, clock, el, icon, setCurrent } from "./dom.js";
import { Excerpt } from "./excerpt.js";
import { levelOf } from "./levels.js";
import { partOfClip } from "./sounding.js";

const SHOWN = 5;

/** @typedef {{clip: any, start: number, end: number, score: number}} Suggestion */

export class Suggestions {
  #shell;
  #on;
  #concept = null;
  #rows = []; // {key, suggestion, item, link, excerpt}
  #answers = Promise.resolve(); // sent one after the other
  #given = []; // {id, key}: the answers that can be undone
  #answered = new Set(); // keys of moments that were answered, until the service has them
  #pending = new AbortController();

  /**
   * @param {import("./main.js").Shell} shell
   * @param {{answered: (concept: any) => void, failed: (error: Error) => void}} on
   */
  constructor(shell, on) {
    this.#shell = shell;
    this.#on = on;
    $("suggestions").addEventListener("keydown", (event) => this.#key(event));
    $("suggestions").addEventListener("focusin", ({ target }) => setCurrent(this.#rows, this.#rowOf(target)));
    $("suggestions-undo").addEventListener("click", () => this.#undo());
  }

  /** Shows the suggestions of a concept, and keeps those that are still suggested. */
  show(concept) {
    if (concept.id !== this.#concept?.id) {
      this.close();
      this.#given = [];
      this.#answered.clear();
    }
    this.#concept = concept;
    $("suggestions-undo").hidden = !this.#given.length;
    return this.#renew();
  }

  close() {
    this.#pending.abort();
    this.#concept = null;
    for (const row of this.#rows) row.excerpt.destroy();
    this.#rows = [];
    $("suggestions").replaceChildren();
    $("suggestions").removeAttribute("aria-busy");
  }

  async #renew() {
    this.#pending.abort();
    const { signal } = (this.#pending = new AbortController());
    const { id } = this.#concept;
    $("suggestions").setAttribute("aria-busy", "true");
    try {
      const { suggestions } = await get(`/concepts/${id}/suggestions`, { k: SHOWN + this.#answered.size + 1 }, { signal });
      if (!signal.aborted) this.#draw(suggestions.filter((one) => !this.#answered.has(keyOf(one))));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      if (error.status === 409) this.#draw([]); // without words and examples there is nothing to be unsure of
      else this.#on.failed(error);
    }
    if (!signal.aborted) $("suggestions").removeAttribute("aria-busy");
  }

  /** @param {Suggestion[]} found */
  #draw(found) {
    const focused = this.#rowOf(document.activeElement);
    const kept = focused ? [focused] : [];
    const fresh = found.filter((one) => kept.every(({ key }) => key !== keyOf(one))).slice(0, SHOWN - kept.length);
    const rows = [...kept, ...fresh.map((one) => this.#rows.find(({ key }) => key === keyOf(one)) ?? this.#row(one))];
    for (const row of this.#rows) if (!rows.includes(row)) this.#drop(row);
    this.#rows = rows;
    let place = $("suggestions").firstElementChild;
    for (const { item } of rows) {
      if (item === place) place = place.nextElementSibling;
      else $("suggestions").insertBefore(item, place); // the one that has the focus is not moved, and keeps it
    }
    $("no-suggestions").hidden = rows.length > 0;
    $("suggestions-about").hidden = !rows.length;
    if (!rows.some(({ link }) => link.tabIndex === 0) && rows.length) setCurrent(this.#rows, rows[0]);
    if (!focused && document.activeElement === $("suggestions")) this.#focus(0);
  }

  #drop(row) {
    row.excerpt.destroy();
    row.item.remove();
  }

  #row(suggestion) {
    const { clip, start, end, score } = suggestion;
    const when = `${clock(start)} – ${clock(end)}`;
    const play = el("button", { type: "button", class: "round play", tabindex: -1 }, icon("play"));
    const link = el("a", { class: "title", href: `?open=${encodeURIComponent(clip.id)}`, tabindex: -1 }, el("span", { class: "name", text: clip.filename }));
    const excerpt = new Excerpt({
      part: partOfClip(clip.id),
      level: () => levelOf(clip.id),
      duration: clip.duration,
      stretch: { start, end },
      label: `Waveform and spectrogram of ${clip.filename}, ${when}`,
      onState: (state, error) => {
        const playing = state === "playing";
        item.classList.toggle("playing", playing);
        play.replaceChildren(icon(playing ? "pause" : "play"));
        play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${clip.filename}, ${when}`);
        if (state === "failed") this.#on.failed(error);
      },
    });
    const answer = (label, text, name) => {
      const about = `${text}: ${clip.filename}, ${when}`;
      return el("button", { type: "button", class: `answer ${label ? "yes" : "no"}`, tabindex: -1, "aria-label": about, onclick: () => this.#answer(row, label) }, icon(name), text);
    };
    const buttons = [answer(true, "Yes", "check"), answer(false, "No", "close")];
    const about = el("div", { class: "about" }, el("span", { class: "time", text: when }), el("span", { text: `score ${score.toFixed(2)}` }));
    const item = el("li", { class: "suggestion" }, play, el("div", { class: "info" }, link, about), el("div", { class: "answers" }, ...buttons), excerpt.node);
    const row = { key: keyOf(suggestion), suggestion, item, link, excerpt, controls: [play, link, ...buttons] };
    play.setAttribute("aria-label", `Play ${clip.filename}, ${when}`);
    play.addEventListener("click", () => excerpt.toggle());
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.#shell.openClip(clip, [{ start, end, score }]);
    });
    return row;
  }

  /** Removes the suggestion, goes on to the next and sends the answer; then come other suggestions. */
  #answer(row, label) {
    const place = this.#rows.indexOf(row);
    if (place < 0) return;
    const wasPlaying = row.excerpt.playing;
    const { id } = this.#concept;
    const { clip, start, end } = row.suggestion;
    this.#answered.add(row.key);
    this.#rows.splice(place, 1);
    if (!this.#focus(Math.min(place, this.#rows.length - 1))) $("suggestions").focus();
    this.#drop(row);
    if (wasPlaying) this.#rows[Math.min(place, this.#rows.length - 1)]?.excerpt.play();
    announce(`${label ? "Yes" : "No"}: ${clip.filename}`);
    const send = async () => {
      try {
        const body = { examples: [{ clip_id: clip.id, start, end, label }] };
        const { examples, concept } = await json(`/concepts/${id}/examples`, { body });
        if (this.#concept?.id !== id) return;
        this.#given.push({ id: examples[0].id, key: row.key });
        $("suggestions-undo").hidden = false;
        await this.#renewed(concept);
      } catch (error) {
        this.#on.failed(error);
      }
    };
    this.#answers = this.#answers.then(send);
  }

  #undo() {
    const last = this.#given.pop();
    if (!last) return;
    const { id } = this.#concept;
    $("suggestions-undo").hidden = !this.#given.length;
    const send = async () => {
      try {
        await call(`/concepts/${id}/examples/${last.id}`, { method: "DELETE" });
        this.#answered.delete(last.key);
        announce("Undone");
        const concept = await get(`/concepts/${id}`);
        if (this.#concept?.id === id) await this.#renewed(concept);
      } catch (error) {
        this.#on.failed(error);
      }
    };
    this.#answers = this.#answers.then(send);
  }

  async #renewed(concept) {
    this.#concept = concept;
    this.#on.answered(concept);
    await this.#renew();
  }

  #rowOf(node) {
    const item = node?.closest?.("li.suggestion");
    return this.#rows.find((row) => row.item === item);
  }

  #focus(place) {
    const row = this.#rows[place];
    row?.link.focus();
    row?.item.scrollIntoView({ block: "nearest" });
    return Boolean(row);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = this.#rowOf(event.target);
    const move = (step) => {
      const next = this.#rows.indexOf(row) + step;
      if (this.#rows[next]) this.#focus(next);
      if (this.#rows[next] && row.excerpt.playing) this.#rows[next].excerpt.play();
    };
    const keys = {
      ...(row && {
        ArrowDown: () => move(1),
        ArrowUp: () => move(-1),
        Home: () => this.#focus(0),
        End: () => this.#focus(this.#rows.length - 1),
        ...(event.target === row.link && { " ": () => row.excerpt.toggle() }),
      }),
      ...(this.#shell.letters() && {
        ...(row && { y: () => this.#answer(row, true), n: () => this.#answer(row, false) }),
        u: () => this.#undo(),
      }),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.repeat) return;
    event.preventDefault();
    act();
  }
}

const keyOf = ({ clip, start }) => `${clip.id}@${start}`;
