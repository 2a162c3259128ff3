// Results as examples: "more like this" and "less like this". In the URL an example is ID or ID@START-END, in seconds.

import { clock } from "./dom.js";

const LONG = 10; // s: of longer clips the best moment is the example, not the whole clip

/** @param {import("./hits.js").Hit} hit  @returns {string} */
export function exampleOf({ clip, moments }) {
  const best = moments?.[0];
  return best && clip.duration > LONG ? `${clip.id}@${best.start}-${best.end}` : clip.id;
}

/** The clip's id, and the stretch if it is one. */
function parse(example) {
  const [, id, start, end] = example.match(/^([^@]*)(?:@([\d.]+)-([\d.]+))?$/) ?? [null, example];
  return end === undefined ? { clip_id: id } : { clip_id: id, start: Number(start), end: Number(end) };
}

/** Examples as the API takes them. @param {string[]} examples */
export const toApi = (examples) => examples.map(parse);

export const clipIdOf = (example) => parse(example).clip_id;

/** "dog.wav", or "dog.wav, 1:02.0 – 1:03.5". @param {string | undefined} filename */
export function nameOf(example, filename) {
  const { start, end } = parse(example);
  return `${filename ?? "a clip"}${end === undefined ? "" : `, ${clock(start)} – ${clock(end)}`}`;
}

/**
 * Adds a hit to one of the two lists, or removes it if it is there; a clip is in at most one.
 * @param {{more: string[], less: string[]}} lists  @param {"more" | "less"} which
 */
export function toggled({ more, less }, which, hit) {
  const others = (list) => list.filter((example) => clipIdOf(example) !== hit.clip.id);
  const lists = { more: others(more), less: others(less) };
  const added = lists[which].length === { more, less }[which].length;
  if (added) lists[which].push(exampleOf(hit));
  return lists;
}
