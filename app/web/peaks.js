// The outlines of clips for lists: fetched a few at a time, in the order asked for, and kept for the next list.
// The service decodes a clip when it is first asked for its outline, so a search must not wait behind twenty of them.

import { get } from "./api.js";

const AT_ONCE = 3;
const KEPT = 400;
const COLUMNS = 240;

const kept = new Map(); // clip → peaks, the latest last
let waiting = [];
let running = 0;

/**
 * The outline of a clip, [[lowest, highest], …]. Rejects with AbortError when `signal` says so.
 * @returns {Promise<[number, number][]>}
 */
export function peaksOf(clipId, signal) {
  const known = kept.get(clipId);
  if (known) return Promise.resolve(known);
  return new Promise((resolve, reject) => {
    waiting.push({ clipId, signal, resolve, reject });
    next();
  });
}

/** What is known of it already, or null. */
export const knownPeaks = (clipId) => kept.get(clipId) ?? null;

async function next() {
  waiting = waiting.filter(({ signal }) => !signal?.aborted);
  if (running >= AT_ONCE || !waiting.length) return;
  const { clipId, signal, resolve, reject } = waiting.shift();
  running += 1;
  try {
    const { peaks } = await get(`/clips/${encodeURIComponent(clipId)}/peaks`, { n: COLUMNS }, { signal });
    kept.set(clipId, peaks);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    resolve(peaks);
  } catch (error) {
    reject(error);
  } finally {
    running -= 1;
    next();
  }
}
