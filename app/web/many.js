// What can be done with one sound or with many at once: favourites, collections, tags, a download, teaching, a scan.

import { call, json } from "./api.js";
import { Completion } from "./completion.js";
import { concepts, loadConcepts, noSuch, phrasesIn, unknownConcept } from "./concept-names.js";
import { $, announce, count, el, icon } from "./dom.js";
import { save } from "./exports.js";
import { splitTags } from "./library-edit.js";

export const FAVOURITES = "Favourites"; // the collection of sounds with a star
const SHOWN = 6000; // ms that a notice stays

export const collectionsOf = ({ metadata }) => [metadata.collections ?? []].flat().filter((name) => typeof name === "string");
export const isFavourite = (clip) => collectionsOf(clip).includes(FAVOURITES);
export const tagsOf = ({ metadata }) => [metadata.tags ?? []].flat().filter((tag) => typeof tag === "string");
const named = (clips) => (clips.length === 1 ? clips[0].filename : count(clips.length, "sound"));
const idsOf = (clips) => clips.map(({ id }) => id);

/** Tells what happened, for a while. */
export function tell(text, wrong = false) {
  document.querySelectorAll(".notice.told").forEach((other) => other.remove());
  const notice = el("div", { class: "notice plain told" }, el("p", { class: wrong ? "wrong" : null, text }));
  (document.querySelector("dialog[open]") ?? $("notices")).append(notice);
  announce(text);
  setTimeout(() => notice.remove(), SHOWN);
}

export class Many {
  #shell;
  #changed;

  /** @param {import("./main.js").Shell} shell  @param {() => void} changed  sounds have other metadata now */
  constructor(shell, changed) {
    this.#shell = shell;
    this.#changed = changed;
  }

  /** The actions of a selection's bar; `remove` deletes sounds. @returns {import("./selection.js").Action[]} */
  actions(remove) {
    const frames = () => this.#shell.info?.model.frames !== null;
    return [
      { name: "star", label: "Favourite", title: "Add to favourites, or take out (F)", act: (clips) => this.favourite(clips) },
      { name: "folder", label: "Collect", title: "Put into collections (C)", act: (clips) => this.collect(clips) },
      { name: "tag", label: "Tag", title: "Add and remove tags", act: (clips) => this.tag(clips) },
      { name: "download", label: "Download", title: "Download as a ZIP archive (D)", act: (clips) => this.download(clips) },
      { name: "concept", label: "Teach", title: "Teach a concept from them (T)", act: (clips) => this.teach(clips) },
      { name: "detect", label: "Detect", title: "Detect sounds in them", act: (clips) => (frames() ? this.detect(clips) : tell("This model only knows whole clips.")) },
      { name: "trash", label: "Delete", title: "Delete them (Del)", danger: true, act: remove },
    ];
  }

  /** Makes all of them favourites, or none if all are. */
  async favourite(clips) {
    const all = clips.every(isFavourite);
    try {
      await this.#edit(clips, { [all ? "remove" : "add"]: { collections: [FAVOURITES] } });
    } catch (error) {
      return tell(error.message, true);
    }
    tell(all ? `${named(clips)}: no longer a favourite` : `${named(clips)}: added to favourites`);
  }

