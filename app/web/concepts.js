// The Concepts tab: the list of concepts, and the one that is open (URL parameter `concept`) with its quality, actions
// and labels. Suggestions are in concept-suggestions.js, examples in concept-examples.js, scores in concept-scores.js.

import { call, get, json } from "./api.js";
import { Examples } from "./concept-examples.js";
import { concepts, loadConcepts, phraseOf } from "./concept-names.js";
import { Scores } from "./concept-scores.js";
import { Suggestions } from "./concept-suggestions.js";
import { $, announce, count, el, showMessage } from "./dom.js";

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  let open = null; // the concept that is shown, as the API has it
  let here = false;

  const examples = new Examples(shell, { changed: () => refresh(), failed });
  const scores = new Scores(shell, { threshold: setThreshold, failed });
  const suggestions = new Suggestions(shell, {
    answered: (concept) => {
      update(concept);
      examples.load();
      scores.later();
    },
    failed,
  });

  function failed(error) {
    if (error.name === "AbortError") return;
    showMessage($("concept-message"), error.message, true);
  }

  // The list

  async function load() {
    try {
      await loadConcepts();
      showMessage($("concepts-message"), "");
    } catch (error) {
      showMessage($("concepts-message"), error.message, true);
    }
  }

  function showList() {
    const focused = document.activeElement?.closest("#concept-list li")?.dataset.id;
    $("concept-list").replaceChildren(...concepts().map(row));
    $("no-concepts").hidden = concepts().length > 0;
    if (focused) $("concept-list").querySelector(`[data-id="${focused}"] button`)?.focus();
  }

  function row(concept) {
    const { id, name, positives, negatives, quality, threshold, notes } = concept;
    const number = el("span", { class: "quality", text: quality ? quality.average_precision.toFixed(2) : "–" });
    number.prepend(el("span", { class: "unseen", text: "quality " }));
    const facts = [count(positives + negatives, "example"), quality ? `threshold ${threshold.toFixed(2)}` : notes[0]];
    const button = el(
      "button",
      { type: "button", "aria-current": id === open?.id ? "true" : null, onclick: () => choose(concept, true) },
      el("span", { class: "name", text: name }),
      number,
      el("span", { class: "about", text: facts.filter(Boolean).join(" · ") }),
    );
    return el("li", { dataset: { id } }, button);
  }

  function choose(concept, focus = false) {
    shell.setParams({ concept: concept.name });
    show(concept);
    if (focus) $("concept-title").focus();
  }

  // The open concept

  function show(concept) {
    const other = concept?.id !== open?.id;
    $("concept").hidden = !concept;
    if (!concept) {
      open = null;
      suggestions.close();
      return showList();
    }
    update(concept);
    if (other) showMessage($("concept-message"), "");
    examples.show(concept);
    scores.show(concept);
    suggestions.show(concept);
  }

  /** Shows what has changed of the concept: its quality and counts, also in the list. */
  function update(concept) {
    open = concept;
    const place = concepts().findIndex(({ id }) => id === concept.id);
    if (place >= 0) concepts()[place] = concept;
    const { name, text, positives, negatives, quality, threshold, notes } = concept;
    $("concept-title").textContent = name;
    $("concept-words").textContent = text ? `“${text}”` : "without words";
    const facts = [
      ["Quality", quality ? quality.average_precision.toFixed(2) : "–", "Average precision with which it ranks its own examples, each without its recording"],
      ["AUROC", quality ? quality.auroc.toFixed(2) : "–", "How often it scores an example higher than another sound"],
      ["Yes", positives.toLocaleString("en"), "Examples of the sound"],
      ["No", negatives.toLocaleString("en"), "Examples of what it is not"],
      ["Threshold", threshold.toFixed(2), "The score from which it counts: as set below, or with the best F1 in the same test; 0.5 without one"],
    ];
    $("concept-facts").replaceChildren(
      ...facts.map(([term, value, title]) => el("div", { title }, el("dt", { text: term }), el("dd", { text: value }))),
    );
    const about = notes.join("; ");
    $("concept-notes").textContent = about && `${about[0].toUpperCase()}${about.slice(1)}.`;
    scores.update(concept);
    showList();
  }

  /** Reads the open concept again, after its examples or its text have changed. */
  async function refresh() {
    if (!open) return;
    const { id } = open;
    try {
      const concept = await get(`/concepts/${id}`);
      if (open?.id === id) show(concept);
    } catch (error) {
      failed(error);
    }
  }

  async function setThreshold(threshold) {
    const { id } = open;
    try {
      const concept = await json(`/concepts/${id}`, { method: "PATCH", body: { threshold } });
      if (open?.id === id) update(concept);
      announce(`The threshold is ${concept.threshold.toFixed(2)}`);
    } catch (error) {
      failed(error);
    }
  }

  async function remove() {
    const { id, name } = open;
    const n = count(open.positives + open.negatives, "example");
    if (!(await ask(`Delete “${name}”?`, `Its ${n} go with it; the sounds of the library stay.`, "Delete"))) return;
    try {
      await call(`/concepts/${id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) return failed(error);
    }
    shell.setParams({ concept: null }, { replace: true });
    show(null);
    await load();
    announce(`Deleted ${name}`);
    ($("concept-list").querySelector("button") ?? $("concept-name")).focus();
  }

  async function rename() {
    const changed = await edit(open);
    if (!changed) return;
    shell.setParams({ concept: changed.name }, { replace: true });
    await load();
    show(changed);
    announce("Saved");
  }

  // User input

  $("concept-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = { name: $("concept-name").value.trim(), text: $("concept-text").value.trim() };
    try {
      const concept = await json("/concepts", { body });
      event.target.reset();
      await load();
      choose(concept, true);
    } catch (error) {
      showMessage($("concepts-message"), error.errors[0]?.message ?? error.message, true);
    }
  });
  $("concept-search").addEventListener("click", () => shell.show("search", { params: { q: phraseOf(open) } }));
  $("concept-detect").addEventListener("click", () => {
    shell.show("detect", { params: { p: [phraseOf(open)] } });
  });
  $("concept-rename").addEventListener("click", rename);
  $("concept-delete").addEventListener("click", remove);
  document.addEventListener("finelap:concepts", () => {
    if (here) showList();
  });
  let connected = false;
  document.addEventListener("finelap:info", () => {
    if (here && connected) refresh();
    connected = true;
  });

  return {
    async shown() {
      here = true;
      showList();
      await load();
      if (!here) return;
      const wanted = shell.params.get("concept"); // one may have been chosen meanwhile
      const concept = concepts().find(({ name, id }) => name === wanted || id === wanted) ?? null;
      showMessage($("concepts-message"), wanted && !concept ? `There is no concept “${wanted}”.` : $("concepts-message").textContent, true);
      const newest = [...concepts()].sort((a, b) => b.updated.localeCompare(a.updated))[0];
      const first = innerWidth > 832 && !wanted ? (newest ?? null) : null; // on a phone the list comes first
      show(concept ?? first);
    },
    hidden() {
      here = false;
      examples.pause();
      suggestions.close();
    },
  };
}

let dialog = null;

/** A modal form. Resolves with what `send` returns, or null if it was cancelled; what `send` throws is shown. */
function modal(title, fields, action, send, danger = false) {
  dialog ??= document.body.appendChild(el("dialog", { "aria-labelledby": "ask-title" }));
  return new Promise((resolve) => {
    let result = null;
    const message = el("p", { class: "wrong", role: "alert" });
    const submit = async (event) => {
      event.preventDefault();
      try {
        result = await send();
        dialog.close();
      } catch (error) {
        message.textContent = error.errors?.[0]?.message ?? error.message;
      }
    };
    const cancel = el("button", { type: "button", text: "Cancel", onclick: () => dialog.close() });
    const save = el("button", { class: danger ? "danger" : "primary", text: action });
    dialog.replaceChildren(el("form", { onsubmit: submit }, el("h2", { id: "ask-title", text: title }), ...fields, message, el("div", { class: "actions" }, cancel, save)));
    dialog.addEventListener("close", () => resolve(result), { once: true });
    dialog.showModal();
    const [first] = fields.flatMap((node) => [...node.querySelectorAll("input")]);
    (first ?? save).focus();
    first?.select();
  });
}

const ask = (title, text, action) => modal(title, [el("p", { text })], action, async () => true, true);

/** Changes the name and the words of a concept; resolves with it, or null. */
function edit({ id, name, text }) {
  const field = (key, value, attributes) => el("input", { id: `ask-${key}`, autocomplete: "off", autocapitalize: "none", value, ...attributes });
  const names = field("name", name, { required: true, maxlength: 100 });
  const words = field("text", text ?? "", { maxlength: 1000 });
  const labelled = (label, input) => el("div", { class: "labelled" }, el("label", { for: input.id, text: label }), input);
  return modal("Rename the concept", [labelled("Name", names), labelled("In words", words)], "Save", () => {
    const body = { name: names.value.trim(), text: words.value.trim() || null };
    return json(`/concepts/${id}`, { method: "PATCH", body });
  });
}
