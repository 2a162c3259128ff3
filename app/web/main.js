// The page's shell: tabs, URL parameters, keyboard shortcuts, the API-key and help dialogs, and the service's status.
// The tabs are in search.js, detect.js, library.js and concepts.js.

import { call, get, Problem } from "./api.js";
import { openClip } from "./clip.js";
import { loadConcepts } from "./concept-names.js";
import * as concepts from "./concepts.js";
import { Deletions } from "./deletions.js";
import * as detect from "./detect.js";
import { $, announce } from "./dom.js";
import * as library from "./library.js";
import { mountPlayback } from "./playback.js";
import * as search from "./search.js";
import { teach } from "./teach.js";

const TABS = ["search", "detect", "library", "concepts"];
const MODULES = { search, detect, library, concepts };
const LOOK = 10_000; // ms between looks whether the service is still there
const RETRY = 2000; // ms, while the service is loading or unreachable
const LETTERS = "finelap-letters"; // localStorage key: "off" disables single-key shortcuts

const mounted = {};
let shown = null;

/**
 * The interface that the shell offers to the tabs.
 * @typedef {typeof shell} Shell
 */
export const shell = {
  /** The response of GET /info, or null before the first one. */
  info: null,

  /** Sounds that are being deleted, and can still be kept. */
  deletions: new Deletions(),

  /** The URL parameters. `tab` belongs to the shell, `open` is the open clip; the others belong to the current tab. */
  get params() {
    return new URLSearchParams(location.search);
  },

  /**
   * Changes URL parameters: null, "" and [] remove one, a list repeats it. Adds a history entry unless `replace`.
   * Does not notify the tab, which made the change.
   */
  setParams(changes, { replace = false } = {}) {
    const params = shell.params;
    for (const [name, value] of Object.entries(changes)) {
      params.delete(name);
      for (const each of [value].flat()) if (each !== null && each !== undefined && each !== "") params.append(name, each);
    }
    const address = params.size ? `?${params}` : location.pathname;
    if (address === (location.search || location.pathname)) return;
    history[replace ? "replaceState" : "pushState"](history.state, "", address);
  },

  /**
   * Shows a tab. With `push` (the default) it adds a history entry: `params` replace all URL parameters, or, without
   * them, the tab's previous parameters are restored.
   * @param {"search" | "detect" | "library" | "concepts"} tab
   * @param {{push?: boolean, params?: Record<string, any> | null}} [options]
   */
  show(tab, { push = true, params = null } = {}) {
    if (push && (params || tab !== shown)) {
      if (shown) remembered[shown] = location.search;
      const address = params ? withTab(tab, params) : (remembered[tab] ?? withTab(tab, {}));
      if (address !== location.search) history.pushState(null, "", address || location.pathname);
    }
    reveal(tab);
  },

  /** Opens a clip's details. `clip` is a clip of the API or its id; `moments` are highlighted in the waveform. */
  openClip(clip, moments = []) {
    return openClip(shell, clip, moments);
  },

  /** Opens the dialog that teaches a concept from a sound. @param {import("./teach.js").Sound} sound */
  teach(sound) {
    return teach(shell, sound);
  },

  /** Whether the model has frames; without them there are no moments and no detection. Asks GET /info if necessary. */
  async hasFrames() {
    const { model } = shell.info ?? (await get("/info").catch(() => ({ model: {} })));
    return model.frames !== null;
  },

  /** Whether single-key shortcuts are enabled. */
  letters: () => localStorage.getItem(LETTERS) !== "off",

  /** Reloads GET /info, for example after clips were added or deleted. */
  refresh: () => connect(),
};

const remembered = {}; // tab → location.search

function withTab(tab, params) {
  const query = new URLSearchParams();
  if (tab !== TABS[0]) query.set("tab", tab);
  for (const [name, value] of Object.entries(params)) for (const each of [value].flat()) query.append(name, each);
  return query.size ? `?${query}` : "";
}

