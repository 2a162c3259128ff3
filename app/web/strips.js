// The drawing in the Detect tab: ruler, waveform, spectrogram and a strip of scores per phrase on one time axis, with a
// common scroll position, zoom and playhead.
//
// wavesurfer, which draws the waveforms elsewhere, does not fit here because data arrives line by line: it needs all peaks
// at once, adds an element to the page for each event, and its spectrogram needs the samples (230 MB for an hour). Two
// canvases as wide as the window show the visible part at any length and zoom; drawing an hour with 20 phrases takes a
// few milliseconds. A scroll box of matching width provides the scroll bar and touch input.

import { colours as pageColours } from "./outline.js";
import { across, firstAfter, onScheme, paintEvents, paintFrequencies, paintHeat, paintRuler, paintSpectrum, paintWave, palette } from "./paint.js";
import { selectable } from "./selecting.js";

const RULER = 22; // css pixels, all of these
const WAVE = 60;
const SPECTRUM = 104;
const LANE = 26;
const NAME = 20; // label above a lane, in narrow windows
const GAP = 6;
const NARROW = 600;
const MAX_ZOOM = 400; // pixels per second

export class Strips {
  /**
   * @param {HTMLElement} root  contains the names (.names) and the scroll box (.scroll) with the canvases
   * @param {{onSeek: (t: number) => void, onPick: (phrase: number, event: number) => void,
   *          onSelect: (stretch: {start: number, end: number}) => void}} calls
   *   called with the position clicked, with the indexes of the phrase and event clicked, or with the stretch dragged over
   */
  constructor(root, { onSeek, onPick, onSelect }) {
    this.onSeek = onSeek;
    this.onPick = onPick;
    this.names = root.querySelector(".names");
    this.scroll = root.querySelector(".scroll");
    this.axis = root.querySelector(".axis");
    this.pane = root.querySelector(".pane");
    [this.base, this.over] = root.querySelectorAll("canvas");
    this.recording = null;
    this.events = /** @type {import("./events.js").Event[][]} */ ([]); // per phrase
    this.total = 1; // length of the axis in seconds
    this.time = 0;
    this.chosen = null; // {phrase, event} as onPick has them
    this.selected = null; // {start, end} in seconds
    this._zoom = 0; // pixels per second; 0: fit to window
    this._queued = 0;
    this._stale = true; // whether to redraw the base, not only the playhead
    this.scroll.addEventListener("scroll", () => this.redraw(), { passive: true });
    this.scroll.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
    this.pane.addEventListener("click", (event) => this._click(event));
    const at = (x) => Math.min(Math.max(this._at(x), 0), this.total);
    selectable(this.pane, { at, onSelect });
    new ResizeObserver(() => this._arrange()).observe(root);
    onScheme(() => this.redraw());
  }

  /** Shows a recording from its start, fitted to the window. */
  show(recording, total) {
    this.recording = recording;
    this.events = recording.phrases.map(() => []);
    this.time = 0;
    this.chosen = this.selected = null;
    this._zoom = 0;
    this.total = Math.max(total, 0.1);
    this._arrange();
  }

  /** Extends the axis to `total` seconds. */
  extend(total) {
    if (this.total === Math.max(total, 0.1)) return;
    this.total = Math.max(total, 0.1);
    this._arrange();
  }

  /** @param {import("./events.js").Event[][]} events  per phrase, sorted by time */
  setEvents(events) {
    this.events = events;
    this.redraw();
  }

  /** Selects an event and scrolls it into view; without arguments clears the selection. */
  choose(phrase, event, { reveal = true } = {}) {
    this.chosen = this.events[phrase]?.[event] ? { phrase, event } : null;
    if (this.chosen && reveal) this.reveal(this.events[phrase][event].onset, this.events[phrase][event].offset);
    this._queue();
  }

  /** Marks a stretch, or none. @param {{start: number, end: number} | null} stretch */
  select(stretch) {
    this.selected = stretch;
    this._queue();
  }

