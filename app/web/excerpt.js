// A stretch of a sound with a little around it: waveform and, unless it is compact, spectrogram on a canvas, with playback
// of the stretch.

import { el } from "./dom.js";
import { colours } from "./outline.js";
import { onScheme, paintSpectrum, paintWave, palette } from "./paint.js";
import { Player } from "./player.js";
import { selectable } from "./selecting.js";
import { decode, DRAWN_RATE } from "./sounding.js";
import { outlineOf } from "./spectrum.js";
import { fitted } from "./strips.js";

const WAVE = 44; // css pixels
const SPECTRUM = 76;
const GAP = 2;
const COLUMNS = 400; // of the drawing, at most
const FINEST = 0.008; // seconds per column
const LONGEST = 120; // seconds that are fetched and drawn
const shown = new Set();
onScheme(() => shown.forEach((excerpt) => excerpt.redraw()));

/** @typedef {{start: number, end: number}} Stretch  seconds */

export class Excerpt {
  #options;
  #height; // css pixels
  #base = document.createElement("canvas");
  #over = document.createElement("canvas");
  #outline = null;
  #window = { from: 0, to: 1 }; // seconds: what is drawn and played
  #time = 0;
  #pending = new AbortController();
  #player = null;
  #url = "";
  #sizes = new ResizeObserver(() => this.redraw());

  /**
   * @param {object} options
   * @param {(start: number, end: number, signal: AbortSignal) => Promise<Blob>} options.part  the sound as WAV
   * @param {() => Promise<number>} [options.level]  the gain with which loudness is matched
   * @param {number} options.duration  of the whole sound, in seconds
   * @param {Stretch} options.stretch
   * @param {string} options.label  for screen readers
   * @param {boolean} [options.compact]  only the waveform
   * @param {(stretch: Stretch) => void} [options.onSelect]  a stretch was selected by dragging
   * @param {(state: "playing" | "paused" | "failed", error?: Error) => void} [options.onState]
   */
  constructor(options) {
    this.#options = options;
    this.node = el("div", { class: "excerpt", role: "img", "aria-label": options.label }, this.#base, this.#over);
    this.#height = options.compact ? WAVE : WAVE + GAP + SPECTRUM;
    this.node.style.height = `${this.#height}px`;
    const at = (x) => {
      const box = this.node.getBoundingClientRect();
      const { from, to } = this.#window;
      return Math.min(Math.max(from + ((x - box.left) / box.width) * (to - from), from), to);
    };
    const { onSelect } = options;
    if (onSelect) selectable(this.node, { at, when: () => true, onSelect: (stretch) => (this.mark(stretch), onSelect(stretch)) });
    this.node.classList.toggle("selectable", Boolean(onSelect));
    this.node.addEventListener("click", ({ clientX }) => this.play(at(clientX)));
    this.#sizes.observe(this.node);
    shown.add(this);
    this.#look(options.stretch);
  }

  get stretch() {
    return this.#options.stretch;
  }

  get playing() {
    return this.#player?.playing ?? false;
  }

  /** Resolves when the excerpt is drawn, or cannot be. */
  get ready() {
    return this.#loading;
  }
  #loading = Promise.resolve();

  /** Marks another stretch, and shows what is around it if it isn't in view. @param {Stretch} stretch */
  mark(stretch) {
    this.#options.stretch = stretch;
    const { from, to } = this.#window;
    if (stretch.start < from - 0.01 || stretch.end > to + 0.01) this.#look(stretch);
    this.redraw();
  }

  /** Plays the stretch, or from a time to the end of what is shown. */
  async play(from = null) {
    await this.#loading;
    const { start, end } = this.#options.stretch;
    const first = this.#window.from;
    const to = from === null || (from >= start && from < end) ? end : this.#window.to;
    await this.#player?.play((from ?? start) - first, to - first);
  }

  pause() {
    this.#player?.pause();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  redraw() {
    requestAnimationFrame(() => this.#draw());
  }

  destroy() {
    this.#close();
    this.#sizes.disconnect();
    shown.delete(this);
  }

  #close() {
    this.#pending.abort();
    this.#player?.destroy();
    this.#player = null;
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = "";
  }

  /** Fetches a stretch with half as much, but half a second to two, on both sides. */
  #look({ start, end }) {
    this.#close();
    this.#outline = null;
    const around = Math.min(Math.max((end - start) / 2, 0.5), 2);
    const from = Math.max(0, start - around);
    this.#window = { from, to: Math.max(from + 0.05, Math.min(this.#options.duration, end + around, from + LONGEST)) };
    this.#time = start;
    this.#pending = new AbortController();
    this.#loading = this.#load(this.#pending.signal);
  }

  async #load(signal) {
    const { from, to } = this.#window;
    try {
      const sound = await this.#options.part(from, to, signal);
      const samples = await decode(await sound.arrayBuffer());
      if (signal.aborted) return;
      this.#outline = outlineOf(samples, DRAWN_RATE, Math.max((to - from) / COLUMNS, FINEST));
      this.#url = URL.createObjectURL(sound);
      this.#player = new Player({
        src: () => Promise.resolve(this.#url),
        level: this.#options.level,
        duration: to - from,
        onTime: (t) => {
          this.#time = from + t;
          this.#drawOver();
        },
        onState: (...state) => this.#options.onState?.(...state),
      });
      this.redraw();
    } catch (error) {
      if (error.name !== "AbortError" && !signal.aborted) this.#options.onState?.("failed", error);
    }
  }

  #draw() {
    const width = this.node.clientWidth;
    if (!width) return;
    const colour = palette();
    const context = fitted(this.#base, width, this.#height);
    const wave = { x: 0, y: 0, w: width, h: WAVE };
    const spectrum = this.#options.compact ? null : { x: 0, y: WAVE + GAP, w: width, h: SPECTRUM };
    context.clearRect(0, 0, width, this.#height);
    context.fillStyle = colour.empty;
    for (const { y, h } of [wave, ...(spectrum ? [spectrum] : [])]) context.fillRect(0, y, width, h);
    if (this.#outline) {
      const { from, to } = this.#window;
      const span = { from: 0, to: to - from };
      paintWave(context, wave, span, this.#outline, colour);
      if (spectrum) paintSpectrum(context, spectrum, span, this.#outline, colour);
    }
    this.#drawOver();
  }

  /** What is outside of the stretch is veiled; a line shows the position. */
  #drawOver() {
    const width = this.node.clientWidth;
    if (!width) return;
    const height = this.#height;
    const context = fitted(this.#over, width, height);
    context.clearRect(0, 0, width, height);
    const { from, to } = this.#window;
    const x = (t) => Math.min(Math.max((t - from) / (to - from), 0), 1) * width;
    const { start, end } = this.#options.stretch;
    const [left, right] = [x(start), x(end)];
    context.fillStyle = palette().ground;
    context.globalAlpha = 0.6;
    context.fillRect(0, 0, left, height);
    context.fillRect(right, 0, width - right, height);
    context.globalAlpha = 1;
    context.strokeStyle = colours().accent;
    context.lineWidth = 2;
    context.strokeRect(left + 1, 1, Math.max(right - left - 2, 1), height - 2);
    if (!this.playing) return;
    context.fillStyle = palette().playhead;
    context.fillRect(Math.min(x(this.#time), width - 2), 0, 2, height);
  }
}
