// Paints part of a recording: ruler, waveform, spectrogram, and the scores and events of a phrase. Each function paints
// into a box of a 2D context, so the screen and exported images use the same code.
//
// A span {from, to} is in seconds, a box {x, y, w, h} in the context's units. A pixel that covers several columns shows
// their maximum, so short sounds stay visible. An hour takes a few milliseconds.

/** @typedef {{from: number, to: number}} Span */
/** @typedef {{x: number, y: number, w: number, h: number}} Box */

const LIGHT = {
  ground: "#ffffff",
  empty: "#eceff3",
  ink: "#171c23",
  soft: "#55606e",
  wave: "#5d6876",
  event: "#9a3412",
  playhead: "#b4440c",
  heat: ["#f5f7f9", "#fdeee5", "#f8be8d", "#e2711d", "#8f330a"],
  spectrum: ["#ffffff", "#e3eaf2", "#9fb5cb", "#4f6f90", "#1a2c40"],
};
const DARK = {
  ground: "#171b21",
  empty: "#0f1216",
  ink: "#e8ecf1",
  soft: "#a0abb8",
  wave: "#8f9bab",
  event: "#ffd9bf",
  playhead: "#ff9a5c",
  heat: ["#1b2027", "#35221a", "#84431a", "#f0813c", "#ffe3cd"],
  spectrum: ["#12171f", "#1d3148", "#3d6488", "#8db6d3", "#f2f8fd"],
};

const FREQUENCIES = [250, 1000, 4000]; // Hz that are marked

const scheme = matchMedia("(prefers-color-scheme: dark)");
const palettes = new Map();

/** The page's current colours, or those of one scheme; `heat` and `spectrum` are 256 pixels each. */
export function palette(dark = scheme.matches) {
  if (!palettes.has(dark)) {
    const colours = dark ? DARK : LIGHT;
    palettes.set(dark, { ...colours, heat: ramp(colours.heat), spectrum: ramp(colours.spectrum) });
  }
  return palettes.get(dark);
}

/** Calls `fn` when the page's colours change. */
export function onScheme(fn) {
  scheme.addEventListener("change", fn);
}

