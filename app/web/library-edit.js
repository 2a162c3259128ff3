// The dialog for editing a clip: its file name, tags as chips, other keys by the type of their value. Saves a merge patch with
// the changed keys only, so concurrent changes to other keys are kept.

import { json } from "./api.js";
import { announce, el, icon } from "./dom.js";

const USUAL = ["title", "description", "category", "subcategory", "artist", "license", "location", "comment", "source"];

let dialog = null;

/**
 * Opens the dialog. Resolves with the updated clip, or null if nothing was changed.
 * @returns {Promise<any | null>}
 */
export function editClip(clip) {
  dialog ??= document.body.appendChild(el("dialog", { class: "edit", "aria-labelledby": "edit-title" }));
  return new Promise((resolve) => {
    let changed = null;
    const form = new Form(clip, (saved) => {
      changed = saved;
      dialog.close();
    });
    dialog.replaceChildren(form.node);
    dialog.addEventListener("close", () => resolve(changed), { once: true });
    dialog.showModal();
    form.focus();
  });
}

class Form {
  #clip;
  #saved;
  #fields = new Map(); // key → Field
  #removed = new Set();
  #tags;
  #filename = el("input", { id: "edit-filename", required: true, maxlength: 255, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  #list = el("div", { class: "edit-fields" });
  #message = el("p", { class: "wrong", role: "alert" });
  #save = el("button", { class: "primary", text: "Save" });
  #key;
  #value;

