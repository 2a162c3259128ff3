// Plays a sound with an <audio> that is loaded on first use, from any position to any other. Only one player plays at a
// time.

import { playback } from "./playback.js";

let current = null; // the most recently started player

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

  /**
   * `fallback` is played where the browser cannot play `src`.
   * @param {{src: () => Promise<string>, fallback?: () => Promise<string>, duration: number, onTime?: (t: number) => void,
   *          onState?: (state: "playing" | "paused" | "failed", error?: Error) => void}} options
   */
  constructor({ src, fallback, duration, onTime = () => {}, onState = () => {} }) {
    this.#src = src;
    this.#fallback = fallback;
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
      await (this.#loading ??= this.#load());
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
    this.audio.volume = playback.volume;
    this.audio.loop = playback.loop && this.#until === null;
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
