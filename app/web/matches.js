// What a response says about its hits: how many clips match, that none does, that the query was corrected.
// `matches` and a hit's `match` are null or missing where the service makes no claim.

import { $, count, el } from "./dom.js";

const MAX_COUNT = 1000; // the service counts no further

/** @typedef {{hits: import("./hits.js").Hit[], matches?: number | null, did_you_mean?: string | null}} Answer */

/**
 * The heading of a result: "3 matches, best first", or "43 sounds, newest first" if nothing is claimed. `total`: how many
 * there are, or null if only those on the page are known; `more`: whether there may be more than those.
 */
export function heading({ hits, matches }, noun, order, total = null, more = false) {
  if (!hits.length) return "";
  if (matches === 0) return "Nearest sounds";
  if (typeof matches !== "number") {
    if (total !== null) return `${count(total, noun)}, ${order}`;
    return more ? `The first ${count(hits.length, noun)}, ${order}` : `${count(hits.length, noun)}, ${order}`;
  }
  const many = matches < MAX_COUNT ? matches.toLocaleString("en") : `${MAX_COUNT.toLocaleString("en")}+`;
  return `${many} ${matches === 1 ? "match" : "matches"}, ${order}`;
}

/** Hits that match, or of which nothing is said, before those that don't; otherwise in the same order. */
export const matchingFirst = (hits) => [...hits].sort((a, b) => (a.match === false) - (b.match === false));

/**
 * Shows what the heading cannot say. `hint`: what to try if nothing matches.
 * @param {Answer} answer
 * @param {{q: string, hint: string, correct: (text: string) => void}} query
 */
export function showNotes({ hits, matches, did_you_mean: corrected }, { q, hint, correct }) {
  const notes = [];
  if (corrected) {
    const button = el("button", { type: "button", text: "Correct the query", onclick: () => correct(corrected) });
    const text = `Showing results for “${corrected}” instead of “${q}”.`;
    notes.push(el("p", { class: "corrected row" }, el("span", { text }), button));
  }
  if (matches === 0 && hits.length) {
    const text = `The nearest sounds are shown below.${hint && ` ${hint}`}`;
    notes.push(el("div", { class: "no-match" }, el("h2", { text: "No close match" }), el("p", { text })));
  }
  $("notes").replaceChildren(...notes);
}

export const clearNotes = () => $("notes").replaceChildren();