  /** Moves the playhead; with `follow` it stays in view. */
  setTime(t, follow = false) {
    this.time = t;
    if (follow) {
      const { from, to } = this.span;
      if (t < from || t > to - 0.02 * (to - from)) this._scrollTo(t - 0.1 * (to - from));
    }
    this._queue();
  }

  /** Scrolls the stretch into view. */
  reveal(from, to) {
    const { span } = this;
    if (from >= span.from && Math.min(to, from + (span.to - span.from)) <= span.to) return;
    this._scrollTo((from + to) / 2 - (span.to - span.from) / 2);
  }

  /** Zooms by `factor`, between the whole recording and MAX_ZOOM. */
  zoom(factor, around = this._middle()) {
    const fit = this.width / this.total;
    const place = (around - this.span.from) / (this.span.to - this.span.from);
    const zoom = Math.min((this._zoom || fit) * factor, Math.max(MAX_ZOOM, fit));
    this._zoom = zoom <= fit * 1.001 ? 0 : zoom;
    this._arrange();
    this._scrollTo(around - place * (this.span.to - this.span.from));
  }

  /** Fits the recording to the window. */
  fit() {
    this._zoom = 0;
    this._arrange();
  }

  get fits() {
    return this._zoom === 0;
  }

  get width() {
    return this.scroll.clientWidth || 1;
  }

  /** The visible stretch in seconds. @returns {import("./paint.js").Span} */
  get span() {
    if (!this._zoom) return { from: 0, to: this.total };
    const from = this.scroll.scrollLeft / this._zoom;
    return { from, to: from + this.width / this._zoom };
  }

  /** Redraws everything with the next frame. */
  redraw() {
    this._stale = true;
    this._queue();
  }

  /** Paints a span onto any context at x = 0, y = 0. */
  paint(context, span, width, colours, narrow) {
    const { recording } = this;
    const layout = this.layout(narrow);
    const box = (y, h) => ({ x: 0, y, w: width, h });
    context.fillStyle = colours.ground;
    context.fillRect(0, 0, width, layout.height);
    context.fillStyle = colours.empty;
    for (const [y, h] of [[layout.wave, WAVE], [layout.spectrum, SPECTRUM], ...layout.lanes.map((y) => [y, LANE])]) {
      context.fillRect(0, y, width, h);
    }
    if (recording.step) {
      paintWave(context, box(layout.wave, WAVE), span, recording, colours);
      paintSpectrum(context, box(layout.spectrum, SPECTRUM), span, recording, colours);
      paintFrequencies(context, box(layout.spectrum, SPECTRUM), recording, colours);
    }
    recording.tracks.forEach((track, i) => {
      const lane = box(layout.lanes[i], LANE);
      paintHeat(context, lane, span, track.smoothed, recording.hop, colours);
      paintEvents(context, lane, span, this.events[i], colours);
    });
    paintRuler(context, box(0, RULER), span, colours, layout.height);
  }

  /** The tops of all parts, in css pixels. */
  layout(narrow = this.narrow) {
    const head = narrow ? NAME : GAP;
    const wave = RULER + (narrow ? NAME : 2);
    const spectrum = wave + WAVE + head;
    const first = spectrum + SPECTRUM + head + (narrow ? 0 : 4);
    const lanes = (this.recording?.phrases ?? []).map((_, i) => first + i * (LANE + head));
    return { wave, spectrum, lanes, height: (lanes.at(-1) ?? spectrum + SPECTRUM - LANE) + LANE + 1 };
  }

  get narrow() {
    return this.scroll.parentElement.clientWidth < NARROW;
  }

  _middle() {
    const { from, to } = this.span;
    const event = this.chosen && this.events[this.chosen.phrase][this.chosen.event];
    if (event && event.onset >= from && event.onset <= to) return event.onset;
    return this.time > from && this.time < to ? this.time : (from + to) / 2;
  }

