// The Search tab: the query, stored in the URL, its request, and the result. The list of hits is in hits.js, filters in
// filters.js, matches in matches.js, examples in examples.js, a clip's details in clip.js.

import { call, download, get, json, Problem } from "./api.js";
import { mark } from "./clip.js";
import { Completion } from "./completion.js";
import { concepts, goesOn, isConcept, labelOf, named, noSuch, phraseOf, splitPhrases, unknownConcept } from "./concept-names.js";
import { $, announce, debounce, el } from "./dom.js";
import { clipIdOf, nameOf, toApi, toggled } from "./examples.js";
import { chip, FilterForm, filterChips, including } from "./filters.js";
import { HitList } from "./hits.js";
import { clearNotes, heading, matchingFirst, showNotes } from "./matches.js";

const PAUSE = 80; // ms after the last keystroke
const STEP = 20; // hits per page
const MAX_HITS = 1000;
const OWN_IDEAS = 4; // concepts among the ideas
const IDEAS = ["dog barking", "rain on a roof", "glass breaking", "footsteps", "thunder", "a door slams"];

/**
 * The query. `like`: a clip's id, for similar sounds; `example`: a file's name, alone or with `q`; `more`, `less`:
 * results as examples, as in examples.js; `mode`: the API's three modes, or "moments".
 */
const DEFAULT_QUERY = { q: "", like: "", example: "", mode: "hybrid", more: [], less: [], without: [], filter: {}, k: STEP };

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
    ...{ more: params.getAll("more"), less: params.getAll("less"), without: params.getAll("without") },
    filter: filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {},
    k: Math.min(Math.max(Number(params.get("k")) || STEP, STEP), MAX_HITS),
  };
}

function toParams({ q, like, example, mode, more, less, without, filter, k }) {
  return {
    ...{ q, like, example, more, less, without },
    mode: mode === DEFAULT_QUERY.mode ? null : mode,
    filter: Object.keys(filter).length ? JSON.stringify(filter) : null,
    k: k === STEP ? null : k,
  };
}

/** Whether the search takes examples: searches by words or a file do, unless they only compare words. */
const takesExamples = ({ q, like, example, mode }) => Boolean(q || example) && !like && ["hybrid", "semantic"].includes(mode);

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
    teach: ({ clip, moments }, stretch) => teach(clip, stretch ?? moments?.[0]),
    example: (hit, which) => change(toggled(asked, which, hit)),
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
  const soundsOf = ({ q, mode }) => (mode === "moments" ? splitPhrases(q, />/).map((sound) => sound.trim()).filter(Boolean) : [q]);

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
      const fields = { file, query: q || null, k, moments: await shell.hasFrames(), mode, ...Object.fromEntries(inJson) };
      for (const [name, value] of Object.entries(fields)) if (value !== null) body.append(name, value);
      for (const text of without) body.append("without", text);
      return json("/search", { body, signal });
    }
    if (!q) {
      const { clips } = await get("/clips", { limit: k, filter: some && JSON.stringify(some) }, { signal });
      return { hits: clips.map((clip) => ({ clip })) };
    }
    if (mode !== "moments") {
      const body = { query: q, k, moments: await shell.hasFrames(), mode, without, filter: some, ...examples };
      return json("/search", { body, signal });
    }
    const sounds = soundsOf(query);
    const what = sounds.length > 1 ? { sequence: sounds } : { query: sounds[0] ?? q };
    const found = await json("/search/moments", { body: { ...what, k, filter: some }, signal });
    return { hits: found.hits.map(({ clip, start, end, score, parts }) => ({ clip, score, moments: parts ?? [{ start, end, score }] })) };
  }

  const isFiltered = () => Object.keys(asked.filter).length > 0 || asked.without.length > 0;

  /** The hits in the order of the list, with the lists of examples that they are in. */
  function arranged(found) {
    const ordered = matchingFirst(found);
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
    const { q, like, example, mode } = asked;
    const searched = q || like || example;
    const noun = mode === "moments" && q ? "moment" : "sound";
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
      const all = button("Clear filters", () => change({ filter: {}, without: [] }));
      return $("no-hits").replaceChildren(el("h2", { text: "No sounds match the filters" }), all);
    }
    if (searched) {
      const hint = "No name, tag or metadata contains these words. A hybrid search matches the sound itself too.";
      const act = button("Use hybrid search", () => change({ mode: "hybrid" }));
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
    const { q, like, example, mode, without, filter } = asked;
    const by = like ? "like" : example ? "example" : "words";
    panel.dataset.by = by;
    if ($("query").value.trim() !== q) $("query").value = q;
    nameQuery();
    for (const radio of $("mode").querySelectorAll("input")) radio.checked = radio.value === mode;
    $("without-chips").replaceChildren(
      ...without.map((text) => chip(named(text), () => change({ without: asked.without.filter((each) => each !== text) }))),
    );
    $("without").placeholder = without.length ? "" : "music, speech …";
    form.show(filter);
    showChips();
  }

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
      ...(ideas ? suggestions : []),
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
      if (asked && !stale && !usesConcepts() && JSON.stringify(next) === JSON.stringify(asked)) return;
      settled = true;
      run(next);
    },
    hidden: () => hits.pause(),
  };
}
