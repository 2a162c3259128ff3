// Events as files of other programs, byte for byte what app/formats.py writes of the same events.
// Knows events and phrases; not where they come from.

import { fixed } from "./events.js";

/**
 * @typedef {{filename: string, phrases: {phrase: string, events: import("./events.js").Event[]}[]}} Answer
 *   as POST /detect gives it: events told, see events.js
 */

const NYQUIST = 8000; // Hz: what the model hears, the height of a Raven selection
const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/; // a spreadsheet computes cells that begin so
// what Python takes for spaces; \s lacks the separators 1c to 1f and 85, and has feff
const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const RAVEN = [
  "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Annotation", "Score",
];

/** A row an event, with DCASE's column names. @param {Answer} answer */
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

/** What each export is called, how it is made, and its media type. */
export const TEXTS = {
  csv: { make: toCsv, name: (stem) => `${stem}.csv`, type: "text/csv" },
  audacity: { make: toAudacity, name: (stem) => `${stem}.labels.txt`, type: "text/plain" },
  raven: { make: toRaven, name: (stem) => `${stem}.selections.txt`, type: "text/plain" },
};

/** All events with their phrases, in order of time. @param {Answer} answer */
export function inTime(answer) {
  const all = answer.phrases.flatMap(({ phrase, events }) => events.map((event) => ({ phrase, ...event })));
  return all.sort((a, b) => a.onset - b.onset || a.offset - b.offset); // equal ones stay in the order of the phrases
}

/** Hands a file to the person at the page. @param {Blob} blob */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may read it only when it has asked where to
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
