// Exports the current view as a PNG with labels, axis and settings, painted by the same code as the screen.

import { named } from "./concept-names.js";
import { palette } from "./paint.js";

const EDGE = 20; // css pixels, all of these
const HEAD = 46;
const FOOT = 30;
const NAMES = 170;
const SCALE = 2; // image pixels per css pixel
const FONT = "system-ui, sans-serif";

/**
 * @param {import("./strips.js").Strips} strips  @param {string} title  @param {string} about  one line each
 * @returns {Promise<Blob>}
 */
export function picture(strips, title, about) {
  const colours = palette();
  const width = Math.max(strips.width, 640);
  const layout = strips.layout(false);
  const sheet = document.createElement("canvas");
  sheet.width = SCALE * (width + NAMES + 2 * EDGE);
  sheet.height = SCALE * (layout.height + HEAD + FOOT + 2 * EDGE);
  const context = sheet.getContext("2d");
  context.scale(SCALE, SCALE);
  context.fillStyle = colours.ground;
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.translate(EDGE, EDGE);
  context.textBaseline = "top";
  write(context, title, `600 16px ${FONT}`, colours.ink, 0, 0, width + NAMES);
  write(context, about, `12px ${FONT}`, colours.soft, 0, HEAD + layout.height + FOOT - 14, width + NAMES);
  context.translate(0, HEAD);
  context.textBaseline = "middle";
  const names = ["Waveform", "Spectrogram, to 8 kHz", ...strips.recording.phrases.map(named)];
  const middles = [layout.wave + 30, layout.spectrum + 52, ...layout.lanes.map((y) => y + 13)];
  names.forEach((name, i) => write(context, name, `13px ${FONT}`, colours.ink, 0, middles[i], NAMES - 14));
  context.translate(NAMES, 0);
  context.save();
  const frame = new Path2D();
  frame.rect(0, 0, width, layout.height);
  context.clip(frame);
  strips.paint(context, strips.span, width, colours, false);
  context.restore();
  return new Promise((resolve, reject) => {
    sheet.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The image is too large for this browser."))), "image/png");
  });
}

// Writes one line of text, truncated with an ellipsis.
function write(context, text, font, colour, x, y, room) {
  context.font = font;
  context.fillStyle = colour;
  let shown = text;
  while (shown.length > 1 && context.measureText(shown).width > room) shown = `${shown.slice(0, -2).trimEnd()}…`;
  context.fillText(shown, x, y);
}
