// Recent and saved searches, in the browser's own storage. A search is its URL parameters.

const KEY = "finelap-searches"; // localStorage: {recent: string[], saved: {name, search}[]}
const RECENT = 5;
const SAVED = 50;

function read() {
  try {
    const { recent = [], saved = [] } = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return { recent, saved };
  } catch {
    return { recent: [], saved: [] }; // not ours, or the browser keeps nothing
  }
}

function write(searches) {
  try {
    localStorage.setItem(KEY, JSON.stringify(searches));
  } catch {
    // the browser keeps nothing: there are no recent searches then
  }
}

/** What a search asks for in words. @param {string} search */
export const wordsOf = (search) => new URLSearchParams(search).get("q") ?? "";

/** Recent searches, the newest first. */
export const recent = () => read().recent;

/** Saved searches, the newest first. @returns {{name: string, search: string}[]} */
export const saved = () => read().saved;

/** Remembers a search by words. @param {string} search */
export function remember(search) {
  const words = wordsOf(search);
  if (!words) return;
  const searches = read();
  const others = searches.recent.filter((other) => wordsOf(other) !== words);
  write({ ...searches, recent: [search, ...others].slice(0, RECENT) });
}

/** Saves a search under a name; another one of that name goes. */
export function save(name, search) {
  const searches = read();
  const others = searches.saved.filter((one) => one.name !== name);
  write({ ...searches, saved: [{ name, search }, ...others].slice(0, SAVED) });
}

/** Forgets a saved search. */
export function forget(name) {
  const searches = read();
  write({ ...searches, saved: searches.saved.filter((one) => one.name !== name) });
}

/** Forgets the recent searches. */
export const forgetRecent = () => write({ ...read(), recent: [] });
