// The examples of a concept: to see and hear, to remove, and to export as labels.

import { audioPath, call, get, playableUrl, previewUrl } from "./api.js";
import { $, announce, clock, count, el, icon } from "./dom.js";
import { save } from "./exports.js";
import { Excerpt } from "./excerpt.js";
import { levelOf } from "./levels.js";
import { Player } from "./player.js";
import { decode, DRAWN_RATE, partOfClip } from "./sounding.js";

const SUFFIXES = { csv: ".csv", audacity: ".txt", raven: ".selections.txt" };
const ENDLESS = 86_400; // seconds: the length of an example is known when it plays
const DRAWN_BYTES = 4 << 20; // of a file whose waveform is drawn, at most

export class Examples {
  #shell;
  #on;
  #concept = null;
  #all = [];
  #rows = []; // {example, item, play, player, controls, sketch, excerpt}
  #seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) this.#sketch(this.#rowOf(target));
  });

  /** @param {import("./main.js").Shell} shell  @param {{changed: () => void, failed: (error: Error) => void}} on */
  constructor(shell, on) {
    this.#shell = shell;
    this.#on = on;
    $("concept-examples").addEventListener("keydown", (event) => this.#key(event));
    $("concept-examples").addEventListener("focusin", ({ target }) => this.#setCurrent(this.#rowOf(target)));
    $("examples-of").addEventListener("change", () => this.#offer());
    for (const button of $("examples-export").querySelectorAll("button")) {
      button.addEventListener("click", () => this.#export(button.dataset.export));
    }
  }

  show(concept) {
    if (concept.id !== this.#concept?.id) this.#draw([]);
    this.#concept = concept;
    return this.load();
  }

  async load() {
    const { id } = this.#concept;
    try {
      const { examples } = await get(`/concepts/${id}/examples`);
      if (this.#concept?.id === id) this.#draw(examples.reverse());
    } catch (error) {
      this.#on.failed(error);
    }
  }

  pause() {
    for (const { player, excerpt } of this.#rows) {
      player.pause();
      excerpt?.pause();
    }
  }

  /** @param {any[]} examples  newest first */
  #draw(examples) {
    const ids = new Set(examples.map(({ id }) => id));
    for (const row of this.#rows.filter(({ example }) => !ids.has(example.id))) {
      row.player.destroy();
      row.excerpt?.destroy();
      row.item.remove();
    }
    const before = new Map(this.#rows.map((row) => [row.example.id, row]));
    this.#all = examples;
    this.#rows = examples.map((example) => before.get(example.id) ?? this.#row(example));
    let place = $("concept-examples").firstElementChild;
    for (const { item } of this.#rows) {
      if (item === place) place = place.nextElementSibling;
      else $("concept-examples").insertBefore(item, place);
    }
    if (this.#rows.length && !this.#rows.some(({ play }) => play.tabIndex === 0)) this.#setCurrent(this.#rows[0]);
    $("no-examples").hidden = examples.length > 0;
    $("examples-head").textContent = examples.length ? count(examples.length, "example") : "Examples";
    this.#recordings();
  }

  /** Offers the recordings whose labels can be exported. */
  #recordings() {
    const clips = new Map(this.#all.filter((one) => one.clip_id).map(({ clip_id: id, filename }) => [id, filename]));
    const chosen = $("examples-of").value;
    const option = (value, text) => el("option", { value, text, selected: value === chosen });
    $("examples-of").replaceChildren(option("", "All recordings"), ...[...clips].map(([id, name]) => option(id, name)));
    $("examples-export").hidden = !this.#all.length;
    this.#offer();
  }

  /** Raven and Audacity describe one recording. */
  #offer() {
    const one = $("examples-of").value || new Set(this.#all.map(({ filename }) => filename)).size === 1;
    for (const button of $("examples-export").querySelectorAll("button")) {
      button.disabled = button.dataset.export !== "csv" && !one;
    }
  }

  async #export(format) {
    const clip = $("examples-of").value;
    try {
      const query = new URLSearchParams({ format, ...(clip && { clip_id: clip }) });
      const labels = await (await call(`/concepts/${this.#concept.id}/examples?${query}`)).blob();
      save(`${this.#concept.name}${SUFFIXES[format]}`, labels);
      announce("Saved");
    } catch (error) {
      this.#on.failed(error);
    }
  }

  #row(example) {
    const { clip_id: clip, filename, start, end, label } = example;
    const part = start === null ? null : { start, end };
    const when = part ? `${clock(start)} – ${clock(end)}` : clip ? "whole clip" : "from a file";
    const play = el("button", { type: "button", class: "round play", tabindex: -1, "aria-label": `Play ${filename}` }, icon("play"));
    const name = clip
      ? el("a", { class: "title", href: `?open=${encodeURIComponent(clip)}`, tabindex: -1, text: filename })
      : el("span", { class: "title", text: filename });
    const answer = el("span", { class: `answered ${label ? "yes" : "no"}` }, icon(label ? "check" : "close"), label ? "yes" : "no");
    const about = { type: "button", class: "ghost round", tabindex: -1, title: "Remove (Delete)", "aria-label": `Remove ${filename}, ${when}` };
    const remove = el("button", about, icon("trash"));
    const sketch = el("div", { class: "sketch" });
    const info = el("div", { class: "info" }, name, el("span", { class: "about", text: when }));
    const item = el("li", { class: "example-row" }, play, answer, info, sketch, remove);
    const whole = clip ? audioPath(clip, part) : `/concepts/${this.#concept.id}/examples/${example.id}/audio`;
    const player = new Player({
      src: () => playableUrl(whole),
      fallback: clip && !part ? () => previewUrl(clip) : undefined,
      level: clip ? () => levelOf(clip) : undefined,
      duration: ENDLESS,
      onState: (...state) => this.#changed(row, ...state),
    });
    const row = { example, item, play, player, controls: clip ? [play, name, remove] : [play, remove], sketch, excerpt: null };
    this.#seen.observe(item);
    play.addEventListener("click", () => {
      const playing = [player, row.excerpt].find((one) => one?.playing);
      if (playing) playing.pause();
      else player.play(0);
    });
    remove.addEventListener("click", () => this.#remove(row));
    if (clip) {
      name.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.#shell.openClip(clip, part ? [part] : []);
      });
    }
    return row;
  }

  #changed({ item, play, example }, state, error) {
    const playing = state === "playing";
    item.classList.toggle("playing", playing);
    play.replaceChildren(icon(playing ? "pause" : "play"));
    play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${example.filename}`);
    if (state === "failed") this.#on.failed(error);
  }

  /** Draws the waveform of a row that has come into view, if the browser can decode it. */
  async #sketch(row) {
    this.#seen.unobserve(row.item);
    const { clip_id: clip, id, filename, start, end } = row.example;
    let part, duration;
    try {
      if (clip) {
        part = partOfClip(clip);
        ({ duration } = await get(`/clips/${clip}`));
      } else {
        const sound = await (await call(`/concepts/${this.#concept.id}/examples/${id}/audio`)).blob();
        if (sound.size > DRAWN_BYTES) return;
        part = () => Promise.resolve(sound);
        duration = (await decode(await sound.arrayBuffer())).length / DRAWN_RATE;
      }
    } catch {
      return; // deleted in the meantime, or of a format that the browser doesn't know: it may play all the same
    }
    if (!this.#rows.includes(row)) return;
    row.excerpt = new Excerpt({
      part,
      level: clip ? () => levelOf(clip) : undefined,
      duration,
      stretch: { start: start ?? 0, end: end ?? duration },
      label: `Waveform of ${filename}`,
      compact: true,
      onState: (state, error) => state !== "failed" && this.#changed(row, state, error),
    });
    row.sketch.append(row.excerpt.node);
  }

  async #remove(row) {
    const place = this.#rows.indexOf(row);
    try {
      await call(`/concepts/${this.#concept.id}/examples/${row.example.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) return this.#on.failed(error);
    }
    this.#draw(this.#all.filter(({ id }) => id !== row.example.id));
    if (!this.#focus(Math.min(place, this.#rows.length - 1))) $("examples-head").parentElement.focus();
    announce(`Removed ${row.example.filename}`);
    this.#on.changed();
  }

  #rowOf(node) {
    const item = node?.closest?.("li.example-row");
    return this.#rows.find((row) => row.item === item);
  }

  #setCurrent(row) {
    if (!row) return;
    for (const each of this.#rows) for (const control of each.controls) control.tabIndex = each === row ? 0 : -1;
  }

  #focus(place) {
    this.#rows[place]?.play.focus();
    return Boolean(this.#rows[place]);
  }

  #key(event) {
    const row = this.#rowOf(event.target);
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = this.#rows.indexOf(row);
    const keys = {
      ArrowDown: () => this.#focus(place + 1),
      ArrowUp: () => this.#focus(place - 1),
      Home: () => this.#focus(0),
      End: () => this.#focus(this.#rows.length - 1),
      ...(this.#shell.letters() && { Delete: () => this.#remove(row) }),
    };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