  constructor(clip, saved) {
    this.#clip = clip;
    this.#saved = saved;
    this.#tags = new TagField(clip.metadata.tags);
    this.#filename.value = clip.filename;
    for (const [key, value] of Object.entries(clip.metadata)) {
      if (key !== "tags" || !this.#tags.node) this.#add(key, value);
    }
    const close = el("button", { type: "button", class: "ghost round", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
    this.node = el(
      "form",
      { onsubmit: (event) => this.#submit(event) },
      el("div", { class: "dialog-head" }, el("h2", { id: "edit-title", text: `Edit ${clip.filename}` }), close),
      el("div", {}, el("label", { for: "edit-filename", text: "File name" }), this.#filename),
      this.#tags.node,
      this.#list,
      this.#adder(),
      this.#message,
      el("div", { class: "actions" }, el("button", { type: "button", text: "Cancel", onclick: () => dialog.close() }), this.#save),
    );
  }

  focus() {
    (this.#tags.input ?? this.#save).focus();
  }

  #add(key, value) {
    const field = new Field(key, value, () => {
      const next = field.node.nextElementSibling ?? field.node.previousElementSibling;
      this.#removed.add(key);
      this.#fields.delete(key);
      field.node.remove();
      (next?.querySelector("input, textarea") ?? this.#key).focus();
      announce(`${key} removed`);
    });
    this.#fields.set(key, field);
    this.#list.append(field.node);
    return field;
  }

  #adder() {
    this.#key = el("input", { id: "edit-key", list: "edit-keys", autocomplete: "off", autocapitalize: "none", maxlength: 200 });
    this.#value = el("input", { id: "edit-value", autocomplete: "off" });
    const add = () => this.#takeNew() && this.#key.focus();
    for (const input of [this.#key, this.#value]) {
      input.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.isComposing || !(this.#key.value.trim() && this.#value.value.trim())) return;
        event.preventDefault(); // Enter again saves
        add();
      });
    }
    const names = USUAL.filter((key) => !(key in this.#clip.metadata)).map((key) => el("option", { value: key }));
    return el(
      "fieldset",
      { class: "adder" },
      el("legend", { text: "Add a field" }),
      el("div", {}, el("label", { for: "edit-key", text: "Name" }), this.#key, el("datalist", { id: "edit-keys" }, ...names)),
      el("div", {}, el("label", { for: "edit-value", text: "Value" }), this.#value),
      el("button", { type: "button", text: "Add", onclick: add }),
    );
  }

  /** Adds the field typed into "Add a field"; returns whether there was one. */
  #takeNew() {
    const [key, value] = [this.#key.value.trim(), this.#value.value.trim()];
    if (!key || !value) return false;
    if (key === "tags" && this.#tags.node) this.#tags.add(value);
    else if (this.#fields.has(key)) this.#fields.get(key).input.value = value;
    else this.#add(key, value);
    this.#key.value = this.#value.value = "";
    return true;
  }

  async #submit(event) {
    event.preventDefault();
    this.#takeNew();
    this.#message.textContent = "";
    let metadata;
    try {
      metadata = this.#changes();
    } catch (error) {
      this.#message.textContent = error.message;
      return;
    }
    const filename = this.#filename.value.trim();
    const body = { ...(Object.keys(metadata).length && { metadata }), ...(filename !== this.#clip.filename && { filename }) };
    if (!Object.keys(body).length) return dialog.close();
    this.#save.disabled = true;
    try {
      this.#saved(await json(`/clips/${encodeURIComponent(this.#clip.id)}`, { method: "PATCH", body }));
      announce("Saved");
    } catch (error) {
      this.#message.textContent = error.message;
    } finally {
      this.#save.disabled = false;
    }
  }

  /** The keys to set, with null for those to remove. Throws Error if a field cannot be parsed. */
  #changes() {
    const now = Object.fromEntries([...this.#fields].map(([key, field]) => [key, field.read()]));
    for (const key of this.#removed) now[key] ??= null;
    if (this.#tags.node) now.tags = this.#tags.read();
    const before = this.#clip.metadata;
    const same = (key) => JSON.stringify(now[key] ?? null) === JSON.stringify(before[key] ?? null);
    return Object.fromEntries(Object.entries(now).filter(([key]) => !same(key)));
  }
}

/** The input of one key, parsed back to the type of its value. Empty removes the key. */
class Field {
  constructor(key, value, remove) {
    this.key = key;
    this.kind = kindOf(value);
    const text = { lines: () => value.join("\n"), json: () => JSON.stringify(value) }[this.kind]?.() ?? String(value);
    const id = `edit-${key.replace(/\W/g, (c) => `_${c.codePointAt(0)}_`)}-field`;
    const long = this.kind === "lines" || this.kind === "json" || text.length > 60 || text.includes("\n");
    this.input = long ? el("textarea", { id, rows: Math.min(5, Math.max(2, text.split("\n").length)) }) : el("input", { id, autocomplete: "off" });
    this.input.value = text;
    const hint = { lines: "one per line", json: "JSON" }[this.kind];
    const label = el("label", { for: id }, key, hint ? el("span", { class: "hint", text: ` ${hint}` }) : null);
    const button = el("button", { type: "button", class: "ghost round", "aria-label": `Remove ${key}`, title: `Remove ${key}`, onclick: remove }, icon("close"));
    this.node = el("div", { class: "edit-field" }, label, this.input, button);
    this.input.addEventListener("input", () => this.input.removeAttribute("aria-invalid"));
  }

  read() {
    const text = this.input.value.trim();
    if (text === "") return null;
    if (this.kind === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
    if (this.kind === "boolean") return { true: true, false: false }[text.toLowerCase()] ?? text;
    if (this.kind === "lines") return text.split("\n").map((line) => line.trim()).filter(Boolean);
    if (this.kind === "text") return text;
    try {
      return JSON.parse(text);
    } catch {
      this.input.setAttribute("aria-invalid", "true");
      this.input.focus();
      throw new Error(`${this.key} is not valid JSON.`);
    }
  }
}

function kindOf(value) {
  if (Array.isArray(value) && value.length && value.every((each) => typeof each === "string" && !each.includes("\n"))) return "lines";
  return { string: "text", number: "number", boolean: "boolean" }[typeof value] ?? "json";
}

/** Tags as chips with a text field: Enter or comma adds one, Backspace in the empty field removes the last. */
export class TagField {
  #tags = [];
  #list = el("ul", { class: "chips", "aria-label": "Tags" });

  /** @param {any} value  of `metadata.tags`; a value other than text or a list of texts is left to a Field, and `node` is null */
  constructor(value) {
    const given = value === undefined || value === null ? [] : [value].flat();
    this.node = null;
    if (!given.every((each) => typeof each === "string")) return;
    this.before = value;
    this.#tags = [...given];
    this.input = el("input", { id: "edit-tags", autocomplete: "off", autocapitalize: "none", maxlength: 200, placeholder: "add a tag", "aria-describedby": "edit-tags-hint" });
    this.input.addEventListener("keydown", (event) => this.#key(event));
    const field = el("div", { class: "tag-field", onclick: ({ target }) => target === field && this.input.focus() }, this.#list, this.input);
    this.node = el(
      "div",
      {},
      el("label", { for: "edit-tags", text: "Tags" }),
      field,
      el("p", { id: "edit-tags-hint", class: "unseen", text: "Press Enter or comma to add a tag; Backspace in the empty field removes the last one." }),
    );
    this.#draw();
  }

  add(text) {
    const fresh = splitTags(text).filter((tag) => !this.#tags.includes(tag));
    this.#tags.push(...fresh);
    this.input.value = "";
    this.#draw();
    if (fresh.length) announce(`${fresh.join(", ")} added`);
  }

  read() {
    if (this.input.value.trim()) this.add(this.input.value);
    if (typeof this.before === "string" && this.#tags.length === 1 && this.#tags[0] === this.before) return this.before;
    if (this.#tags.length) return this.#tags;
    return Array.isArray(this.before) && !this.before.length ? [] : null;
  }

  #key(event) {
    if (event.isComposing) return;
    if ((event.key === "Enter" || event.key === ",") && this.input.value.trim()) this.add(this.input.value);
    else if (event.key === "Backspace" && !this.input.value && this.#tags.length) this.#remove(this.#tags.length - 1);
    else if (event.key !== ",") return;
    event.preventDefault();
  }

  #remove(index) {
    const [tag] = this.#tags.splice(index, 1);
    this.#draw();
    announce(`${tag} removed`);
    this.input.focus();
  }

  #draw() {
    this.#list.hidden = !this.#tags.length;
    this.#list.replaceChildren(
      ...this.#tags.map((tag, i) => {
        const button = el("button", { type: "button", "aria-label": `Remove tag ${tag}`, onclick: () => this.#remove(i) }, icon("close"));
        return el("li", { class: "chip removable" }, el("span", { text: tag }), button);
      }),
    );
  }
}

/** Splits "dog, bark" into ["dog", "bark"]. */
export const splitTags = (text) => [...new Set(text.split(/[,;\n]/).map((tag) => tag.trim()).filter(Boolean))];
