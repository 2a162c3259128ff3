// A waveform with playback. Uses wavesurfer if it is installed in /web/vendor/; without it, and in lists, a plain canvas
// shows the waveform without zoom, timeline and spectrogram.

import { clock } from "./dom.js";
import { CanvasWaveform, colours } from "./outline.js";
import { formatTime, palette } from "./paint.js";
import { Player } from "./player.js";

/** @typedef {{start: number, end: number, label?: string, selected?: boolean}} Region  seconds; `selected`: by the user */

const MAX_SPECTROGRAM = 600; // seconds; longer recordings would use too much memory in the browser
const scheme = matchMedia("(prefers-color-scheme: dark)");
let library = null;

/** Loads wavesurfer and its plugins on first use; null if they are not installed. */
export function wavesurfer() {
  library ??= document.documentElement.hasAttribute("data-vendor") ? load() : Promise.resolve(null);
  return library;
}

async function load() {
  const files = ["wavesurfer", "regions", "timeline"];
  const found = await Promise.all(files.map((name) => import(`./vendor/${name}.esm.js`)));
  return Object.fromEntries(files.map((name, i) => [name, found[i].default]));
}

/** Whether a recording of this duration can have a spectrogram. */
export const spectrogramFits = (duration) => duration <= MAX_SPECTROGRAM;

export class Wave {
  #container;
  #options;
  #view;
  #gone = false;

  /**
   * @param {HTMLElement} container
   * @param {object} options
   * @param {() => Promise<string>} options.src  URL of the audio, called on first playback
   * @param {() => Promise<string>} [options.fallback]  URL of audio to play where the browser cannot play `src`
   * @param {() => Promise<number>} [options.level]  the gain with which loudness is matched
   * @param {number} options.duration  seconds
   * @param {[number, number][] | null} [options.peaks]  lowest and highest sample of equal stretches
   * @param {Region[]} [options.regions]
   * @param {number} [options.height]  css pixels
   * @param {string} [options.label]  for screen readers
   * @param {() => number} [options.start]  where Space starts the first playback; 0 by default
   * @param {boolean} [options.light]  for lists: always a canvas, and not in the Tab order
   * @param {boolean} [options.timeline]
   * @param {(t: number) => void} [options.onTime]
   * @param {(region: Region) => void} [options.onRegion]  a region was clicked
   * @param {(t: number) => void} [options.onSeek]  the waveform was clicked, or a key moved the position
   * @param {(state: "playing" | "paused" | "failed", error?: Error) => void} [options.onState]
   */
  constructor(container, options) {
    this.#container = container;
    this.#options = { peaks: null, regions: [], height: 64, label: "Waveform", ...options };
    this.player = new Player({
      src: options.src,
      fallback: options.fallback,
      level: options.level,
      duration: options.duration,
      onTime: (t) => this.#moved(t),
      onState: (...state) => this.#options.onState?.(...state),
    });
    container.classList.add("wave");
    container.setAttribute("aria-label", this.#options.label);
    if (options.light) container.setAttribute("role", "img");
    else this.#makeSlider();
    this.#view = new CanvasWaveform(container, this.#viewOptions());
    if (!options.light) this.#upgrade();
  }

  get time() {
    return this.player.time;
  }

  get duration() {
    return this.player.duration;
  }

  get playing() {
    return this.player.playing;
  }

  play(from, to) {
    return this.player.play(from, to);
  }

  pause() {
    this.player.pause();
  }

  toggle() {
    const fresh = !this.playing && this.time === 0;
    return fresh ? this.play(this.#options.start?.() ?? 0) : this.player.toggle();
  }

  seek(t) {
    this.player.seek(t);
  }

  /** The time in seconds at a horizontal position in the window. */
  timeAt(clientX) {
    const { left, width } = this.#view.box();
    return Math.min(Math.max((clientX - left) / width, 0), 1) * this.duration;
  }

  setPeaks(peaks) {
    this.#options.peaks = peaks;
    this.#view.setPeaks(peaks);
  }

  /** @param {Region[]} regions */
  setRegions(regions) {
    this.#options.regions = regions;
    this.#view.setRegions(regions);
  }

  zoom(pxPerSecond) {
    this.#view.zoom(pxPerSecond);
  }

  /** Shows or hides a spectrogram, for which the browser decodes the whole file. Needs wavesurfer. */
  spectrogram(wanted) {
    return this.#view.spectrogram?.(wanted);
  }

  destroy() {
    this.#gone = true;
    this.player.destroy();
    this.#view.destroy();
  }

  #viewOptions() {
    const { duration, peaks, regions, height, timeline, src } = this.#options;
    const onPick = (t, region) => {
      this.seek(t);
      this.#options.onSeek?.(t);
      if (region) this.#options.onRegion?.(region);
    };
    return { duration, peaks, regions, height, timeline, src, onPick, media: this.player.audio };
  }

  async #upgrade() {
    const parts = await wavesurfer().catch(() => null); // the canvas stays
    if (!parts || this.#gone) return;
    const canvas = this.#view;
    this.#view = new Surfer(this.#container, this.#viewOptions(), parts);
    canvas.destroy();
    this.#view.setTime(this.time);
  }

  #moved(t) {
    this.#view.setTime(t);
    if (!this.#options.light) this.#showTime(t);
    this.#options.onTime?.(t);
  }

  #makeSlider() {
    const node = this.#container;
    node.setAttribute("role", "slider");
    node.tabIndex = 0;
    node.setAttribute("aria-valuemin", "0");
    node.setAttribute("aria-valuemax", String(this.duration));
    this.#showTime(0);
    node.addEventListener("keydown", (event) => {
      if (this.#gone || event.ctrlKey || event.altKey || event.metaKey) return;
      const step = seekStep(this.duration) * (event.shiftKey ? 4 : 1);
      const to = { ArrowLeft: this.time - step, ArrowRight: this.time + step, Home: 0, End: this.duration }[event.key];
      if (to === undefined && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === " ") return this.toggle();
      this.seek(to);
      this.#options.onSeek?.(this.time);
    });
  }

  #showTime(t) {
    const text = `${clock(t)} of ${clock(this.duration)}`;
    if (this.#container.getAttribute("aria-valuetext") === text) return;
    this.#container.setAttribute("aria-valuenow", t.toFixed(2));
    this.#container.setAttribute("aria-valuetext", text);
  }
}

/** Seconds that an arrow key moves in a recording of this duration. */
export const seekStep = (duration) => Math.min(Math.max(duration / 20, 0.1), 5);

const RATE = 32_000; // Hz, for the spectrogram
const LABEL = 64; // minimum css pixels between labels
const INTERVALS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600]; // seconds

