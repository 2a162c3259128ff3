// Turns frame scores into events exactly as model/detection.py does with method "threshold", so that a slider can change
// the settings without scoring the recording again.
//
// Frame t covers [t, t + 1) × hop seconds. Scores are 32-bit floats and compared as such.

/**
 * @typedef {{threshold: number, lowThreshold: ?number, medianFilter: number, minDuration: number, maxGap: number}} Settings
 *   lowThreshold null: an event ends at shares of its highest score; durations in seconds
 * @typedef {{onset: number, offset: number, score: number}} Event  seconds
 */

/** @type {Readonly<Settings>} The service's defaults. */
export const DEFAULTS = Object.freeze({
  threshold: 0.5,
  lowThreshold: null,
  medianFilter: 0.48,
  minDuration: 0,
  maxGap: 0.2,
});

export const MAX_MEDIAN_FILTER = 60; // seconds

const EPS = 1e-6; // seconds; absorbs rounding when frame × hop is compared with seconds of the settings
const LOW_SHARE = 0.4; // of the threshold
const END_SHARE = Math.fround(0.35); // of an event's highest score so far
const EDGE_SHARE = Math.fround(0.65);

/** The odd number of frames nearest to `seconds`, ties up; 1 means no smoothing. */
export function medianFrames(seconds, hop) {
  return 2 * Math.floor((seconds / hop + EPS) / 2) + 1;
}

/** The number of frames that start before the end of a recording, at least 1. */
export function framesWithin(duration, hop) {
  return Math.max(1, Math.ceil((duration - EPS) / hop));
}

/** The scores of one phrase, received in parts, and their smoothed form, which is updated incrementally. */
export class Track {
  constructor() {
    this._scores = new Float32Array(1024);
    this._smooth = new Float32Array(1024);
    this._count = 0;
    this._kernel = 0; // the median length, in frames, that `_smooth` was computed with
    this._done = 0; // number of valid frames in `_smooth`, computed as if the track ended there
    this.highest = 0;
  }

  /** Number of frames received. */
  get length() {
    return this._count;
  }

  /** All scores received: a view that is valid until the next `push`. */
  get scores() {
    return this._scores.subarray(0, this._count);
  }

  /** The scores as last smoothed by `events`: a view that is valid until the next `push`. */
  get smoothed() {
    return this._smooth.subarray(0, this._done);
  }

  /** Appends scores. @param {Float32Array} part */
  push(part) {
    const needed = this._count + part.length;
    if (needed > this._scores.length) {
      this._scores = grown(this._scores, needed);
      this._smooth = grown(this._smooth, needed);
    }
    this._scores.set(part, this._count);
    this._count = needed;
    for (const score of part) if (score > this.highest) this.highest = score;
  }

  /**
   * The events sorted by time, as if the recording ended after `duration` seconds.
   * @param {Settings} settings @returns {Event[]}
   */
  events(settings, hop, duration) {
    const count = Math.min(this._count, framesWithin(duration, hop));
    this._smoothTo(count, medianFrames(settings.medianFilter, hop));
    return cutEvents(this._smooth, count, settings, hop, duration);
  }

  _smoothTo(count, kernel) {
    const half = (kernel - 1) / 2;
    const from = kernel === this._kernel ? Math.max(0, Math.min(count, this._done) - half) : 0;
    medians(this._scores, count, kernel, from, this._smooth);
    this._kernel = kernel;
    this._done = count;
  }
}

/** The events in all scores of one phrase, sorted by time, as `find_events` returns them. @param {Float32Array} scores @returns {Event[]} */
export function findEvents(scores, settings, hop, duration) {
  const track = new Track();
  track.push(scores);
  return track.events(settings, hop, duration);
}

function grown(values, needed) {
  const larger = new Float32Array(Math.max(needed, 2 * values.length));
  larger.set(values);
  return larger;
}