  async #edit(clips, change) {
    await json("/clips/edit", { body: { clip_ids: idsOf(clips), ...change } });
    document.dispatchEvent(new CustomEvent("finelap:edited"));
    this.#changed();
  }

  /** Several sounds come as an archive, a single one as its file. */
  async download(clips) {
    tell(`Preparing ${named(clips)} …`);
    try {
      const response = await call("/clips/download", { body: { items: clips.map(({ id }) => ({ clip_id: id })) } });
      save("sounds.zip", await response.blob());
    } catch (error) {
      tell(error.message, true);
    }
  }

  /** Check boxes for all collections, and a field for a new one. */
  async collect(clips) {
    const known = await json("/collections").then(({ collections }) => collections.map(({ name }) => name), () => []);
    const names = [...new Set([FAVOURITES, ...known])];
    const boxes = names.map((name) => {
      const within = clips.filter((clip) => collectionsOf(clip).includes(name)).length;
      const box = el("input", { type: "checkbox", value: name });
      box.checked = within === clips.length;
      box.indeterminate = within > 0 && within < clips.length;
      return { box, before: box.indeterminate ? null : box.checked };
    });
    const fresh = el("input", { id: "many-new", autocomplete: "off", maxlength: 100, placeholder: "rain scene" });
    const body = [
      el("fieldset", { class: "boxes" }, el("legend", { class: "unseen", text: "Collections" }), ...boxes.map(({ box }) => el("label", { class: "check" }, box, box.value))),
      el("div", { class: "labelled" }, el("label", { for: "many-new", text: "New collection" }), fresh),
    ];
    ask(`Collections of ${named(clips)}`, body, "Save", async () => {
      const touched = boxes.filter(({ box, before }) => !box.indeterminate && box.checked !== before);
      const pick = (checked) => touched.filter(({ box }) => box.checked === checked).map(({ box }) => box.value);
      const add = [...pick(true), ...(fresh.value.trim() ? [fresh.value.trim()] : [])];
      const remove = pick(false);
      if (!add.length && !remove.length) return "";
      await this.#edit(clips, { ...(add.length && { add: { collections: add } }), ...(remove.length && { remove: { collections: remove } }) });
      return `${named(clips)}: ${[add.length && `now in ${add.join(", ")}`, remove.length && `no longer in ${remove.join(", ")}`].filter(Boolean).join("; ")}`;
    }, known.length ? boxes[0].box : fresh);
  }

  /** Tags to add, and check boxes of tags to keep. */
  tag(clips) {
    const counts = new Map();
    for (const tag of clips.flatMap(tagsOf)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
    const boxes = [...counts].sort(([a, n], [b, m]) => m - n || a.localeCompare(b)).slice(0, 30).map(([tag]) => {
      const box = el("input", { type: "checkbox", value: tag });
      box.checked = true;
      return box;
    });
    const field = el("input", { id: "many-tags", autocomplete: "off", autocapitalize: "none", maxlength: 500, placeholder: "dog, outdoors" });
    const body = [
      el("div", { class: "labelled" }, el("label", { for: "many-tags", text: "Add tags" }), field),
      boxes.length ? el("fieldset", { class: "boxes" }, el("legend", { text: "Keep" }), ...boxes.map((box) => el("label", { class: "check" }, box, box.value))) : null,
    ];
    ask(`Tags of ${named(clips)}`, body, "Save", async () => {
      const add = splitTags(field.value);
      const remove = boxes.filter(({ checked }) => !checked).map(({ value }) => value);
      if (!add.length && !remove.length) return "";
      await this.#edit(clips, { ...(add.length && { add: { tags: add } }), ...(remove.length && { remove: { tags: remove } }) });
      return `${named(clips)}: tags saved`;
    }, field);
  }

  /** Whole sounds as examples of a concept, or of what it is not. */
  async teach(clips) {
    await loadConcepts().catch(() => {});
    const name = el("input", { id: "many-concept", list: "many-concepts", required: true, maxlength: 100, autocomplete: "off", autocapitalize: "none", placeholder: "our door bell" });
    const list = el("datalist", { id: "many-concepts" }, ...concepts().map((one) => el("option", { value: one.name })));
    const no = el("input", { type: "checkbox", id: "many-no" });
    const body = [
      el("div", { class: "labelled" }, el("label", { for: "many-concept", text: "Concept" }), name, list),
      el("label", { class: "check" }, no, "These are not this sound"),
    ];
    ask(`Teach from ${named(clips)}`, body, "Teach", async () => {
      const wanted = name.value.trim();
      const examples = clips.map(({ id }) => ({ clip_id: id, label: !no.checked }));
      const known = concepts().find((one) => one.name === wanted);
      if (known) await json(`/concepts/${known.id}/examples`, { body: { examples } });
      else await json("/concepts", { body: { name: wanted, examples } });
      await loadConcepts().catch(() => {});
      return `“${wanted}” has learned from ${named(clips)}`;
    }, name);
  }

  /** A scan of these sounds; the Library tab shows its progress. */
  async detect(clips) {
    await loadConcepts().catch(() => {});
    const phrases = el("input", { id: "many-phrases", required: true, maxlength: 1000, autocomplete: "off", autocapitalize: "none", placeholder: "dog barking, rain" });
    phrases.value = phrasesIn(this.#shell.params.get("q") ?? "", />/).join(", ");
    const body = [el("div", { class: "labelled" }, el("label", { for: "many-phrases", text: "Sounds to detect" }), phrases)];
    new Completion(phrases, { separator: /,/, byName: true });
    ask(`Detect sounds in ${named(clips)}`, body, "Detect", async () => {
      const wanted = phrasesIn(phrases.value, /,/);
      const unknown = await unknownConcept(() => wanted);
      if (unknown !== undefined) throw new Error(noSuch(unknown));
      await json("/jobs", { body: { kind: "detect", phrases: wanted, filter: { clip_id: idsOf(clips) } } });
      this.#shell.show("library");
      $("scan").scrollIntoView({ block: "start" });
      return "The scan has started; its events can be downloaded here.";
    }, phrases);
  }
}

/** A dialog with a form; `act` does the work and returns what to tell. */
export function ask(title, body, verb, act, first) {
  const dialog = el("dialog", { class: "many", "aria-labelledby": "many-title" });
  const message = el("p", { class: "wrong", role: "alert" });
  const submitting = el("button", { class: "primary", text: verb });
  const close = el("button", { type: "button", class: "ghost round", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  const submit = async (event) => {
    event.preventDefault();
    submitting.disabled = true;
    message.textContent = "";
    try {
      const done = await act();
      dialog.close();
      if (done) tell(done);
    } catch (error) {
      message.textContent = error.errors?.[0]?.message ?? error.message;
    }
    submitting.disabled = false;
  };
  const head = el("div", { class: "dialog-head" }, el("h2", { id: "many-title", text: title }), close);
  const actions = el("div", { class: "actions" }, el("button", { type: "button", text: "Cancel", onclick: () => dialog.close() }), submitting);
  dialog.append(el("form", { onsubmit: submit }, head, ...body.filter(Boolean), message, actions));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  first?.focus();
}
