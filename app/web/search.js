// The Search tab: the query, stored in the URL, its request, and the result. The list of hits is in hits.js, filters in
// filters.js, a clip's details in clip.js.

import { call, download, get, json, Problem } from "./api.js";
import { mark } from "./clip.js";
import { $, announce, count, debounce, el } from "./dom.js";
import { chip, FilterForm, filterChips, including } from "./filters.js";
import { HitList } from "./hits.js";

const PAUSE = 80; // ms after the last keystroke
const STEP = 20; // hits per page
const MAX_HITS = 1000;
const IDEAS = ["dog barking", "rain on a roof", "glass breaking", "footsteps", "thunder", "a door slams"];

/**
 * The query. `like`: a clip's id; `example`: a file's name; `mode`: the API's three modes, or "moments".
 */
const DEFAULT_QUERY = { q: "", like: "", example: "", mode: "semantic", without: [], filter: {}, k: STEP };

function fromParams(params) {
  let filter = {};
  try {
    filter = JSON.parse(params.get("filter") ?? "{}");
  } catch {
    // a truncated URL: use the rest of it
  }
  const text = (name) => params.get(name) ?? DEFAULT_QUERY[name];
  return {
    ...{ q: text("q"), like: text("like"), example: text("example"), mode: text("mode") },
    without: params.getAll("without"),
    filter: filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {},
    k: Math.min(Math.max(Number(params.get("k")) || STEP, STEP), MAX_HITS),
  };
}

