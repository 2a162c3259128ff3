// The dialog "Teach from this": a stretch of a sound becomes an example of a concept, or of what the concept is not.

import { json } from "./api.js";
import { conceptOf, concepts, loadConcepts } from "./concept-names.js";
import { $, announce, clock, count, el, icon } from "./dom.js";
import { Excerpt } from "./excerpt.js";
import { levelOf } from "./levels.js";
import { MAX_LOCAL, partOfClip, partOfFile } from "./sounding.js";

const SHORTEST = 0.05; // seconds
const SHOWN = 8000; // ms that the page tells what was taught

let dialog = null;
let latest = ""; // the concept that was taught last

/**
 * What to teach from: a clip of the library, or a local file.
 * @typedef {{clip?: any, file?: File, name: string, duration: number, start?: number, end?: number, concept?: string}} Sound
 *   seconds; without `start` and `end` the whole sound; `concept`: the phrase of the concept that is likely meant
 */

/**
 * Opens the dialog. Resolves with the concept as it is then, or null.
 * @param {import("./main.js").Shell} shell  @param {Sound} sound
 */
export function teach(shell, sound) {
  if (sound.file && sound.duration > MAX_LOCAL) {
    const text = `Recordings over ${clock(MAX_LOCAL)} must be in the library before you can teach from them.`;
    notify(shell, text);
    return Promise.resolve(null);
  }
  dialog ??= document.body.appendChild(el("dialog", { class: "teach", "aria-labelledby": "teach-title" }));
  return new Promise((resolve) => {
    let taught = null;
    const form = new Form(sound, (concept, text) => {
      taught = concept;
      latest = concept.name;
      dialog.close();
      notify(shell, text, concept);
    });
    dialog.replaceChildren(form.node);
    const closed = () => {
      form.destroy();
      resolve(taught);
    };
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
    loadConcepts().catch(() => {}).finally(() => form.begin());
  });
}

/** Says what happened, with a button that shows the concept. */
function notify(shell, text, concept = null) {
  const notice = el("div", { class: "notice plain" }, el("p", { text }));
  const show = () => {
    notice.remove();
    document.querySelectorAll("dialog[open]").forEach((each) => each.close());
    shell.show("concepts", { params: { concept: concept.name } });
  };
  if (concept) notice.append(el("button", { type: "button", class: "undo", text: "Open the concept", onclick: show }));
  (document.querySelector("dialog[open]") ?? $("notices")).append(notice); // what is outside of a dialog is out of reach
  announce(text);
  setTimeout(() => notice.remove(), SHOWN);
}

class Form {
  #sound;
  #done;
  #excerpt;
  #name = field("teach-name", { required: true, maxlength: 100, placeholder: "our door bell", list: "teach-names", autocapitalize: "none" });
  #names = el("datalist", { id: "teach-names" });
  #about = el("p", { class: "hint", id: "teach-about" });
  #text = field("teach-text", { maxlength: 1000, placeholder: "a bell rings twice", autocapitalize: "none" });
  #textBox;
  #start;
  #end;
  #play = el("button", { type: "button", class: "round", "aria-label": "Play" }, icon("play"));
  #message = el("p", { class: "wrong", role: "alert" });
  #save = el("button", { class: "primary", text: "Teach" });

