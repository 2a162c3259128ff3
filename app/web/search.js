// The Search tab: the query, stored in the URL, its request, and the result. The list of hits is in hits.js, filters in
// filters.js, matches in matches.js, examples in examples.js, a clip's details in clip.js.

import { download, get, json, Problem } from "./api.js";
import { mark } from "./clip.js";
import { Completion } from "./completion.js";
import { concepts, goesOn, isConcept, labelOf, named, noSuch, phraseOf, phrasesIn, unknownConcept } from "./concept-names.js";
import { $, announce, debounce, el, icon } from "./dom.js";
import { clipIdOf, nameOf, toApi, toggled } from "./examples.js";
import { chip, FilterForm, filterChips, including, MODES, narrowingChips } from "./filters.js";
import { HitList } from "./hits.js";
import { ask as askFor, Many, tell } from "./many.js";
import { clearNotes, heading, matchingFirst, showNotes } from "./matches.js";
import { forget, forgetRecent, recent, remember, save, saved, wordsOf } from "./searches.js";

const PAUSE = 80; // ms after the last keystroke
const STEP = 20; // hits per page
const MAX_HITS = 1000;
const OWN_IDEAS = 4; // concepts among the ideas
const IDEAS = ["dog barking", "rain on a roof", "glass breaking", "footsteps", "thunder", "a door slams"];

/**
 * The query. `like`: a clip's id, for similar sounds; `example`: a file's name, alone or with `q`; `more`, `less`:
 * results as examples, as in examples.js; `mode`: the API's three modes, or "moments"; `score`: the least one.
 */
const DEFAULT_QUERY = { q: "", like: "", example: "", mode: "hybrid", more: [], less: [], without: [], filter: {}, score: 0, k: STEP };

function fromParams(params) {
  let filter = {};
  try {
    filter = JSON.parse(params.get("filter") ?? "{}");
  } catch {
    // a truncated URL: use the rest of it
  }
  const text = (name) => params.get(name) ?? DEFAULT_QUERY[name];
  const mode = text("mode");
  const score = Number(params.get("score"));
  return {
    ...{ q: text("q"), like: text("like"), example: text("example"), mode: mode in MODES ? mode : DEFAULT_QUERY.mode },
    ...{ more: params.getAll("more"), less: params.getAll("less"), without: params.getAll("without") },
    filter: filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {},
    score: score > 0 && score < 1 ? score : 0,
    k: Math.min(Math.max(Number(params.get("k")) || STEP, STEP), MAX_HITS),
  };
}

function toParams({ q, like, example, mode, more, less, without, filter, score, k }) {
  return {
    ...{ q, like, example, more, less, without },
    mode: mode === DEFAULT_QUERY.mode ? null : mode,
    filter: Object.keys(filter).length ? JSON.stringify(filter) : null,
    score: score || null,
    k: k === STEP ? null : k,
  };
}

/** Whether moments of the whole library are searched, and not sounds: also if several are to follow each other. */
const wantsMoments = ({ q, like, example, mode }) => Boolean(q) && !like && !example && (mode === "moments" || q.includes(">"));