function reveal(wanted) {
  const tab = $(`tab-${wanted}`).hidden ? TABS[0] : wanted;
  for (const each of TABS) {
    const chosen = each === tab;
    $(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    $(each).hidden = !chosen;
  }
  if (shown && shown !== tab) mounted[shown].hidden();
  shown = tab;
  document.title = tab === TABS[0] ? "FineLAP" : `${$(`tab-${tab}`).textContent} · FineLAP`;
  mounted[tab].shown(shell.params);
}

/** Applies the URL: on load, and on back and forward. */
function applyUrl() {
  const { params } = shell;
  const tab = TABS.includes(params.get("tab")) ? params.get("tab") : TABS[0];
  reveal(tab);
  const open = params.get("open");
  if (open) shell.openClip(open);
  else if ($("clip-dialog").open) $("clip-dialog").close();
}

// The service's status

let timer = 0;

async function connect() {
  clearTimeout(timer);
  try {
    shell.info = await get("/info");
  } catch (error) {
    const loading = error instanceof Problem && error.status === 503;
    showStatus(loading ? "waiting" : "wrong", loading ? "The model is loading …" : error.message);
    if (error.status === 0 || error.status >= 500) timer = setTimeout(connect, RETRY);
    return;
  }
  timer = setTimeout(look, LOOK);
  const { clips, model } = shell.info;
  showStatus("ready", `${clips.toLocaleString("en")} ${clips === 1 ? "sound" : "sounds"} · ${model.name} on ${model.device}`);
  $("tab-detect").hidden = model.frames === null; // a model of whole clips neither detects nor finds moments
  document.querySelector("input[name=mode][value=moments]").closest("label").hidden = model.frames === null;
  if (shown && $(`tab-${shown}`).hidden) reveal(TABS[0]);
  document.dispatchEvent(new CustomEvent("finelap:info", { detail: shell.info }));
  loadConcepts().catch(() => {}); // the Concepts tab says what is wrong
}

/** Looks whether the service is still there; if not, says so and waits for it. */
async function look() {
  try {
    if (document.visibilityState === "visible") await call("/health/live");
    timer = setTimeout(look, LOOK);
  } catch (error) {
    showStatus("wrong", error.message);
    timer = setTimeout(connect, RETRY);
  }
}

function showStatus(state, text) {
  $("status").dataset.state = state;
  $("status-text").textContent = text;
  $("status").title = text;
}

// The API key

document.addEventListener("finelap:key", ({ detail: { wrong, done } }) => {
  const dialog = $("key-dialog");
  let given = null;
  $("key").value = "";
  $("key-message").textContent = wrong ? "The service rejected this key." : "";
  const submit = () => {
    given = $("key").value.trim() || null;
  };
  $("key-form").addEventListener("submit", submit, { once: true });
  dialog.addEventListener(
    "close",
    () => {
      $("key-form").removeEventListener("submit", submit);
      done(given);
    },
    { once: true },
  );
  dialog.showModal();
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());

// Keyboard shortcuts

const isTyping = (node) =>
  node.isContentEditable || node.matches?.("textarea, select, input:not([type=checkbox], [type=radio], [type=range], [type=button], [type=file])");

document.addEventListener("keydown", (event) => {
  if (!shell.deletions.any || event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey) return;
  if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  shell.deletions.undo();
});

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event.target) || document.querySelector("dialog[open]") || !shell.letters()) return;
  if (event.key === "?") showHelp();
  else if (event.key === "/") {
    shell.show("search");
    $("query").focus();
    $("query").select();
  } else if (TABS["1234".indexOf(event.key)]) {
    const tab = TABS["1234".indexOf(event.key)];
    shell.show(tab);
    $(`tab-${tab}`).focus();
  } else return;
  event.preventDefault();
});

function showHelp() {
  $("letters").checked = shell.letters();
  $("help-dialog").showModal();
}

$("help-button").addEventListener("click", showHelp);
$("help-close").addEventListener("click", () => $("help-dialog").close());
$("letters").addEventListener("change", () => {
  localStorage.setItem(LETTERS, $("letters").checked ? "on" : "off");
  announce($("letters").checked ? "Shortcuts enabled" : "Shortcuts disabled");
});
for (const dialog of document.querySelectorAll("dialog:not(#key-dialog)")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click on the backdrop
  });
}

// Tabs

for (const [i, tab] of TABS.entries()) {
  $(`tab-${tab}`).addEventListener("click", () => shell.show(tab));
  $(`tab-${tab}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = TABS[(i + step + TABS.length) % TABS.length];
    shell.show(next);
    $(`tab-${next}`).focus();
  });
}

// A file dropped outside a drop target must not replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

mountPlayback();
for (const tab of TABS) mounted[tab] = MODULES[tab].mount($(tab), shell);
addEventListener("popstate", applyUrl);
connect();
applyUrl();