/** The wavesurfer view, attached to the Player's <audio>. */
class Surfer {
  #surfer;
  #regions;
  #options;
  #container;
  #timeline = null;
  #ruler = null; // {interval, plugin}
  #picture = null; // the spectrogram plugin

  constructor(container, options, { wavesurfer, regions, timeline }) {
    this.#options = options;
    this.#surfer = wavesurfer.create({
      cspNonce: document.querySelector("script[nonce]")?.nonce,
      container,
      media: options.media,
      height: options.height,
      peaks: channels(options.peaks),
      duration: options.duration,
      normalize: true,
      barWidth: 2,
      barGap: 1,
      barRadius: 1,
      barMinHeight: 1,
      cursorWidth: 2,
      ...this.#colours(),
      cspNonce: document.querySelector("script[nonce]")?.nonce,
    });
    this.#container = container;
    if (options.timeline) {
      this.#timeline = timeline;
      this.#rule(container.clientWidth / options.duration);
    }
    this.#regions = this.#surfer.registerPlugin(regions.create());
    this.#surfer.on("interaction", (t) => options.onPick(t, this.#at(t)));
    this.#surfer.on("decode", () => this.setRegions(this.#options.regions));
    this.recolour = () => this.#surfer.setOptions(this.#colours());
    scheme.addEventListener("change", this.recolour);
  }

  setTime(t) {
    if (this.#options.media.readyState < HTMLMediaElement.HAVE_METADATA) this.#surfer.setTime(t);
  }

  setPeaks(peaks) {
    this.#options.peaks = peaks;
    this.#load(channels(peaks));
  }

  #load(channels) {
    const { media, duration } = this.#options;
    return this.#surfer.load(media.currentSrc || media.src, channels, duration); // another URL would stop playback
  }

  setRegions(regions) {
    this.#options.regions = regions;
    this.#regions.clearRegions();
    const { region, selection } = colours();
    for (const { start, end, label, selected } of regions) {
      this.#regions.addRegion({ start, end, content: label, color: selected ? selection : region, drag: false, resize: false });
    }
  }

  /** Where the whole recording would be in the window. */
  box() {
    return this.#surfer.getWrapper().getBoundingClientRect();
  }

  zoom(pxPerSecond) {
    this.#surfer.zoom(pxPerSecond);
    if (this.#timeline) this.#rule(pxPerSecond || this.#container.clientWidth / this.#options.duration);
  }

  /** A time line with labels as far apart as they want; the plugin by itself is made for long recordings. */
  #rule(pxPerSecond) {
    const interval = INTERVALS.find((seconds) => seconds * pxPerSecond >= LABEL) ?? INTERVALS.at(-1);
    if (this.#ruler?.interval === interval) return;
    this.#ruler?.plugin.destroy();
    const plugin = this.#timeline.create({
      height: 18,
      timeInterval: interval / 5,
      primaryLabelInterval: interval,
      secondaryLabelInterval: interval,
      formatTimeCallback: (t) => (interval < 1 ? t.toFixed(interval < 0.1 ? 2 : 1) : formatTime(t)),
      style: { fontSize: "11px", color: colours().soft },
    });
    this.#ruler = { interval, plugin: this.#surfer.registerPlugin(plugin) };
  }

  destroy() {
    scheme.removeEventListener("change", this.recolour);
    this.#surfer.destroy();
  }

  #at(t) {
    return this.#options.regions.find(({ start, end }) => t >= start && t <= end);
  }

  #colours() {
    const { wave, played, accent } = colours();
    return { waveColor: wave, progressColor: played, cursorColor: accent };
  }

  /** The plugin needs samples, not peaks: they are decoded here and also drawn as the waveform. */
  async spectrogram(wanted) {
    this.#picture?.destroy();
    this.#picture = null;
    if (!wanted) return;
    const [plugin, url] = await Promise.all([import("./vendor/spectrogram.esm.js"), this.#options.src()]);
    const data = await (await fetch(url)).arrayBuffer();
    const audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(data);
    const colorMap = [...palette().spectrum].map((pixel) => [0, 8, 16].map((shift) => ((pixel >> shift) & 255) / 255).concat(1));
    const options = { height: 140, labels: false, frequencyMax: RATE / 2, scale: "mel", colorMap, gainDB: 20, rangeDB: 80 };
    this.#picture = this.#surfer.registerPlugin(plugin.default.create(options));
    await this.#load([audio.getChannelData(0)]);
  }
}

/** Peaks as wavesurfer takes them: upper and lower half, both positive. */
function channels(peaks) {
  if (!peaks?.length) return [[0, 0]];
  return [peaks.map(([, high]) => Math.max(high, 0)), peaks.map(([low]) => Math.max(-low, 0))];
}