/** Whether the search takes examples: searches by words or a file do, unless they only compare words. */
const takesExamples = (query) =>
  Boolean(query.q || query.example) && !query.like && ["hybrid", "semantic"].includes(query.mode) && !wantsMoments(query);

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  let asked = null; // the query that the list shows or waits for
  let pending = new AbortController();
  let stale = false; // whether the library may have changed since the last request
  let failed = false; // whether an error is shown instead of results
  let settled = true; // whether the next query gets its own history entry, because the last one was used
  const files = new Map(); // name → File, for searches by example since the page was loaded
  const names = new Map(); // clip id → file name

  const many = new Many(shell, () => run(asked));
  const remove = (clips) => {
    shell.deletions.add(clips);
    hits.take(clips.map(({ id }) => id));
  };
  shell.deletions.listen({
    back: () => (panel.hidden ? (stale = true) : run(asked)),
    gone: () => {},
    failed: (clip, error) => panel.hidden || tell(`${clip.filename} was not deleted: ${error.message}`, true),
  });

  const hits = new HitList($("hits"), $("hits-select"), {
    many,
    remove,
    open: ({ clip, moments }) => shell.openClip(clip, moments ?? []),
    similar: ({ clip }) => findSimilar(clip),
    download: ({ clip }) => download(clip).catch(showError),
    teach: ({ clip, moments }, stretch) => teach(clip, stretch ?? moments?.[0]),
    example: (hit, which) => change(toggled(asked, which, hit)),
    filter: (key, value) => change({ filter: including(asked.filter, key, value), like: "" }),
    leave: () => $("query").focus(),
    used: () => {
      settled = true;
      if (asked.q) remember(location.search);
    },
    letters: shell.letters,
  });
  const form = new FilterForm((filter) => change({ filter }), change);

  /** Runs a changed query, starting at the first hit. */
  function change(changes, { replace = false } = {}) {
    const q = $("query").value.trim(); // includes input that is still debounced
    const next = { ...asked, q, k: STEP, ...changes };
    if (!next.q && !next.example) next.more = next.less = [];
    shell.setParams(toParams(next), { replace });
    settled ||= !replace;
    run(next);
  }

  const typed = debounce(() => {
    const q = $("query").value.trim();
    if (q === asked.q && !asked.like) return;
    change({ q, like: "", more: [], less: [] }, { replace: !settled });
    settled = false;
  }, PAUSE);

  function findSimilar(clip) {
    names.set(clip.id, clip.filename);
    change({ q: "", like: clip.id, example: "" });
    scrollTo({ top: 0 });
  }

  async function teach(clip, stretch) {
    const { start, end } = stretch ?? {};
    const concept = isConcept(asked.q) ? asked.q : undefined;
    const taught = await shell.teach({ clip, name: clip.filename, duration: clip.duration, start, end, concept });
    if (taught && usesConcepts()) run(asked); // with what it has learned
  }

  /** The sounds of the query, one after the other in a sequence. */
  const soundsOf = (query) => (wantsMoments(query) ? phrasesIn(query.q, />/) : [query.q]);

  const usesConcepts = () => [...soundsOf(asked), ...asked.without].some(isConcept);

  function useFile(file) {
    files.set(file.name, file);
    const mode = ["hybrid", "semantic"].includes(asked.mode) ? asked.mode : DEFAULT_QUERY.mode;
    change({ like: "", example: file.name, mode });
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
    nameExamples();
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

  /** @returns {Promise<import("./matches.js").Answer>} */
  async function ask(query, signal) {
    const { q, like, example, mode, more, less, without, filter, k } = query;
    const least = query.score || null;
    const unknown = like ? undefined : await unknownConcept(() => [...soundsOf(query), ...without]);
    if (unknown !== undefined) throw new Problem(404, { detail: noSuch(unknown) });
    const some = Object.keys(filter).length ? filter : null;
    if (like) {
      const answer = await get(`/clips/${encodeURIComponent(like)}/similar`, { k }, { signal });
      names.set(like, answer.query);
      return answer;
    }
    const examples = {};
    if (takesExamples(query) && more.length) examples.like = toApi(more);
    if (takesExamples(query) && less.length) examples.unlike = toApi(less);
    if (example) {
      const file = files.get(example);
      if (!file) throw new Problem(0, { detail: `Choose ${example} again: reloading the page discards files.` });
      const body = new FormData();
      const inJson = Object.entries({ filter: some, ...examples }).map(([name, value]) => [name, value && JSON.stringify(value)]);
      const fields = { file, query: q || null, k, moments: await shell.hasFrames(), mode, min_score: least, ...Object.fromEntries(inJson) };
      for (const [name, value] of Object.entries(fields)) if (value !== null) body.append(name, value);
      for (const text of without) body.append("without", text);
      return json("/search", { body, signal });
    }
    if (!q) {
      const { clips } = await get("/clips", { limit: k, filter: some && JSON.stringify(some) }, { signal });
      return { hits: clips.map((clip) => ({ clip })) };
    }
    if (!wantsMoments(query)) {
      const body = { query: q, k, moments: await shell.hasFrames(), mode, without, filter: some, min_score: least, ...examples };
      return json("/search", { body, signal });
    }
    const sounds = soundsOf(query);
    const what = sounds.length > 1 ? { sequence: sounds } : { query: sounds[0] ?? q };
    const found = await json("/search/moments", { body: { ...what, k, filter: some, min_score: least }, signal });
    const reasons = [{ kind: "moment", words: [] }];
    return { hits: found.hits.map(({ clip, start, end, score, parts }) => ({ clip, score, reasons, moments: parts ?? [{ start, end, score }] })) };
  }

  const isFiltered = () => Object.keys(asked.filter).length > 0 || asked.without.length > 0 || asked.score > 0;

  /** The hits in the order of the list, with the lists of examples that they are in. */
  function arranged(found) {
    const ordered = matchingFirst(found).filter(({ clip }) => !shell.deletions.has(clip.id));
    if (!takesExamples(asked)) return ordered;
    const [more, less] = [asked.more, asked.less].map((examples) => new Set(examples.map(clipIdOf)));
    return ordered.map((hit) => ({ ...hit, example: more.has(hit.clip.id) ? "more" : less.has(hit.clip.id) ? "less" : null }));
  }

  /** @param {import("./matches.js").Answer} answer */
  function show(answer) {
    const found = arranged(answer.hits);
    hits.show(found);
    for (const { clip } of found) names.set(clip.id, clip.filename);
    if (asked.like) nameQuery();
    const { q, like, example } = asked;
    const searched = q || like || example;
    const noun = wantsMoments(asked) ? "moment" : "sound";
    const order = !searched ? "newest first" : like ? "most similar first" : "best first";
    $("search-message").classList.remove("wrong");
    const total = searched || isFiltered() ? null : (shell.info?.clips ?? null);
    const summary = heading(answer, noun, order, total, found.length >= asked.k);
    $("search-message").textContent = summary;
    const hint = q ? `Try other words${isFiltered() ? " or fewer filters" : ""}.` : "";
    showNotes(answer, { q, hint, correct });
    $("more").hidden = found.length < asked.k || asked.k >= MAX_HITS;
    showEmpty(!found.length, searched);
    if (!found.length) announce("No results");
    else announce(answer.matches === 0 ? "" : `${summary}${q ? `, for ${q}` : ""}`); // the notes announce themselves
    const open = shell.params.get("open");
    const hit = open && found.find(({ clip }) => clip.id === open);
    if (hit?.moments) mark(open, hit.moments);
  }

  function correct(text) {
    change({ q: text });
    $("query").focus();
  }

  function showEmpty(empty, searched) {
    $("no-hits").hidden = !empty;
    if (!empty) return $("no-hits").replaceChildren();
    const button = (text, act) => el("button", { type: "button", text, onclick: act });
    if (isFiltered()) {
      const all = button("Clear filters", () => change({ filter: {}, without: [], score: 0 }));
      return $("no-hits").replaceChildren(el("h2", { text: "No sounds match the filters" }), all);
    }
    if (searched) {
      const hint = "No name, tag or metadata contains these words. A search by everything also listens to the sounds.";
      const act = button("Search by everything", () => change({ mode: "hybrid" }));
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
    const loading = error.status === 503; // not a failure: the search runs again when the service is ready
    $("search-message").classList.toggle("wrong", !loading);
    $("search-message").replaceChildren(error.message, " ", again);
    $("more").hidden = $("no-hits").hidden = true;
    clearNotes();
    announce(error.message);
  }

  function showControls() {
    const { q, like, example, mode, without, filter, score } = asked;
    const by = like ? "like" : example ? "example" : "words";
    panel.dataset.by = by;
    $("save-search").hidden = !q;
    panel.dataset.finds = wantsMoments(asked) ? "moments" : "sounds";
    if ($("query").value.trim() !== q) $("query").value = q;
    nameQuery();
    $("without-chips").replaceChildren(
      ...without.map((text) => chip(named(text), () => change({ without: asked.without.filter((each) => each !== text) }))),
    );
    $("without").placeholder = without.length ? "" : "music, speech …";
    form.show(filter, { mode, score });
    showChips();
  }

  /** A chip that repeats a search; with `remove` it can be forgotten. */
  function searchChip(name, search, title) {
    const again = () => {
      const next = fromParams(new URLSearchParams(search));
      $("query").value = next.q;
      change(next);
    };
    return el("button", { type: "button", class: "chip", title, onclick: again }, name);
  }

  /** Saved and recent searches, with buttons that forget them. */
  function kept() {
    const own = saved().map(({ name, search }) => {
      const drop = el("button", { type: "button", "aria-label": `Forget ${name}`, onclick: () => (forget(name), showChips()) }, icon("close"));
      const open = searchChip(name, search, "Saved search");
      open.classList.add("bare");
      return el("span", { class: "chip removable" }, icon("star"), open, drop);
    });
    const latest = recent().map((search) => searchChip(labelOf(wordsOf(search)), search, "Recent search"));
    if (!own.length && !latest.length) return [];
    const clear = el("button", { type: "button", class: "chip bare", text: "Clear recent", onclick: () => (forgetRecent(), showChips(), $("query").focus()) });
    return [...own, ...(latest.length ? [el("span", { class: "hint", text: "Recent" }), ...latest, clear] : []), el("span", { class: "break" }), el("span", { class: "hint", text: "Try" })];
  }

  /** Asks for a name and saves the current search. */
  function saveSearch() {
    const { search } = location;
    const field = el("input", { id: "many-search", required: true, maxlength: 100, autocomplete: "off", value: asked.q || asked.example });
    const body = [el("div", { class: "labelled" }, el("label", { for: "many-search", text: "Name" }), field)];
    askFor("Save this search", body, "Save", async () => {
      save(field.value.trim(), search);
      return "Saved in this browser; the empty search field shows it.";
    }, field);
    field.select();
  }
  $("save-search").addEventListener("click", saveSearch);

  /** The chips below the form: examples and filters, or suggestions before anything is asked. */
  function showChips() {
    const { q, like, example, filter } = asked;
    const ideas = !q && !like && !example && !Object.keys(filter).length;
    const own = ideas ? concepts().slice(0, OWN_IDEAS).map(phraseOf) : [];
    const suggestions = [...own, ...IDEAS].map((text) =>
      el("button", { type: "button", class: "chip", onclick: () => change({ q: text }) }, labelOf(text)),
    );
    const examples = (which) =>
      asked[which].map((each) =>
        chip(`${which} like ${nameOf(each, names.get(clipIdOf(each)))}`, () => {
          change({ [which]: asked[which].filter((other) => other !== each) });
          $("query").focus();
        }),
      );
    $("filter-chips").replaceChildren(
      ...(takesExamples(asked) ? [...examples("more"), ...examples("less")] : []),
      ...(like ? [] : filterChips(filter, (left) => change({ filter: left }))),
      ...(like ? [] : narrowingChips(asked, change)),
      ...(ideas ? [...kept(), ...suggestions] : []),
    );
  }

  /** Finds the names of examples that come from the URL. */
  async function nameExamples() {
    const unknown = [...asked.more, ...asked.less].map(clipIdOf).filter((id) => !names.has(id));
    const find = (id) => get(`/clips/${encodeURIComponent(id)}`).then(({ filename }) => names.set(id, filename));
    await Promise.allSettled(unknown.map(find)); // the search reports what fails
    if (unknown.length) showChips();
  }

  /** Shows the query's clip or file as a chip in the search field. */
  function nameQuery() {
    const { like, example } = asked;
    $("query-chip").hidden = !(like || example);
    const name = like ? `similar to ${names.get(like) ?? "a clip"}` : example;
    $("query-chip").replaceChildren(...(like || example ? [chip(name, () => change({ like: "", example: "" }))] : []));
    $("query").placeholder = like ? "" : example ? "Add words" : "Describe a sound, or drop an audio file here";
  }

  new Completion($("query"), { separator: />/ });
  new Completion($("without"), { byName: true, onTake: addExcluded });
  $("query").addEventListener("input", typed);
  $("query").addEventListener("keydown", (event) => {
    const empty = !$("query").value;
    if (event.key === "ArrowDown" && hits.focus(0)) event.preventDefault();
    else if (event.key === "Enter" && !event.defaultPrevented && !event.isComposing) {
      typed.now(); // a form of two fields has no submission by Enter
      settled = true;
      if (asked.q) remember(location.search);
    } else if (event.key === "Backspace" && empty && (asked.like || asked.example)) change({ like: "", example: "" });
    else if (event.key === "Escape" && !empty) {
      event.preventDefault();
      $("query").value = "";
      typed();
      typed.now();
    }
  });
  $("search-form").addEventListener("submit", (event) => event.preventDefault());
  $("without").addEventListener("keydown", (event) => {
    const text = $("without").value.trim();
    if (event.key === "Enter" || (event.key === "," && text && !goesOn(`${text},`))) {
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
  document.addEventListener("finelap:concepts", () => asked && showChips());
  document.addEventListener("finelap:edited", () => (stale ||= panel.hidden));
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
      if (asked && !stale && !usesConcepts() && JSON.stringify(next) === JSON.stringify(asked)) return hits.selection.show();
      settled = true;
      run(next);
    },
    hidden() {
      hits.pause();
      hits.selection.hide();
    },
  };
}
