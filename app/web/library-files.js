// Files that a reader chooses or drops, folders of any depth included. Knows nothing of what becomes of them.

// Names by which sound is kept; in folders, files of other names are left out. The service itself reads what it can.
const SOUND = /\.(wave?|flac|og[ga]|opus|mp3|m4a|aac|aif[fc]?|au|snd|caf|w64|rf64|wma|webm|mk[av]|mp4|mov)$/i;

/** @typedef {{file: File, path: string | null}} Found  `path`: in the folder that was chosen, without its name */

/**
 * What an <input type="file"> has, and how many files of its folder are no sounds.
 * @returns {{found: Found[], others: number}}
 */
export function chosen(input) {
  const files = [...input.files];
  if (!input.webkitdirectory) return { found: files.map((file) => ({ file, path: null })), others: 0 };
  return sounds(files.map((file) => ({ file, path: inside(file.webkitRelativePath) })));
}

/**
 * What was dropped.
 * @param {DataTransfer} transfer
 * @returns {Promise<{found: Found[], others: number}>}
 */
export async function dropped(transfer) {
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => item.webkitGetAsEntry?.()); // before it ends
  if (!entries.some((entry) => entry?.isDirectory)) {
    return { found: [...transfer.files].map((file) => ({ file, path: null })), others: 0 };
  }
  const found = [];
  let others = 0;
  for (const entry of entries.filter(Boolean)) {
    if (entry.isFile) {
      found.push({ file: await fileOf(entry), path: null });
      continue;
    }
    const there = [];
    await walk(entry, there);
    const kept = sounds(there);
    found.push(...kept.found);
    others += kept.others;
  }
  return { found, others };
}

function sounds(files) {
  const found = files.filter(({ path }) => SOUND.test(path) && !path.split("/").some((part) => part.startsWith(".")));
  found.sort((a, b) => (a.path < b.path ? -1 : 1));
  return { found, others: files.length - found.length };
}

const inside = (path) => path.replace(/^\//, "").split("/").slice(1).join("/");
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function walk(folder, found) {
  const reader = folder.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return;
    for (const entry of some) {
      if (entry.isDirectory) await walk(entry, found);
      else found.push({ file: await fileOf(entry), path: inside(entry.fullPath) });
    }
  }
}
