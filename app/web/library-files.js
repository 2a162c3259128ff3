// Collects files that are chosen or dropped, including folders at any depth.

// Audio file names, those of app/cli/upload.py. Other files in folders are skipped and counted; single files are always
// sent, and the service decides.
const NAMES = `wav wave bwf rf64 w64 flac ogg oga ogx opus spx mp3 mp2 mp1 mpga m4a m4b m4r aac adts ac3 eac3 dts mlp thd
aif aiff aifc au snd caf voc svx 8svx nist sph sf ircam paf avr wma asf xwma wv ape tta tak mpc amr awb 3gp 3g2 3ga
dsf dff ra rm oma webm mka mkv mp4 m4v mov qt avi ts mts m2ts mpg mpeg vob flv f4v f4a wmv ogv mxf nut`;
const AUDIO = new RegExp(`\\.(${NAMES.split(/\s+/).join("|")})$`, "i");

/** @typedef {{file: File, path: string | null}} Found  `path`: relative to the chosen folder */

/**
 * The files of an <input type="file">, and the number of skipped files in its folder.
 * @returns {{found: Found[], others: number}}
 */
export function chosen(input) {
  const files = [...input.files];
  if (!input.webkitdirectory) return { found: files.map((file) => ({ file, path: null })), others: 0 };
  return sounds(files.map((file) => ({ file, path: inside(file.webkitRelativePath) })));
}

/**
 * The dropped files, and the number of skipped files in folders.
 * @param {DataTransfer} transfer
 * @returns {Promise<{found: Found[], others: number}>}
 */
export async function dropped(transfer) {
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => item.webkitGetAsEntry?.()); // must be read before the event ends
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
  const found = files.filter(({ path }) => AUDIO.test(path) && !path.split("/").some((part) => part.startsWith(".")));
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