  _scrollTo(from) {
    this.scroll.scrollLeft = from * this._zoom;
    this.redraw();
  }

  // Updates sizes and positions after the window, the zoom or the recording has changed.
  _arrange() {
    if (!this.recording || !this.scroll.clientWidth) return;
    const { narrow } = this;
    this.scroll.parentElement.classList.toggle("narrow", narrow);
    if (this._zoom && this._zoom < this.width / this.total) this._zoom = 0;
    const layout = this.layout();
    this.axis.style.width = this._zoom ? `${Math.ceil(this._zoom * this.total)}px` : "100%";
    this.pane.style.width = `${this.width}px`;
    this.pane.style.height = `${layout.height}px`;
    const places = [[layout.wave, WAVE], [layout.spectrum, SPECTRUM], ...layout.lanes.map((y) => [y, LANE])];
    [...this.names.children].forEach((name, i) => {
      const [y, h] = places[i] ?? [0, 0];
      name.style.top = `${narrow ? y - NAME : y}px`;
      name.style.height = `${narrow ? NAME : h}px`;
    });
    this.redraw();
  }

  _queue() {
    this._queued ||= requestAnimationFrame(() => {
      this._queued = 0;
      if (this.recording && this.scroll.clientWidth) this._draw();
    });
  }

  _draw() {
    const colours = palette();
    const { height } = this.layout();
    if (this._stale) {
      this._stale = false;
      this.paint(fitted(this.base, this.width, height), this.span, this.width, colours, this.narrow);
    }
    const context = fitted(this.over, this.width, height);
    context.clearRect(0, 0, this.width, height);
    const { from, to } = this.span;
    const x = (t) => ((t - from) / (to - from)) * this.width;
    const event = this.chosen && this.events[this.chosen.phrase]?.[this.chosen.event];
    if (event) {
      const lane = { x: 0, y: this.layout().lanes[this.chosen.phrase], w: this.width, h: LANE };
      const { x: left, w } = across(lane, this.span, event);
      context.fillStyle = colours.playhead;
      context.globalAlpha = 0.16;
      context.fillRect(left, RULER, w, height - RULER);
      context.globalAlpha = 1;
      context.strokeStyle = colours.playhead;
      context.lineWidth = 2;
      context.strokeRect(left - 1, lane.y - 1, w + 2, lane.h + 2);
    }
    if (this.selected) {
      const { start: onset, end: offset } = this.selected;
      const { x: left, w } = across({ x: 0, w: this.width }, this.span, { onset, offset });
      context.fillStyle = pageColours().selection;
      context.fillRect(left, RULER, w, height - RULER);
    }
    if (this.time >= from && this.time <= to) {
      context.fillStyle = colours.playhead;
      context.fillRect(Math.min(Math.max(x(this.time) - 0.75, 0), this.width - 1.5), RULER - 4, 1.5, height);
    }
  }

  _at(clientX) {
    const { from, to } = this.span;
    return from + ((clientX - this.pane.getBoundingClientRect().left) / this.width) * (to - from);
  }

  _click({ clientX, clientY }) {
    if (!this.recording) return;
    const t = this._at(clientX);
    const y = clientY - this.pane.getBoundingClientRect().top;
    const phrase = this.layout().lanes.findIndex((top) => y >= top && y < top + LANE);
    if (phrase >= 0) {
      const near = (3 / this.width) * (this.span.to - this.span.from); // tolerance for narrow events
      const event = firstAfter(this.events[phrase], t - near);
      if (this.events[phrase][event]?.onset <= t + near) return this.onPick(phrase, event);
    }
    this.onSeek(Math.min(Math.max(t, 0), this.total));
  }

  _wheel(event) {
    if (!event.ctrlKey || !this.recording) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 200), this._at(event.clientX));
  }
}

/** Sizes a canvas in css pixels for the screen's pixel ratio; returns its context, in css pixels. */
export function fitted(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    [canvas.width, canvas.height] = [w, h];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}
