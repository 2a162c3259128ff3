// Near-duplicates in the Library tab: groups of clips with the same recording, of which one is kept.

import { get, json, previewUrl, soundUrl } from "./api.js";
import { $, announce, clock, count, el, icon, showMessage } from "./dom.js";
import { levelOf } from "./levels.js";
import { collectionsOf, tagsOf } from "./many.js";
import { Player } from "./player.js";

const quality = ({ sample_rate, channels, duration }) => [sample_rate * Math.min(channels, 2), duration];

/** The clip of a group that is best kept: most samples, then the longest, then the oldest. */
function best(group) {
  return group.reduce((kept, clip) => {
    const [a, b] = [quality(kept), quality(clip)];
    return b[0] > a[0] || (b[0] === a[0] && b[1] > a[1]) ? clip : kept;
  });
}

export class Duplicates {
  #shell;
  #changed;
  #players = [];
  #groups = []; // {clips, kept, node}

  /** @param {import("./main.js").Shell} shell  @param {() => void} changed  sounds are being deleted */
  constructor(shell, changed) {
    this.#shell = shell;
    this.#changed = changed;
    $("duplicates-find").addEventListener("click", () => this.#find());
    $("duplicates-close").addEventListener("click", () => {
      this.#clear();
      $("duplicates").hidden = true;
      $("duplicates-find").focus();
    });
    $("duplicates-all").addEventListener("click", () => this.#resolve([...this.#groups]));
  }

  pause() {
    for (const player of this.#players) player.pause();
  }

  async #find() {
    $("duplicates").hidden = false;
    $("duplicates-find").disabled = true;
    showMessage($("duplicates-message"), "Comparing all sounds …");
    this.#clear();
    try {
      const { groups } = await get("/clips/duplicates");
      const open = groups.map((clips) => clips.filter(({ id }) => !this.#shell.deletions.has(id))).filter((clips) => clips.length > 1);
      for (const clips of open) this.#add(clips);
      this.#describe();
    } catch (error) {
      showMessage($("duplicates-message"), error.message, true);
    }
    $("duplicates-find").disabled = false;
  }

  #clear() {
    for (const player of this.#players) player.destroy();
    this.#players = [];
    this.#groups = [];
    $("duplicate-groups").replaceChildren();
    $("duplicates-all").hidden = true;
  }

  #describe() {
    const n = this.#groups.length;
    const text = n ? `${count(n, "recording")} ${n === 1 ? "is" : "are"} there more than once. Choose which file to keep.` : "No recording is there twice.";
    showMessage($("duplicates-message"), text);
    announce(text);
    $("duplicates-all").hidden = n < 2;
  }

  #add(clips) {
    const number = this.#groups.length;
    const group = { clips, kept: best(clips), node: null };
    const rows = clips.map((clip) => this.#row(clip, group, `duplicate-${number}`));
    const remove = el("button", { type: "button", onclick: () => this.#resolve([group]) }, icon("trash"), `Delete the other${clips.length > 2 ? "s" : ""}`);
    const keep = el("button", { type: "button", class: "ghost", text: "Keep all", onclick: () => this.#drop(group) });
    const choice = el("div", { role: "radiogroup", "aria-label": `Keep one of ${count(clips.length, "file")}` }, ...rows);
    group.node = el("li", {}, choice, el("div", { class: "row" }, remove, keep));
    this.#groups.push(group);
    $("duplicate-groups").append(group.node);
  }

  #row(clip, group, name) {
    const radio = el("input", { type: "radio", name, onchange: () => (group.kept = clip) });
    radio.checked = clip === group.kept;
    const play = el("button", { type: "button", class: "round play", "aria-label": `Play ${clip.filename}` }, icon("play"));
    const player = new Player({
      src: () => soundUrl(clip.id),
      fallback: () => previewUrl(clip.id),
      level: () => levelOf(clip.id),
      duration: clip.duration,
      onState: (state, error) => {
        play.replaceChildren(icon(state === "playing" ? "pause" : "play"));
        play.setAttribute("aria-label", `${state === "playing" ? "Pause" : "Play"} ${clip.filename}`);
        if (state === "failed") showMessage($("duplicates-message"), `${clip.filename}: ${error.message}`, true);
      },
    });
    play.addEventListener("click", () => player.toggle());
    this.#players.push(player);
    const channels = { 1: "mono", 2: "stereo" }[clip.channels] ?? `${clip.channels} channels`;
    const facts = [clock(clip.duration), `${clip.sample_rate / 1000} kHz ${channels}`, clip.metadata.path].filter((fact) => typeof fact === "string");
    const text = el("span", { class: "texts" }, el("span", { class: "name", text: clip.filename }), el("span", { class: "about", text: facts.join(" · ") }));
    return el("div", { class: "duplicate" }, play, el("label", {}, radio, text));
  }

  /** Deletes all but the kept clip of each group, which takes over their tags and collections. */
  async #resolve(groups) {
    for (const group of groups) {
      const others = group.clips.filter((clip) => clip !== group.kept);
      const gather = (of) => [...new Set(others.flatMap(of))];
      const tags = gather(tagsOf);
      const collections = gather(collectionsOf);
      const add = { ...(tags.length && { tags }), ...(collections.length && { collections }) };
      try {
        if (Object.keys(add).length) await json(`/clips/${encodeURIComponent(group.kept.id)}`, { method: "PATCH", body: { add } });
      } catch (error) {
        return showMessage($("duplicates-message"), error.message, true);
      }
    }
    this.pause();
    this.#shell.deletions.add(groups.flatMap(({ clips, kept }) => clips.filter((clip) => clip !== kept)));
    for (const group of groups) this.#drop(group);
    this.#changed();
  }

  #drop(group) {
    const next = group.node.nextElementSibling ?? group.node.previousElementSibling;
    group.node.remove();
    this.#groups = this.#groups.filter((other) => other !== group);
    this.#describe();
    (next?.querySelector("input:checked") ?? $("duplicates-find")).focus();
  }
}