function toParams({ q, like, example, mode, without, filter, k }) {
  return {
    ...{ q, like, example, without },
    mode: mode === DEFAULT_QUERY.mode ? null : mode,
    filter: Object.keys(filter).length ? JSON.stringify(filter) : null,
    k: k === STEP ? null : k,
  };
}

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  let asked = null; // the query that the list shows or waits for
  let pending = new AbortController();
  let stale = false; // whether the library may have changed since the last request
  let failed = false; // whether an error is shown instead of results
  let settled = true; // whether the next query gets its own history entry, because the last one was used
  const files = new Map(); // name → File, for searches by example since the page was loaded
  const names = new Map(); // clip id → file name

  const hits = new HitList($("hits"), {
    open: ({ clip, moments }) => shell.openClip(clip, moments ?? []),
    similar: ({ clip }) => findSimilar(clip),
    download: ({ clip }) => download(clip).catch(showError),
    filter: (key, value) => change({ filter: including(asked.filter, key, value), like: "" }),
    leave: () => $("query").focus(),
    used: () => (settled = true),
    letters: shell.letters,
  });
  const form = new FilterForm((filter) => change({ filter }));

  /** Runs a changed query, starting at the first hit. */
  function change(changes, { replace = false } = {}) {
    const q = $("query").value.trim(); // includes input that is still debounced
    const next = { ...asked, q, k: STEP, ...changes };
    shell.setParams(toParams(next), { replace });
    settled ||= !replace;
    run(next);
  }

  const typed = debounce(() => {
    const q = $("query").value.trim();
    if (q === asked.q && !asked.like && !asked.example) return;
    change({ q, like: "", example: "" }, { replace: !settled });
    settled = false;
  }, PAUSE);

  function findSimilar(clip) {
    names.set(clip.id, clip.filename);
    change({ q: "", like: clip.id, example: "" });
    scrollTo({ top: 0 });
  }

  function useFile(file) {
    files.set(file.name, file);
    change({ q: "", like: "", example: file.name, mode: ["semantic", "hybrid"].includes(asked.mode) ? asked.mode : "semantic" });
  }

  /** Shows the query in the controls and runs it. */
  async function run(next) {
    asked = next;
    stale = failed = false;
    pending.abort();
    pending = new AbortController();
    const { signal } = pending;
    typed.cancel();
    showControls();
    panel.classList.add("busy");
    try {
      const answer = await ask(next, signal);
      if (signal.aborted) return;
      show(answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      hits.clear();
      showError(error);
      failed = true;
    }
    panel.classList.remove("busy");
  }

  async function ask({ q, like, example, mode, without, filter, k }, signal) {
    const some = Object.keys(filter).length ? filter : null;
    if (like) {
      const found = await get(`/clips/${encodeURIComponent(like)}/similar`, { k }, { signal });
      names.set(like, found.query);
      return found.hits;
    }
    if (example) {
      const file = files.get(example);
      if (!file) throw new Problem(0, { detail: `Choose ${example} again: reloading the page discards files.` });
      const body = new FormData();
      const fields = { file, k, moments: true, filter: some && JSON.stringify(some) };
      for (const [name, value] of Object.entries(fields)) if (value !== null) body.append(name, value);
      for (const text of without) body.append("without", text);
      return (await (await call("/search", { body, signal })).json()).hits;
    }
    if (!q) return (await get("/clips", { limit: k, filter: some && JSON.stringify(some) }, { signal })).clips.map((clip) => ({ clip }));
    if (mode !== "moments") {
      return (await json("/search", { body: { query: q, k, moments: true, mode, without, filter: some }, signal })).hits;
    }
    const sounds = q.split(">").map((sound) => sound.trim()).filter(Boolean);
    const what = sounds.length > 1 ? { sequence: sounds } : { query: sounds[0] ?? q };
    const found = await json("/search/moments", { body: { ...what, k, filter: some }, signal });
    return found.hits.map(({ clip, start, end, score, parts }) => ({ clip, score, moments: parts ?? [{ start, end, score }] }));
  }

  function show(found) {
    hits.show(found);
    for (const { clip } of found) names.set(clip.id, clip.filename);
    if (asked.like) nameQuery();
    const { q, like, example, mode } = asked;
    const searched = q || like || example;
    const noun = mode === "moments" && q ? "moment" : "sound";
    const order = !searched ? "newest first" : like ? "most similar first" : "best first";
    $("search-message").classList.remove("wrong");
    $("search-message").textContent = found.length ? `${count(found.length, noun)}, ${order}` : "";
    $("more").hidden = found.length < asked.k || asked.k >= MAX_HITS;
    showEmpty(!found.length, searched);
    announce(found.length ? `${count(found.length, noun)}${q ? ` for ${q}` : ""}` : "No results");
    const open = shell.params.get("open");
    const hit = open && found.find(({ clip }) => clip.id === open);
    if (hit?.moments) mark(open, hit.moments);
  }

  function showEmpty(empty, searched) {
    const filtered = Object.keys(asked.filter).length || asked.without.length;
    $("no-hits").hidden = !empty;
    if (!empty) return $("no-hits").replaceChildren();
    const button = (text, act) => el("button", { type: "button", text, onclick: act });
    if (filtered) {
      const all = button("Clear filters", () => change({ filter: {}, without: [] }));
      return $("no-hits").replaceChildren(el("h2", { text: "No sounds match the filters" }), all);
    }
    if (searched) {
      const hint = "No name, tag or metadata contains these words. A semantic search matches the sound itself.";
      const act = button("Use semantic search", () => change({ mode: "semantic" }));
      const lexical = asked.mode === "lexical" && shell.info?.clips;
      if (lexical) return $("no-hits").replaceChildren(el("h2", { text: "No results" }), el("p", { text: hint }), act);
    }
    if (asked.like) return $("no-hits").replaceChildren(el("h2", { text: "No other sounds in the library" }));
    const add = button("Add sounds", () => shell.show("library"));
    add.classList.add("primary");
    const text = "Add recordings to search them by their sound.";
    $("no-hits").replaceChildren(el("h2", { text: "The library is empty" }), el("p", { text }), add);
  }

  function showError(error) {
    const again = el("button", { type: "button", class: "ghost", text: "Try again", onclick: () => run(asked) });
    $("search-message").classList.add("wrong");
    $("search-message").replaceChildren(error.message, " ", again);
    $("more").hidden = $("no-hits").hidden = true;
    announce(error.message);
  }

  function showControls() {
    const { q, like, example, mode, without, filter } = asked;
    const by = like ? "like" : example ? "example" : "words";
    panel.dataset.by = by;
    if ($("query").value.trim() !== q) $("query").value = q;
    nameQuery();
    for (const radio of $("mode").querySelectorAll("input")) radio.checked = radio.value === mode;
    $("without-chips").replaceChildren(
      ...without.map((text) => chip(text, () => change({ without: asked.without.filter((each) => each !== text) }))),
    );
    $("without").placeholder = without.length ? "" : "music, speech …";
    form.show(filter);
    const ideas = !q && by === "words" && !Object.keys(filter).length;
    const suggestions = IDEAS.map((text) => el("button", { type: "button", class: "chip", text, onclick: () => change({ q: text }) }));
    $("filter-chips").replaceChildren(
      ...(by === "like" ? [] : filterChips(filter, (left) => change({ filter: left }))),
      ...(ideas ? suggestions : []),
    );
  }

  /** Shows the query's clip or file as a chip in the search field. */
  function nameQuery() {
    const { like, example } = asked;
    $("query-chip").hidden = !(like || example);
    const name = like ? `similar to ${names.get(like) ?? "a clip"}` : example;
    $("query-chip").replaceChildren(...(like || example ? [chip(name, () => change({ like: "", example: "" }))] : []));
    $("query").placeholder = like || example ? "" : "Describe a sound, or drop an audio file here";
  }

  $("query").addEventListener("input", typed);
  $("query").addEventListener("keydown", (event) => {
    const empty = !$("query").value;
    if (event.key === "ArrowDown" && hits.focus(0)) event.preventDefault();
    else if (event.key === "Backspace" && empty && (asked.like || asked.example)) change({ like: "", example: "" });
    else if (event.key === "Escape" && !empty) {
      event.preventDefault();
      $("query").value = "";
      typed();
      typed.now();
    }
  });
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    typed.now();
    settled = true;
  });
  $("mode").addEventListener("change", (event) => change({ mode: event.target.value }));
  $("without").addEventListener("keydown", (event) => {
    const text = $("without").value.trim();
    if (event.key === "Enter" || (event.key === "," && text)) {
      event.preventDefault();
      addExcluded(text);
    } else if (event.key === "Backspace" && !$("without").value && asked.without.length) {
      change({ without: asked.without.slice(0, -1) });
    }
  });
  $("without").addEventListener("blur", () => addExcluded($("without").value.trim()));
  $("more").addEventListener("click", () => change({ k: Math.min(asked.k + STEP, MAX_HITS) }, { replace: true }));
  $("example").addEventListener("change", () => {
    const [file] = $("example").files;
    if (file) useFile(file);
    $("example").value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    panel.addEventListener(name, (event) => {
      event.preventDefault();
      $("search-box").classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) useFile(event.dataTransfer.files[0]);
    });
  }
  let connected = false;
  document.addEventListener("finelap:info", () => {
    if (failed && !panel.hidden) run(asked); // the service was loading or unreachable
    stale = connected;
    connected = true;
  });
  function addExcluded(text) {
    $("without").value = "";
    if (text && !asked.without.includes(text)) change({ without: [...asked.without, text] });
  }

  return {
    shown(params) {
      const next = fromParams(params);
      if (asked && !stale && JSON.stringify(next) === JSON.stringify(asked)) return;
      settled = true;
      run(next);
    },
    hidden: () => hits.pause(),
  };
}