/** Interpolates colours to 256 pixels, red in the lowest byte. */
function ramp(colours) {
  const stops = colours.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = stops[low].map((value, c) => Math.round(value + (place - low) * (stops[low + 1][c] - value)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

/** The marks of a ruler `pixels` wide: seconds and labels. @param {Span} span */
export function ticks({ from, to }, pixels) {
  const least = ((to - from) / Math.max(pixels, 1)) * 76;
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800].find((s) => s >= least) ?? 3600;
  const marks = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n++) {
    marks.push({ at: n * step, text: formatTime(n * step, step < 1 ? 1 : 0) });
  }
  return marks;
}

/** Formats seconds as "0:05" or "1:02:03", with three digits "0:05.200". */
export function formatTime(seconds, digits = 0) {
  const scale = 10 ** digits;
  const units = Math.round(seconds * scale);
  const whole = Math.floor(units / scale);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return `${h ? `${h}:${two(m)}` : m}:${two(s)}${digits ? `.${String(units % scale).padStart(digits, "0")}` : ""}`;
}

/** Paints the ruler, and faint lines down to `bottom`. @param {Box} box @param {Span} span */
export function paintRuler(context, box, span, colours, bottom) {
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.fillStyle = colours.soft;
  for (const { at, text } of ticks(span, box.w)) {
    const x = Math.round(box.x + ((at - span.from) / (span.to - span.from)) * box.w);
    const width = context.measureText(text).width;
    context.globalAlpha = 1;
    context.fillText(text, Math.min(Math.max(x - width / 2, box.x + 1), box.x + box.w - width - 1), box.y + box.h / 2);
    context.globalAlpha = 0.16;
    context.fillRect(x, box.y + box.h - 1, 1, bottom - box.y - box.h + 1);
  }
  context.globalAlpha = 1;
}

/** Paints the waveform, scaled to its loudest sample. @param {import("./recording.js").Recording} recording */
export function paintWave(context, box, span, recording, colours) {
  const { columns, peaks, step } = recording;
  const { first, stop, ofPixel, pixels, scale } = grid(context, box, span, step, columns);
  const middle = box.y + box.h / 2;
  const gain = (box.h / 2 - 1) / Math.max(recording.loudest, 330);
  context.fillStyle = colours.wave;
  context.fillRect(box.x, middle - 0.5, box.w * Math.min(1, (columns * step - span.from) / (span.to - span.from)), 1);
  context.beginPath();
  const lows = [];
  const add = (x, low, high) => {
    context.lineTo(x, middle - high * gain);
    lows.push([x, middle - low * gain]);
  };
  if ((stop - first) / pixels < 1) {
    for (let c = Math.max(0, first - 1); c < Math.min(columns, stop + 1); c++) {
      add(box.x + (((c + 0.5) * step - span.from) / (span.to - span.from)) * box.w, peaks[2 * c], peaks[2 * c + 1]);
    }
  } else {
    for (let x = 0; x < pixels; x++) {
      const [from, to] = [ofPixel(x), ofPixel(x + 1)];
      if (from >= columns) break;
      let low = 32767, high = -32768;
      for (let c = from; c < Math.min(to, columns); c++) {
        if (peaks[2 * c] < low) low = peaks[2 * c];
        if (peaks[2 * c + 1] > high) high = peaks[2 * c + 1];
      }
      if (low <= high) add(box.x + (x + 0.5) / scale, low, high);
    }
  }
  for (let i = lows.length - 1; i >= 0; i--) context.lineTo(...lows[i]);
  context.save();
  context.clip(rectangle(box));
  context.fill();
  context.restore();
}

/** Paints the spectrogram, with the contrast of all data received so far. @param {import("./recording.js").Recording} recording */
export function paintSpectrum(context, box, span, recording, colours) {
  const { levels, bands } = recording;
  const high = Math.max(recording.quantile(0.9995), 40);
  const low = Math.max(Math.min(recording.quantile(0.25), high - 50), high - 150); // between 25 and 75 dB
  const pixelOf = Uint32Array.from({ length: 256 }, (_, v) => {
    return colours.spectrum[Math.round(255 * Math.min(Math.max((v - low) / (high - low), 0), 1))];
  });
  paintColumns(context, box, span, recording.step, recording.columns, bands, true, (pixels, width, x, from, to) => {
    for (let band = 0, at = (bands - 1) * width + x; band < bands; band++, at -= width) {
      let level = levels[from * bands + band];
      for (let c = from + 1; c < to; c++) level = Math.max(level, levels[c * bands + band]);
      pixels[at] = pixelOf[level];
    }
  });
}

/** Paints the frequencies at the left of a spectrogram. @param {import("./recording.js").Recording} recording */
export function paintFrequencies(context, box, { frequencies, bands }, colours) {
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.strokeStyle = colours.ground;
  context.fillStyle = colours.soft;
  for (const hertz of FREQUENCIES) {
    const above = frequencies.findIndex((centre) => centre >= hertz);
    if (above < 1) continue; // beyond the bands
    const [low, high] = [frequencies[above - 1], frequencies[above]];
    const band = above - 1 + (hertz - low) / (high - low);
    const y = box.y + box.h * (1 - (band + 0.5) / bands);
    const text = hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`;
    context.strokeText(text, box.x + 8, y);
    context.fillText(text, box.x + 8, y);
    context.fillRect(box.x, Math.round(y), 5, 1);
  }
}

/** Paints the smoothed scores of a phrase as a heat strip. @param {Float32Array} scores */
export function paintHeat(context, box, span, scores, hop, colours) {
  paintColumns(context, box, span, hop, scores.length, 1, false, (pixels, width, x, from, to) => {
    let score = scores[from];
    for (let t = from + 1; t < to; t++) if (scores[t] > score) score = scores[t];
    pixels[x] = colours.heat[Math.round(score * 255)];
  });
}

/** Paints the events of one phrase, sorted by time, as boxes. @param {import("./events.js").Event[]} events */
export function paintEvents(context, box, span, events, colours) {
  context.fillStyle = context.strokeStyle = colours.event;
  context.lineWidth = 1.25;
  for (let i = firstAfter(events, span.from); i < events.length && events[i].onset < span.to; i++) {
    const { x, w } = across(box, span, events[i]);
    if (w > 5) context.strokeRect(x + 0.6, box.y + 0.6, w - 1.2, box.h - 1.2);
    else context.fillRect(x, box.y, w, box.h);
  }
}

/** The horizontal extent of an event in a box, at least three pixels. @param {Span} span */
export function across(box, span, { onset, offset }) {
  const scale = box.w / (span.to - span.from);
  const left = Math.max((onset - span.from) * scale, -4), right = Math.min((offset - span.from) * scale, box.w + 4);
  return { x: box.x + left, w: Math.max(right - left, 2.5) };
}

/** The index of the first event, of events sorted by time, that ends after `t`. */
export function firstAfter(events, t) {
  let low = 0, high = events.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (events[middle].offset <= t) low = middle + 1;
    else high = middle;
  }
  return low;
}

function rectangle({ x, y, w, h }) {
  const path = new Path2D();
  path.rect(x, y, w, h);
  return path;
}

// Maps columns of `step` seconds to device pixels of the box.
function grid(context, box, span, step, count) {
  const scale = context.getTransform().a;
  const pixels = Math.max(1, Math.round(box.w * scale));
  const perPixel = (span.to - span.from) / pixels / step;
  const ofPixel = (x) => Math.floor(span.from / step + x * perPixel + 1e-9);
  const first = Math.max(0, ofPixel(0));
  return { scale, pixels, ofPixel, first, stop: Math.max(first, Math.min(count, ofPixel(pixels) + 1)) };
}

const scratch = document.createElement("canvas");
let image = null;

function paintColumns(context, box, span, step, count, rows, smooth, paint) {
  const { pixels, ofPixel, first, stop } = grid(context, box, span, step, count);
  if (stop <= first) return;
  const fine = stop - first <= pixels; // a column is at least a pixel wide: draw it once and stretch it
  const width = fine ? stop - first : pixels;
  if (image?.width !== width || image?.height !== rows) {
    image = new ImageData(width, rows);
    scratch.width = width;
    scratch.height = rows;
  }
  const values = new Uint32Array(image.data.buffer);
  values.fill(0);
  for (let x = 0; x < width; x++) {
    const from = fine ? first + x : ofPixel(x);
    if (from >= count) break;
    paint(values, width, x, from, fine ? from + 1 : Math.min(count, Math.max(from + 1, ofPixel(x + 1))));
  }
  const brush = scratch.getContext("2d", { willReadFrequently: true });
  brush.putImageData(image, 0, 0);
  const scale = box.w / (span.to - span.from);
  const left = fine ? (first * step - span.from) * scale : 0;
  const right = fine ? (stop * step - span.from) * scale : box.w;
  context.save();
  context.clip(rectangle(box));
  context.imageSmoothingEnabled = smooth;
  context.drawImage(scratch, 0, 0, width, rows, box.x + left, box.y, right - left, box.h);
  context.restore();
}
