// The recording to analyse: a local file or a clip of the library. An <audio> that reads only the file's header finds its
// duration and whether this browser can play it.

import { get, previewUrl, soundUrl } from "./api.js";
import { levelOf } from "./levels.js";

export class Source {
  /** Seconds, or null if unknown. @type {number | null} */
  duration = null;
  /** Whether this browser can play it, or null if unknown. @type {boolean | null} */
  playable = null;

  constructor(name, file, clip) {
    this.name = name;
    this.file = file;
    this.clip = clip;
    this.url = file ? URL.createObjectURL(file) : null;
  }

  /** @param {File} file */
  static file(file) {
    const source = new Source(file.name, file, null);
    source.known = source._probe();
    return source;
  }

  /** A clip of the library, by its id. Throws a Problem. */
  static async clip(id) {
    const clip = await get(`/clips/${encodeURIComponent(id)}`);
    const source = new Source(clip.filename, null, clip);
    source.duration = clip.duration;
    source.known = Promise.resolve();
    return source;
  }

  /** The URL for an <audio>. @returns {Promise<string>} */
  async src() {
    return this.url ?? soundUrl(this.clip.id);
  }

  /** The URL of what to play where the browser cannot play `src`; undefined for a local file. */
  get fallback() {
    return this.clip ? () => previewUrl(this.clip.id) : undefined;
  }

  /** The gain with which loudness is matched; undefined for a local file. */
  get level() {
    return this.clip ? () => levelOf(this.clip.id) : undefined;
  }

  /** Adds the recording to the form of POST /detect. @param {FormData} form */
  appendTo(form) {
    if (this.file) form.append("file", this.file);
    else form.append("clip_id", this.clip.id);
  }

  close() {
    if (this.url) URL.revokeObjectURL(this.url);
  }

  _probe() {
    const audio = new Audio();
    audio.preload = "metadata";
    return new Promise((resolve) => {
      const done = (playable) => {
        this.playable = playable;
        if (playable && Number.isFinite(audio.duration)) this.duration = audio.duration;
        audio.onloadedmetadata = audio.onerror = null;
        audio.removeAttribute("src");
        resolve();
      };
      audio.onloadedmetadata = () => done(true);
      audio.onerror = () => done(false);
      audio.src = this.url;
    });
  }
}
