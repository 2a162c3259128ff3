// Events as files for other programs, byte for byte what app/export/formats.py writes for the same events.

import { fixed } from "./events.js";

/**
 * @typedef {{filename: string, phrases: {phrase: string, events: import("./events.js").Event[]}[]}} Answer
 *   as POST /detect returns it, with rounded events (see events.js)
 */

const NYQUIST = 8000; // Hz: the upper limit of the model's input, and of a Raven selection
const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/; // a spreadsheet evaluates cells that start with these
// Python's whitespace; JavaScript's \s lacks 1c to 1f and 85, and includes feff
const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const RAVEN = [
  "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Annotation", "Score",
];

/** CSV with one row per event and DCASE column names. @param {Answer} answer */
export function toCsv(answer) {
  const rows = [["filename", "onset", "offset", "event_label", "score"]];
  for (const { phrase, onset, offset, score } of inTime(answer)) {
    rows.push([cell(answer.filename), fixed(onset, 3), fixed(offset, 3), cell(phrase), fixed(score, 4)]);
  }
  return rows.map((row) => row.map(quoted).join(",") + "\n").join("");
}

/** An Audacity label track. @param {Answer} answer */
export function toAudacity(answer) {
  return inTime(answer)
    .map(({ phrase, onset, offset }) => `${fixed(onset, 3)}\t${fixed(offset, 3)}\t${flat(phrase)}\n`)
    .join("");
}

/** A Raven selection table. @param {Answer} answer */
export function toRaven(answer) {
  const rows = inTime(answer).map(({ phrase, onset, offset, score }, i) => [
    i + 1, "Spectrogram 1", 1, fixed(onset, 3), fixed(offset, 3), 0, NYQUIST, flat(phrase), fixed(score, 4),
  ]);
  return [RAVEN, ...rows].map((row) => row.join("\t") + "\n").join("");
}

/** The name, content and media type of each export. */
export const TEXTS = {
  csv: { make: toCsv, name: (stem) => `${stem}.csv`, type: "text/csv" },
  audacity: { make: toAudacity, name: (stem) => `${stem}.labels.txt`, type: "text/plain" },
  raven: { make: toRaven, name: (stem) => `${stem}.selections.txt`, type: "text/plain" },
};

/** All events with their phrases, sorted by time. @param {Answer} answer */
export function inTime(answer) {
  const all = answer.phrases.flatMap(({ phrase, events }) => events.map((event) => ({ phrase, ...event })));
  return all.sort((a, b) => a.onset - b.onset || a.offset - b.offset); // ties keep the order of the phrases
}

/** Downloads a file. @param {Blob} blob */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may read it only after asking where to save
}

function cell(text) {
  return FORMULA.test(text) ? "'" + text : text;
}

function quoted(text) {
  return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function flat(text) {
  return text.split(SPACES).filter(Boolean).join(" ");
}
