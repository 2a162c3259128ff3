// Fetches the waveform peaks of clips for lists, a few at a time in order of request, and caches them. The service decodes
// a clip on the first request, so too many at once would delay searches.

import { get } from "./api.js";

const PARALLEL = 3;
const MAX_CACHED = 400;
const COLUMNS = 240;

const cache = new Map(); // clip id → peaks, most recent last
let waiting = [];
let running = 0;

/**
 * The peaks of a clip, [[lowest, highest], …]. Rejects with AbortError when `signal` aborts.
 * @returns {Promise<[number, number][]>}
 */
export function peaksOf(clipId, signal) {
  const known = cache.get(clipId);
  if (known) return Promise.resolve(known);
  return new Promise((resolve, reject) => {
    waiting.push({ clipId, signal, resolve, reject });
    next();
  });
}

/** The cached peaks of a clip, or null. */
export const cachedPeaks = (clipId) => cache.get(clipId) ?? null;

async function next() {
  waiting = waiting.filter(({ signal }) => !signal?.aborted);
  if (running >= PARALLEL || !waiting.length) return;
  const { clipId, signal, resolve, reject } = waiting.shift();
  running += 1;
  try {
    const { peaks } = await get(`/clips/${encodeURIComponent(clipId)}/peaks`, { n: COLUMNS }, { signal });
    cache.set(clipId, peaks);
    if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value);
    resolve(peaks);
  } catch (error) {
    reject(error);
  } finally {
    running -= 1;
    next();
  }
}
