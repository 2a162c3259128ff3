// The concepts that there are, for the fields that take them and to show phrases that are concepts by their names.

import { get } from "./api.js";
import { el, icon } from "./dom.js";

const PREFIX = "concept:";

let all = []; // as GET /concepts returns them
let loading = null;

/** The concepts as last loaded. */
export const concepts = () => all;

/** Whether a phrase is a concept, which there may not be. */
export const isConcept = (phrase) => phrase.startsWith(PREFIX);

/** The phrase that stands for a concept. */
export const phraseOf = ({ name }) => PREFIX + name;

/** The concept of a phrase, or undefined: a phrase has the name or the id. */
export function conceptOf(phrase) {
  const name = phrase.slice(PREFIX.length).trim().normalize("NFC");
  return isConcept(phrase) ? all.find((one) => one.name === name || one.id === name) : undefined;
}

/**
 * The phrases of a text, as they are typed. A separator within the name of a concept separates nothing.
 * @param {string} text  @param {RegExp} separator  one character
 */
export function splitPhrases(text, separator = /[,;\n]/) {
  const found = [];
  let rest = text;
  for (;;) {
    const from = Math.max(0, ...all.map((one) => lengthOf(one, rest, separator)));
    const at = rest.slice(from).search(separator);
    if (at < 0) return [...found, rest];
    found.push(rest.slice(0, from + at));
    rest = rest.slice(from + at + 1);
  }
}

/** The same without blanks around them, and without empty ones. */
export const phrasesIn = (text, separator) => splitPhrases(text, separator).map((phrase) => phrase.trim()).filter(Boolean);

/** The length of a concept at the beginning of a text, with the blanks before it; 0 if another phrase is there. */
function lengthOf(concept, text, separator) {
  const typed = text.trimStart();
  const phrase = phraseOf(concept);
  const after = typed.slice(phrase.length).trimStart();
  const whole = typed.startsWith(phrase) && (!after || after.search(separator) === 0);
  return whole ? text.length - typed.length + phrase.length : 0;
}

/** Whether a text is the beginning of a concept's phrase that goes on. */
export const goesOn = (text) => all.some((one) => phraseOf(one).length > text.length && phraseOf(one).startsWith(text));

/** A phrase as text: a concept by its name. */
export function named(phrase) {
  const name = conceptOf(phrase)?.name ?? phrase.slice(PREFIX.length).trim();
  return isConcept(phrase) ? `${name} (concept)` : phrase;
}

/** A phrase as a node: a concept by its name, with an icon. */
export function labelOf(phrase) {
  if (!isConcept(phrase)) return el("span", { text: phrase });
  const name = conceptOf(phrase)?.name ?? phrase.slice(PREFIX.length).trim();
  return el("span", { class: "of-concept", title: phrase }, icon("concept"), el("span", { class: "unseen", text: "concept " }), name);
}

/** Reloads the list; "finelap:concepts" tells everybody. Throws a Problem. */
export async function loadConcepts() {
  loading ??= get("/concepts").finally(() => (loading = null));
  ({ concepts: all } = await loading);
  document.dispatchEvent(new CustomEvent("finelap:concepts"));
  return all;
}

/**
 * The first of the phrases that names a concept that there isn't, after looking once more; undefined if there is none.
 * @param {() => string[]} phrases  as they are read with the concepts that are known
 */
export async function unknownConcept(phrases) {
  const missing = () => phrases().find((phrase) => isConcept(phrase) && !conceptOf(phrase));
  if (missing() !== undefined) await loadConcepts().catch(() => {});
  return missing();
}

/** What a page says of it. */
export const noSuch = (phrase) => `There is no concept “${phrase.slice(PREFIX.length).trim()}”.`;
