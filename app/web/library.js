// The Library tab: uploads files, lists, edits and deletes clips, and shows the service's health.

import { call, json } from "./api.js";
import { $, announce, bytes, clock, count, debounce, el, showMessage } from "./dom.js";
import { Duplicates } from "./duplicates.js";
import { Facets } from "./facets.js";
import { filterChips, including, without } from "./filters.js";
import { Jobs } from "./jobs.js";
import { editClip, splitTags } from "./library-edit.js";
import { chosen, dropped } from "./library-files.js";
import { ClipList } from "./library-list.js";
import { Uploads } from "./library-uploads.js";
import { ask, Many } from "./many.js";

const PAUSE = 250; // ms after the last keystroke
const HEALTH_INTERVAL = 30_000; // ms between health checks while the tab is shown
const RELOAD_INTERVAL = 5000; // ms between reloads of the list during uploads
const SORTS = ["-created", "created", "filename", "-filename", "-duration", "duration"];
const reversed = (sort) => (sort.startsWith("-") ? sort.slice(1) : `-${sort}`);

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  let query = { words: "", sort: SORTS[0], filter: {} };
  let here = false;
  let loaded = false;
  let looking = 0;
  let stale = 0;
  const headers = document.querySelectorAll("#clips-head button");

  const { deletions } = shell;
  deletions.listen({
    back: async ([clip]) => {
      if (!here) return;
      await load();
      list.focusClip(clip.id);
    },
    gone: () => shell.refresh(),
    failed: async (clip, error) => {
      if (here) await load();
      showProblem(`${clip.filename} was not deleted: ${error.message}`);
    },
  });

  const many = new Many(shell, () => load());
  const remove = (clips) => {
    deletions.add(clips);
    list.take(clips.map(({ id }) => id));
    describe();
  };

  const list = new ClipList($("clips"), $("clips-select"), {
    open: (clip) => shell.openClip(clip),
    edit: editClip,
    teach: (clip) => shell.teach({ clip, name: clip.filename, duration: clip.duration }),
    remove,
    many,
    filter: (key, value) => change({ filter: including(query.filter, key, value) }),
    letters: shell.letters ?? (() => true),
    leave: () => $("words").focus(),
    isGoing: (id) => deletions.has(id),
  });

  const uploads = new Uploads({
    onAdded: () => {
      stale ||= setTimeout(() => refresh(), RELOAD_INTERVAL);
    },
    onIdle: () => refresh(),
    open: (clip) => shell.openClip(clip),
    limit: () => (shell.info ? shell.info.limits.max_upload_mb * 1e6 : null),
  });

  const jobs = new Jobs(() => query.filter);
  const duplicates = new Duplicates(shell, () => load());

  /** Reloads the list and the number of clips. */
  function refresh() {
    clearTimeout(stale);
    stale = 0;
    shell.refresh();
    if (here) load();
  }

  async function load() {
    panel.setAttribute("aria-busy", "true");
    try {
      await list.load(query);
      loaded = true;
      showProblem("");
    } catch (error) {
      showProblem(error.message);
    } finally {
      panel.removeAttribute("aria-busy");
    }
    describe();
  }

  function showProblem(problem) {
    showMessage($("clips-message"), problem, Boolean(problem));
    $("clips-again").hidden = !problem;
    if (problem) announce(problem);
  }

  /** Updates the count and the empty state. */
  function describe() {
    if (!loaded) return;
    const { words, filter } = query;
    const narrowed = words || Object.keys(filter).length > 0;
    const n = list.length;
    const more = list.more;
    const all = shell.info?.clips;
    $("clips-more").hidden = !more;
    const known = !narrowed && all !== undefined && more;
    const counted = known ? `${n.toLocaleString("en")} of ${count(all, "sound")}` : `${count(n, "sound")}${more ? " or more" : ""}`;
    $("clips-about").textContent = words && n > 1 ? `${counted}, best match first` : counted;
    $("clips-table").hidden = n === 0;
    const wrong = Boolean($("clips-message").textContent);
    $("no-clips").hidden = n > 0 || wrong || deletions.any;
    $("no-clips").replaceChildren(
      el("h2", { text: narrowed ? "No matches" : "No sounds yet" }),
      el("p", { text: narrowed ? "No clip matches these words and filters." : "Choose files above, or drop them anywhere on this page." }),
      ...(narrowed ? [el("button", { type: "button", text: "Show all", onclick: () => change({ words: "", filter: {} }) })] : []),
    );
  }

  /** Applies a changed query to the URL, the controls and the list. */
  function change(changes, { replace = false } = {}) {
    query = { ...query, ...changes };
    const { words, sort, filter } = query;
    const some = Object.keys(filter).length > 0;
    shell.setParams({ words, sort: sort === SORTS[0] ? null : sort, filter: some ? JSON.stringify(filter) : null }, { replace });
    show();
    return load().then(() => announce($("clips-about").textContent));
  }

  function show() {
    const { words, sort, filter } = query;
    if ($("words").value.trim() !== words) $("words").value = words;
    for (const button of headers) {
      const sorts = !words && [sort, reversed(sort)].includes(button.dataset.sort);
      const order = sort.startsWith("-") ? "descending" : "ascending";
      button.parentElement.setAttribute("aria-sort", sorts ? order : "none");
      button.disabled = Boolean(words); // the best match comes first
    }
    const chips = filterChips(filter, (left) => {
      change({ filter: left });
      $("words").focus();
    });
    $("clips-filter").replaceChildren(...chips);
    showFacets();
    jobs.describe();
  }

  const collections = new Facets($("collections"), ["collections"], (filter) => change({ filter }));
  const browse = new Facets($("browse-facets"), ["tags", "category", "label", "duration", "channels"], (filter) => change({ filter }));

  /** Counts again; the collection that the list shows can be renamed and deleted. */
  function showFacets() {
    const { filter } = query;
    $("collection-tools").hidden = typeof filter.collections !== "string";
    collections.show(filter);
    if ($("browse").open) browse.show(filter);
  }
  $("browse").addEventListener("toggle", () => $("browse").open && browse.show(query.filter));
  document.addEventListener("finelap:edited", () => here && showFacets());

  const collectionPath = (name) => `/collections/${encodeURIComponent(name)}`;
  $("collection-rename").addEventListener("click", () => {
    const name = query.filter.collections;
    const field = el("input", { id: "many-name", required: true, maxlength: 100, autocomplete: "off", value: name });
    const body = [el("div", { class: "labelled" }, el("label", { for: "many-name", text: "Name" }), field)];
    ask(`Rename “${name}”`, body, "Rename", async () => {
      const to = field.value.trim();
      if (to === name) return "";
      await json(collectionPath(name), { method: "PATCH", body: { name: to } });
      change({ filter: { ...query.filter, collections: to } }, { replace: true });
      return `“${name}” is “${to}” now`;
    }, field);
    field.select();
  });
  $("collection-delete").addEventListener("click", () => {
    const name = query.filter.collections;
    ask(`Delete “${name}”?`, [el("p", { text: "The sounds stay in the library and in their other collections." })], "Delete the collection", async () => {
      await call(collectionPath(name), { method: "DELETE" });
      change({ filter: without(query.filter, "collections") }, { replace: true });
      return `The collection “${name}” is deleted`;
    });
  });

  const typed = debounce(() => change({ words: $("words").value.trim() }, { replace: true }), PAUSE);
  $("words").addEventListener("input", () => typed());
  $("words").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && list.focus(0)) event.preventDefault();
  });
  $("clips-form").addEventListener("submit", (event) => {
    event.preventDefault();
    typed.now();
  });
  for (const button of headers) {
    const { sort } = button.dataset;
    button.addEventListener("click", () => change({ sort: query.sort === sort ? reversed(sort) : sort }));
  }
  $("clips-more").addEventListener("click", async () => {
    $("clips-more").disabled = true;
    try {
      await list.loadMore();
    } catch (error) {
      showProblem(error.message);
    }
    $("clips-more").disabled = false;
    describe();
  });
  $("clips-again").addEventListener("click", () => load());

  // Files

  const add = ({ found, others }) => {
    const tags = splitTags($("add-tags").value);
    uploads.add(found.map(({ file, path }) => ({ file, metadata: { ...(path && { path }), ...(tags.length && { tags }) } })));
    const left = others ? `Skipped ${count(others, "file")} that ${others === 1 ? "is" : "are"} not audio.` : "";
    showMessage($("add-message"), left || (found.length ? "" : "The folder contains no audio files."));
  };
  for (const input of [$("add-files"), $("add-folder")]) {
    input.addEventListener("change", () => {
      add(chosen(input));
      input.value = "";
    });
  }
  $("add-folder").parentElement.hidden = !("webkitdirectory" in HTMLInputElement.prototype) || matchMedia("(pointer: coarse)").matches;
  let inside = 0;
  panel.addEventListener("dragenter", () => $("add").classList.toggle("over", ++inside > 0));
  panel.addEventListener("dragleave", () => $("add").classList.toggle("over", --inside > 0));
  panel.addEventListener("dragover", (event) => event.preventDefault());
  panel.addEventListener("drop", async (event) => {
    event.preventDefault();
    inside = 0;
    $("add").classList.remove("over");
    try {
      add(await dropped(event.dataTransfer));
    } catch {
      showMessage($("add-message"), "Cannot read the folder.", true);
    }
  });

  // The service

  async function checkHealth() {
    clearTimeout(looking);
    looking = here ? setTimeout(checkHealth, HEALTH_INTERVAL) : 0;
    if (document.hidden) return;
    try {
      await call("/health/ready");
      health("ready", "Ready");
    } catch (error) {
      health(error.status === 503 ? "waiting" : "wrong", error.message); // loading is no failure
    }
  }

  function health(state, text) {
    $("health").dataset.state = state;
    $("health-text").textContent = text;
  }

  function about({ version, model, clips, limits }) {
    const facts = {
      Model: model.name,
      Device: `${model.device}, ${model.dtype}`,
      Index: `${count(clips, "sound")}, ${model.dim} dimensions`,
      "File limit": `${bytes(limits.max_upload_mb * 1e6)}, ${clock(limits.max_duration_s)}`,
      Version: version,
    };
    $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
    describe();
  }
  document.addEventListener("finelap:info", ({ detail }) => about(detail));

  return {
    shown(params) {
      here = true;
      let filter = {};
      try {
        filter = JSON.parse(params.get("filter") ?? "{}") ?? {};
      } catch {
        // not valid JSON: ignore it
      }
      const sort = SORTS.includes(params.get("sort")) ? params.get("sort") : SORTS[0];
      query = { words: params.get("words") ?? "", sort, filter };
      show();
      load();
      jobs.show();
      checkHealth();
      if (!shell.info) return; // a request is already running
      about(shell.info);
      shell.refresh(); // other clients may have added sounds
    },
    hidden() {
      here = false;
      clearTimeout(looking);
      typed.cancel();
      list.pause();
      list.selection.hide();
      duplicates.pause();
      jobs.hide();
    },
  };
}