// Writes the sliding median of scores[0 … count) to out[from … count). Both ends are padded by reflection, repeating the
// edge frame.
function medians(scores, count, kernel, from, out) {
  if (kernel === 1) {
    out.set(scores.subarray(from, count), from);
    return;
  }
  const half = (kernel - 1) / 2;
  const period = 2 * count;
  const at = (i) => {
    if (i >= 0 && i < count) return scores[i];
    const inside = ((i % period) + period) % period;
    return scores[inside < count ? inside : period - 1 - inside];
  };
  if (kernel === 3) {
    for (let t = from; t < count; t++) {
      const a = at(t - 1), b = scores[t], c = at(t + 1);
      out[t] = Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
    }
    return;
  }
  if (from >= count) return;
  const sorted = new Float32Array(kernel); // the window, sorted
  for (let k = 0; k < kernel; k++) sorted[k] = at(from - half + k);
  sorted.sort();
  out[from] = sorted[half];
  for (let t = from + 1; t < count; t++) {
    replace(sorted, at(t - half - 1), at(t + half));
    out[t] = sorted[half];
  }
}

// Replaces one value of a sorted array by another.
function replace(sorted, removed, added) {
  let hole = place(sorted, removed);
  const last = sorted.length - 1;
  while (hole < last && sorted[hole + 1] < added) sorted[hole] = sorted[++hole];
  while (hole > 0 && sorted[hole - 1] > added) sorted[hole] = sorted[--hole];
  sorted[hole] = added;
}

// The index of the first value that is not below `value`.
function place(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Finds runs at or above the lower threshold in which a frame reaches the upper one, joins close ones, drops short ones.
function cutEvents(smooth, count, settings, hop, duration) {
  const threshold = Math.fround(settings.threshold);
  const relative = (settings.lowThreshold ?? null) === null; // an event ends by its own highest score
  const lowest = Math.fround(settings.lowThreshold ?? LOW_SHARE * settings.threshold);
  const gap = (settings.maxGap + EPS) / hop; // frames
  const events = [];
  let first = 0, stop = -1, peak = 0; // the event that may still grow; none if stop < 0
  const emit = () => {
    const onset = first * hop;
    const offset = Math.min(stop * hop, duration);
    if (stop >= 0 && offset - onset >= settings.minDuration - EPS) events.push({ onset, offset, score: peak });
  };
  for (let t = 0; t < count; t++) {
    if (smooth[t] < lowest) continue;
    let begin = t;
    let highest = smooth[t];
    while (++t < count && smooth[t] >= lowest) {
      if (relative && smooth[t] < Math.fround(END_SHARE * highest)) break;
      if (smooth[t] > highest) highest = smooth[t];
    }
    let end = t--; // the frame that ended the run may begin the next one
    if (highest < threshold) continue;
    if (relative) {
      const edge = Math.fround(EDGE_SHARE * highest);
      while (smooth[begin] < edge) begin++;
      while (smooth[end - 1] < edge) end--;
    }
    if (stop >= 0 && begin - stop <= gap) {
      peak = Math.max(peak, highest);
    } else {
      emit();
      first = begin;
      peak = highest;
    }
    stop = end;
  }
  emit();
  return events;
}

/**
 * Formats a non-negative number as Python does, rounding exact halves to even. JavaScript's toFixed differs only in that
 * it rounds exact halves up.
 */
export function fixed(value, decimals) {
  const halves = value * 2 ** (decimals + 1);
  if (!Number.isInteger(halves) || halves % 2 === 0) return value.toFixed(decimals);
  const below = Math.floor(value * 10 ** decimals);
  return ((below % 2 === 0 ? below : below + 1) / 10 ** decimals).toFixed(decimals);
}

/** An event rounded as the service reports it: milliseconds, and six decimals of the score. @param {Event} event @returns {Event} */
export function rounded({ onset, offset, score }) {
  return { onset: Number(fixed(onset, 3)), offset: Number(fixed(offset, 3)), score: Number(fixed(score, 6)) };
}
