// The level at which sounds of the library are played when they are matched by loudness (EBU R128).

import { get } from "./api.js";

const TARGET = -23; // LUFS
const CEILING = -1; // dBFS that no sample is raised above
const MOST = 1000; // sounds that are remembered

const levels = new Map(); // clip id → Promise<number>

/** The linear gain that brings a sound to the target, without clipping; 1 for silence and what cannot be measured. */
export function levelOf(clipId) {
  const level = levels.get(clipId) ?? get(`/clips/${encodeURIComponent(clipId)}/loudness`).then(gainFor);
  levels.set(clipId, level);
  if (levels.size > MOST) levels.delete(levels.keys().next().value);
  return level.catch(() => {
    levels.delete(clipId); // it may work the next time
    return 1;
  });
}

/** @param {{integrated: number | null, peak: number | null}} loudness  LUFS and dBFS; no peak: it may be anywhere */
export function gainFor({ integrated, peak }) {
  if (integrated === null) return 1;
  const most = peak === null ? 0 : Math.max(0, CEILING - peak);
  return 10 ** (Math.min(TARGET - integrated, most) / 20);
}
