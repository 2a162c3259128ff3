// Plays a sound with an <audio> that is loaded on first use, from any position to any other. Only one player plays at a
// time.

import { playback } from "./playback.js";

const PATIENCE = 2000; // ms that a sound waits for its level

let current = null; // the most recently started player
let context = null; // AudioContext, made when a sound is first raised above its own level

document.addEventListener("finelap:playback", () => current?.adjust());

export class Player {
  #start = null; // where to start once the file is loaded
  #until = null; // where to stop, or with `loop` to begin again
  #from = 0; // where it begins again
  #loading = null;
  #frame = 0;
  #duration;
  #src;
  #fallback;
  #level;
  #gain = null; // of `level`, once it is known
  #boost = null; // GainNode

  /**
   * `fallback` is played where the browser cannot play `src`; `level` is the gain with which loudness is matched.
   * @param {{src: () => Promise<string>, fallback?: () => Promise<string>, level?: () => Promise<number>, duration: number,
   *          onTime?: (t: number) => void, onState?: (state: "playing" | "paused" | "failed", error?: Error) => void}} options
   */
  constructor({ src, fallback, level, duration, onTime = () => {}, onState = () => {} }) {
    this.#src = src;
    this.#fallback = fallback;
    this.#level = level;
    this.#duration = duration;
    this.onTime = onTime;
    this.onState = onState;
    this.audio = new Audio();
    this.audio.preload = "none";
    this.audio.addEventListener("play", () => {
      this.onState("playing");
      this.#follow();
    });
    this.audio.addEventListener("pause", () => this.#stopped());
    this.audio.addEventListener("ended", () => this.#stopped());
    this.audio.addEventListener("seeked", () => this.onTime(this.time));
  }

  /** The position in seconds, or where playback will start. */
  get time() {
    return this.#start ?? this.audio.currentTime;
  }

  get duration() {
    return this.#duration;
  }

  /** Sets the duration once it is known. */
  setDuration(seconds) {
    this.#duration = seconds;
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  /** Plays from `from` or the current position to `to` or the end. Failures are passed to `onState`. */
  async play(from, to) {
    if (current !== this) current?.pause();
    current = this;
    if (from !== undefined && from !== null) this.seek(from);
    else if (this.time >= this.#duration - 0.02) this.seek(0);
    this.#until = to ?? null;
    this.#from = to === undefined || to === null ? 0 : (from ?? 0);
    this.adjust();
    try {
      await Promise.all([(this.#loading ??= this.#load()), this.#match()]);
      if (current === this) await this.audio.play();
    } catch (error) {
      if (error.name === "AbortError") return; // paused before it started
      this.#loading = null;
      if (current === this) current = null;
      this.onState("failed", error);
    }
  }

  /** Applies the settings of playback. */
  adjust() {
    const gain = playback.volume * (playback.levels ? (this.#gain ?? 1) : 1);
    this.audio.volume = Math.min(gain, 1);
    if (gain > 1 || this.#boost) this.#raise(Math.max(gain, 1));
    this.audio.loop = playback.loop && this.#until === null;
    if (playback.levels && this.playing) this.#match();
  }

  /** Finds the level and applies it, if levels are matched. */
  async #match() {
    if (!playback.levels || !this.#level || this.#gain !== null) return;
    const late = new Promise((resolve) => setTimeout(resolve, PATIENCE));
    const found = this.#level().then((gain) => {
      this.#gain = gain;
      this.adjust();
    });
    await Promise.race([found, late]);
  }

  /** An <audio> alone can only lower a level. */
  #raise(gain) {
    if (!this.#boost) {
      context ??= new AudioContext();
      this.#boost = context.createGain();
      context.createMediaElementSource(this.audio).connect(this.#boost).connect(context.destination);
    }
    context.resume();
    this.#boost.gain.value = gain;
  }

  pause() {
    if (current === this) current = null;
    this.audio.pause();
  }

  toggle() {
    if (this.playing) this.pause();
    else return this.play();
  }

  /** Moves to a position and clears the end of a limited playback. */
  seek(t) {
    this.#until = null;
    const target = Math.min(Math.max(t, 0), this.#duration);
    if (this.audio.readyState >= HTMLMediaElement.HAVE_METADATA) this.audio.currentTime = target;
    else this.#start = target;
    this.onTime(target);
  }

  destroy() {
    this.pause();
    cancelAnimationFrame(this.#frame);
    this.#boost?.disconnect();
    this.onTime = this.onState = () => {};
    this.audio.removeAttribute("src");
    this.audio.load();
  }

  async #load() {
    const src = await this.#src();
    try {
      await this.#open(src);
    } catch (error) {
      if (!this.#fallback) throw error;
      await this.#open(await this.#fallback());
    }
    if (this.#start !== null) this.audio.currentTime = this.#start;
    this.#start = null;
  }

  #open(url) {
    this.audio.src = url;
    return new Promise((resolve, reject) => {
      const settled = new AbortController();
      const settle = (done) => () => {
        settled.abort();
        done();
      };
      const failed = () => reject(new Error("This browser cannot play this file."));
      this.audio.addEventListener("loadedmetadata", settle(resolve), { signal: settled.signal });
      this.audio.addEventListener("error", settle(failed), { signal: settled.signal });
      this.audio.load();
    });
  }

  #follow() {
    cancelAnimationFrame(this.#frame);
    const step = () => {
      if (this.#until !== null && this.audio.currentTime >= this.#until) {
        if (!playback.loop) return this.pause();
        this.audio.currentTime = this.#from;
      }
      this.onTime(this.time);
      if (this.playing) this.#frame = requestAnimationFrame(step);
    };
    this.#frame = requestAnimationFrame(step);
  }

  #stopped() {
    cancelAnimationFrame(this.#frame);
    this.onTime(this.time);
    this.onState("paused");
  }
}