  /** @param {Sound} sound  @param {(concept: any, text: string) => void} done */
  constructor(sound, done) {
    this.#sound = sound;
    this.#done = done;
    const { duration, name } = sound;
    const stretch = { start: Math.max(sound.start ?? 0, 0), end: Math.min(sound.end ?? duration, duration) };
    const time = (id, value) => {
      const input = field(id, { type: "number", min: 0, max: ceil(duration), step: "any", required: true, inputmode: "decimal", value: round(value) });
      input.addEventListener("input", () => this.#timed());
      return input;
    };
    [this.#start, this.#end] = [time("teach-start", stretch.start), time("teach-end", stretch.end)];
    this.#excerpt = new Excerpt({
      part: sound.clip ? partOfClip(sound.clip.id) : partOfFile(sound.file),
      level: sound.clip ? () => levelOf(sound.clip.id) : undefined,
      duration,
      stretch,
      label: `Waveform and spectrogram of ${name}`,
      onSelect: ({ start, end }) => {
        [this.#start.value, this.#end.value] = [round(start), round(end)];
        this.#timed();
      },
      onState: (state, error) => {
        const playing = state === "playing";
        this.#play.replaceChildren(icon(playing ? "pause" : "play"));
        this.#play.setAttribute("aria-label", playing ? "Pause" : "Play");
        if (state === "failed") this.#message.textContent = error.message;
      },
    });
    this.#play.addEventListener("click", () => this.#excerpt.toggle());
    this.#name.addEventListener("input", () => this.#named());
    this.#name.setAttribute("aria-describedby", "teach-about");
    this.#textBox = labelled("In words, if there are any", this.#text);
    this.node = el(
      "form",
      { onsubmit: (event) => this.#submit(event) },
      el("div", { class: "dialog-head" }, el("h2", { id: "teach-title", text: `Teach from ${name}` }), closer()),
      this.#excerpt.node,
      el("div", { class: "row times" }, this.#play, labelled("From (s)", this.#start), labelled("to (s)", this.#end), el("p", { class: "hint", text: "or drag over the sound" })),
      el("div", {}, labelled("Concept", this.#name), this.#names, this.#about),
      this.#textBox,
      el("fieldset", { class: "segments" }, el("legend", { class: "unseen", text: "This sound is" }), answer("true", "Yes, it is this", true), answer("false", "No, it isn’t")),
      this.#message,
      el("div", { class: "actions" }, el("button", { type: "button", text: "Cancel", onclick: () => dialog.close() }), this.#save),
    );
  }

  /** Fills in the concept that is likely meant, when the concepts are known. */
  begin() {
    if (!this.node.isConnected) return;
    this.#names.replaceChildren(...concepts().map(({ name }) => el("option", { value: name })));
    const wanted = conceptOf(this.#sound.concept ?? "")?.name ?? (concepts().some(({ name }) => name === latest) ? latest : "");
    if (!this.#name.value && wanted) this.#name.value = wanted;
    this.#named();
    this.#name.focus();
    this.#name.select();
  }

  destroy() {
    this.#excerpt.destroy();
  }

  #known() {
    const name = this.#name.value.trim();
    return concepts().find((one) => one.name === name);
  }

  /** Says whether the concept is new. */
  #named() {
    const known = this.#known();
    this.#textBox.hidden = Boolean(known);
    const examples = known && count(known.positives + known.negatives, "example");
    const choose = concepts().length ? "Choose a concept, or name a new one." : "Name the sound.";
    this.#about.textContent = known ? `It has ${examples}.` : this.#name.value.trim() ? "A new concept." : choose;
  }

  #stretch() {
    return { start: Number(this.#start.value), end: Number(this.#end.value) };
  }

  #timed() {
    const { start, end } = this.#stretch();
    const wrong = !(this.#start.value && this.#end.value && start >= 0 && end - start >= SHORTEST && end <= ceil(this.#sound.duration));
    this.#end.setCustomValidity(wrong ? `The stretch must end after it begins, and within the ${clock(this.#sound.duration)} of the sound.` : "");
    if (!wrong && (start !== this.#excerpt.stretch.start || end !== this.#excerpt.stretch.end)) this.#excerpt.mark({ start, end });
  }

  async #submit(event) {
    event.preventDefault();
    this.#message.textContent = "";
    this.#save.disabled = true;
    const name = this.#name.value.trim();
    const label = this.node.elements.label.value === "true";
    try {
      const known = this.#known();
      const answer = this.#sound.clip ? await this.#sendStretch(known, name, label) : await this.#sendFile(known, name, label);
      const [problem] = answer.errors ?? [];
      if (problem) throw new Error(problem.problem.detail ?? problem.problem.title);
      const concept = known ? answer.concept : answer;
      await loadConcepts().catch(() => {});
      this.#done(concept, known ? `Added to “${name}”: ${count(concept.positives + concept.negatives, "example")}` : `“${name}” is a concept now`);
    } catch (error) {
      this.#message.textContent = error.errors?.[0]?.message ?? error.message;
    }
    this.#save.disabled = false;
  }

  #sendStretch(known, name, label) {
    const { start, end } = this.#stretch();
    const whole = start === 0 && end >= round(this.#sound.duration);
    const example = { clip_id: this.#sound.clip.id, label, ...(whole ? {} : { start, end }) };
    if (known) return json(`/concepts/${known.id}/examples`, { body: { examples: [example] } });
    return json("/concepts", { body: { name, examples: [example], ...this.#words() } });
  }

  async #sendFile(known, name, label) {
    const { start, end } = this.#stretch();
    const body = new FormData();
    const stem = this.#sound.name.replace(/\.[^.]*$/, "");
    const part = await partOfFile(this.#sound.file)(start, end);
    body.append(label ? "positive" : "negative", part, `${stem}_${start.toFixed(2)}s-${end.toFixed(2)}s.wav`);
    if (known) return json(`/concepts/${known.id}/examples`, { body });
    for (const [key, value] of Object.entries({ name, ...this.#words() })) body.append(key, value);
    return json("/concepts", { body });
  }

  #words() {
    const text = this.#text.value.trim();
    return text ? { text } : {};
  }
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;
const ceil = (seconds) => Math.ceil(seconds * 1000) / 1000;
const field = (id, attributes) => el("input", { id, autocomplete: "off", ...attributes });
const labelled = (text, input) => el("div", { class: "labelled" }, el("label", { for: input.id, text }), input);
const closer = () =>
  el("button", { type: "button", class: "ghost round", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
const answer = (value, text, checked = false) =>
  el("label", {}, el("input", { type: "radio", name: "label", value, checked }), el("span", { text }));
