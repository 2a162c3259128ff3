// The waveform and spectrogram of samples, in the units in which the service sends them (recording.js).

import { Recording } from "./recording.js";

const SIZE = 512; // samples per Fourier transform
const BANDS = 48;
const [LOWEST, HIGHEST] = [50, 7800]; // Hz
const mel = (hz) => 1127 * Math.log(1 + hz / 700);
const hertz = (m) => 700 * (Math.exp(m / 1127) - 1);

/**
 * @param {Float32Array} samples  @param {number} rate  Hz
 * @param {number} step  seconds per column
 * @returns {Recording}  for paintWave and paintSpectrum
 */
export function outlineOf(samples, rate, step) {
  const columns = Math.max(1, Math.ceil(samples.length / (step * rate)));
  const peaks = new Int16Array(2 * columns);
  const levels = new Uint8Array(BANDS * columns);
  const edges = Array.from({ length: BANDS + 1 }, (_, i) => {
    return (hertz(mel(LOWEST) + (i / BANDS) * (mel(HIGHEST) - mel(LOWEST))) * SIZE) / rate; // in bins
  });
  const [re, im] = [new Float64Array(SIZE), new Float64Array(SIZE)];
  for (let c = 0; c < columns; c++) {
    const [first, stop] = [Math.floor(c * step * rate), Math.min(samples.length, Math.ceil((c + 1) * step * rate))];
    let low = 0, high = 0;
    for (let i = first; i < stop; i++) {
      low = Math.min(low, samples[i]);
      high = Math.max(high, samples[i]);
    }
    peaks[2 * c] = Math.max(low, -1) * 32767;
    peaks[2 * c + 1] = Math.min(high, 1) * 32767;
    const middle = Math.round((first + stop) / 2 - SIZE / 2);
    for (let i = 0; i < SIZE; i++) {
      re[i] = (samples[middle + i] ?? 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
      im[i] = 0;
    }
    transform(re, im);
    for (let band = 0; band < BANDS; band++) levels[c * BANDS + band] = level(re, im, edges[band], edges[band + 1]);
  }
  const outline = new Recording();
  outline.step = step;
  outline.bands = BANDS;
  outline.add(columns, peaks, levels);
  return outline;
}

/** The loudest bin between two edges, in half decibels above -127.5 dB; 0 dB is a full-scale tone. */
function level(re, im, from, to) {
  let power = 1e-13;
  for (let k = Math.round(from); k <= Math.max(Math.round(from), Math.round(to) - 1); k++) {
    power = Math.max(power, re[k] * re[k] + im[k] * im[k]);
  }
  const decibels = 10 * Math.log10(power / (SIZE / 4) ** 2);
  return Math.min(Math.max(Math.round(2 * (decibels + 127.5)), 0), 255);
}

/** The Fourier transform in place; the length is a power of two. @param {Float64Array} re  @param {Float64Array} im */
export function transform(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let k = 0; k < size / 2; k++) {
      const [c, s] = [Math.cos((-2 * Math.PI * k) / size), Math.sin((-2 * Math.PI * k) / size)];
      for (let a = k, b = k + size / 2; a < n; a += size, b += size) {
        const [x, y] = [re[b] * c - im[b] * s, re[b] * s + im[b] * c];
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}
