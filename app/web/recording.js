// A recording as streamed by POST /detect (docs/reference/http-api.md, Detecting): scores, waveform peaks and spectrogram
// in typed arrays that grow as lines arrive.

import { Track } from "./events.js";

export class Recording {
  constructor() {
    this.filename = "";
    this.hop = 0; // seconds per frame
    this.phrases = /** @type {string[]} */ ([]);
    this.tracks = /** @type {Track[]} */ ([]);
    this.step = 0; // seconds per column of peaks and spectrogram; 0: nothing to draw
    this.bands = 0;
    this.frequencies = /** @type {number[]} */ ([]); // Hz, centre frequencies of the bands
    this.columns = 0;
    this.peaks = new Int16Array(0); // lowest and highest of each column, × 32,767
    this.levels = new Uint8Array(0); // `bands` of each column, lowest first; half decibels
    this.histogram = new Uint32Array(256); // of the levels
    this.loudest = 0; // absolute maximum of all peaks
    this.ended = false;
    this._duration = 0;
  }

  /** Seconds: the whole recording once it has ended, before that the analysed part. */
  get duration() {
    return this.ended ? this._duration : this.analysed;
  }

  /** Seconds analysed so far. */
  get analysed() {
    return this.tracks.length ? this.tracks[0].length * this.hop : 0;
  }

  /** Adds a line of the response; unknown types are ignored. */
  take(line) {
    if (line.type === "start") this._start(line);
    else if (line.type === "frames") this._frames(unpacked(line.scores));
    else if (line.type === "outline") this.add(line.columns, new Int16Array(unpacked(line.peaks).buffer), unpacked(line.spectrum));
    else if (line.type === "end") {
      this._duration = line.duration;
      this.ended = true;
    }
  }

  _start({ filename, frame_hop, phrases, outline }) {
    this.filename = filename;
    this.hop = frame_hop;
    this.phrases = phrases;
    this.tracks = phrases.map(() => new Track());
    this.step = outline?.step ?? 0;
    this.frequencies = outline?.frequencies ?? [];
    this.bands = this.frequencies.length;
  }

  _frames(bytes) {
    const scores = new Float32Array(bytes.buffer);
    const frames = scores.length / this.tracks.length;
    this.tracks.forEach((track, i) => track.push(scores.subarray(i * frames, (i + 1) * frames)));
  }

  /** Adds columns of waveform and spectrogram. @param {Int16Array} pairs  @param {Uint8Array} levels */
  add(columns, pairs, levels) {
    this.peaks = appended(this.peaks, 2 * this.columns, pairs);
    this.levels = appended(this.levels, this.bands * this.columns, levels);
    this.columns += columns;
    for (const level of levels) this.histogram[level]++;
    for (const sample of pairs) this.loudest = Math.max(this.loudest, Math.abs(sample));
  }

  /** The `q`-quantile of all levels. */
  quantile(q) {
    let left = q * this.bands * this.columns;
    return Math.max(0, this.histogram.findIndex((count) => (left -= count) < 0));
  }
}

// Decodes base64. Typed arrays use the machine's byte order, which is little-endian wherever browsers run.
function unpacked(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function appended(all, used, more) {
  if (used + more.length > all.length) {
    const larger = new all.constructor(Math.max(used + more.length, 2 * all.length));
    larger.set(all.subarray(0, used));
    all = larger;
  }
  all.set(more, used);
  return all;
}
