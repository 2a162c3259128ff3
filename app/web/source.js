// What is listened to: a file of this computer, or a clip of the library. How long it is and whether this browser can
// play it is asked of an <audio> that reads no more than the file's head. Sends nothing but GET /clips/{id}.

import { get, soundUrl } from "./api.js";

export class Source {
  /** Seconds, null as long as nobody knows. @type {number | null} */
  duration = null;
  /** Whether this browser can play it; null as long as that is unknown. @type {boolean | null} */
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

  /** Where an <audio> finds it. @returns {Promise<string>} */
  async src() {
    return this.url ?? soundUrl(this.clip.id);
  }

  /** Puts it into the form of POST /detect. @param {FormData} form */
  into(form) {
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
