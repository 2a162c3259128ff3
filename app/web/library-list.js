// The paginated list of clips: play, open, edit and delete them by pointer or keyboard.

import { download, draggable, get, json, previewUrl, soundUrl } from "./api.js";
import { $, announce, clock, el, icon, setCurrent } from "./dom.js";
import { levelOf } from "./levels.js";
import { collectionsOf, FAVOURITES, isFavourite } from "./many.js";
import { playback, switchPlayback } from "./playback.js";
import { Player } from "./player.js";
import { Selection } from "./selection.js";

const PAGE = 50;
const MAX_FOUND = 1000; // when searching by words: the API's limit
const SHOWN_TAGS = 5;
const TAGS = ["tags", "category", "subcategory", "label", "genre"];
const TEXTS = ["title", "description", "artist", "author", "path"]; // the first two present are shown

export class ClipList {
  #list;
  #on;
  #rows = [];
  #query = null;
  #cursor = null;
  #pending = new AbortController();

  /**
   * @param {HTMLElement} list  @param {HTMLButtonElement} select  the button that shows check boxes
   * @param {{open: (clip: any) => void, edit: (clip: any) => Promise<any | null>, remove: (clips: any[]) => void,
   *          many: import("./many.js").Many,
   *          filter: (key: string, value: string) => void, teach: (clip: any) => void, letters: () => boolean, leave: () => void,
   *          isGoing: (id: string) => boolean}} on
   *   `leave`: focus moves up out of the list; `isGoing`: whether a clip is being deleted and must be hidden
   */
  constructor(list, select, on) {
    this.#list = list;
    this.#on = on;
    this.selection = new Selection(list, select, { rows: () => this.#rows, clipOf: ({ clip }) => clip, actions: on.many.actions(on.remove) });
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", ({ target }) => setCurrent(this.#rows, this.#rowOf(target)));
  }

  get length() {
    return this.#rows.length;
  }

  /** Whether more clips are available. */
  get more() {
    return this.#cursor !== null;
  }

  /**
   * Shows the first page of a query, or as many clips as are shown now if the query is unchanged.
   * @param {{words: string, sort: string, filter: Record<string, any>}} query
   */
  async load(query) {
    const same = JSON.stringify(query) === JSON.stringify(this.#query);
    const clips = await this.#fetch(query, null, same ? Math.max(PAGE, this.#rows.length) : PAGE);
    if (!clips) return;
    const focused = this.#rowOf(document.activeElement)?.clip.id;
    const kept = new Map(this.#rows.map((row) => [row.clip.id, row]));
    const rows = clips.map((clip) => {
      const row = kept.get(clip.id);
      kept.delete(clip.id);
      if (row && JSON.stringify(row.clip) === JSON.stringify(clip)) return row;
      row?.player.destroy();
      return this.#row(clip);
    });
    for (const row of kept.values()) row.player.destroy();
    this.#rows = rows;
    this.#list.replaceChildren(...rows.map(({ item }) => item));
    this.#query = query;
    this.selection.show();
    setCurrent(this.#rows, rows.find(({ clip }) => clip.id === focused) ?? rows[0]);
    if (focused) (rows.find(({ clip }) => clip.id === focused) ?? rows[0])?.link.focus();
  }

  /** Appends the next page and focuses its first clip. */
  async loadMore() {
    const [query, before] = [this.#query, this.#rows.length];
    const clips = await this.#fetch(query, this.#cursor, PAGE);
    if (!clips) return;
    const there = new Set(this.#rows.map(({ clip }) => clip.id));
    for (const clip of clips) if (!there.has(clip.id)) this.#rows.push(this.#row(clip));
    this.#list.append(...this.#rows.slice(before).map(({ item }) => item));
    this.selection.show();
    this.#rows[before]?.link.focus();
    announce(`${this.#rows.length} shown`);
  }

  /** Removes clips from the list; focus moves to the neighbour of the first. */
  take(ids) {
    const index = this.#rows.findIndex(({ clip }) => ids.includes(clip.id));
    if (index < 0) return;
    const gone = this.#rows.filter(({ clip }) => ids.includes(clip.id));
    const focused = document.activeElement === document.body || $("selection").contains(document.activeElement) || this.#list.contains(document.activeElement);
    this.#rows = this.#rows.filter((row) => !gone.includes(row));
    for (const { player, item } of gone) {
      player.pause();
      item.remove();
    }
    const next = this.#rows[index] ?? this.#rows.at(-1);
    if (!this.#rows.some(({ link }) => link.tabIndex === 0)) setCurrent(this.#rows, next);
    this.selection.show();
    if (!focused) return;
    if (next) next.link.focus();
    else this.#on.leave();
  }

  pause() {
    for (const { player } of this.#rows) player.pause();
  }

  focus(index) {
    const row = this.#rows.at(index);
    row?.link.focus();
    row?.item.scrollIntoView({ block: "nearest" });
    return Boolean(row);
  }

  /** Focuses a clip, if it is shown. */
  focusClip(id) {
    return this.focus(this.#rows.findIndex(({ clip }) => clip.id === id));
  }

  /** Fetches clips from a cursor on, without those being deleted; null if a later call superseded this one. */
  async #fetch({ words, sort, filter }, cursor, limit) {
    this.#pending.abort();
    this.#pending = new AbortController();
    const { signal } = this.#pending;
    const some = Object.keys(filter).length > 0;
    try {
      let clips;
      if (words) {
        const k = Math.min((cursor ?? 0) + limit, MAX_FOUND);
        const body = { query: words, mode: "lexical", k, ...(some && { filter }) };
        const { hits } = await json("/search", { body, signal });
        clips = hits.map(({ clip }) => clip).slice(cursor ?? 0);
        this.#cursor = hits.length === k && k < MAX_FOUND ? k : null;
      } else {
        clips = [];
        let next = cursor;
        do {
          const left = Math.min(limit - clips.length, 1000);
          const page = await get("/clips", { limit: left, cursor: next, sort, filter: some ? JSON.stringify(filter) : null }, { signal });
          clips.push(...page.clips);
          next = page.next_cursor;
        } while (next !== null && clips.length < limit);
        this.#cursor = next;
      }
      return clips.filter(({ id }) => !this.#on.isGoing(id));
    } catch (error) {
      if (error.name === "AbortError") return null;
      throw error;
    }
  }

  #row(clip) {
    const link = el("a", { class: "title", href: `?open=${encodeURIComponent(clip.id)}`, tabindex: -1 }, el("span", { class: "name", text: clip.filename }));
    const play = el("button", { type: "button", class: "round play", tabindex: -1 }, icon("play"));
    const time = el("span", { class: "time", text: clock(clip.duration) });
    const action = (name, label, title, act) =>
      el("button", { type: "button", class: "ghost round", "aria-label": label, title, tabindex: -1, onclick: act }, icon(name));
    const edit = action("edit", `Edit ${clip.filename}`, "Edit (E)", () => this.#edit(row));
    const remove = action("trash", `Delete ${clip.filename}`, "Delete (Del)", () => this.#on.remove([row.clip]));
    const star = action("star", `Favourite ${clip.filename}`, "Favourite (F)", () => this.#on.many.favourite([row.clip]));
    star.setAttribute("aria-pressed", String(isFavourite(clip)));
    const tags = chips(clip, this.#on.filter);
    const texts = TEXTS.map((key) => clip.metadata[key]).filter((value) => typeof value === "string" && value);
    const about = el("div", { class: "about" }, time, ...tags, ...texts.slice(0, 2).map((text) => el("span", { class: "text", text })));
    const item = el(
      "li",
      { class: "clip", role: "row", dataset: { clip: clip.id } },
      el("div", { role: "cell" }, this.selection.box(clip), play),
      el("div", { class: "info", role: "cell" }, link, about),
      el("span", { class: "length", role: "cell", text: clock(clip.duration) }),
      el("span", { class: "format", role: "cell", text: formatOf(clip) }),
      el("span", { class: "date", role: "cell", text: dateOf(clip), title: new Date(clip.created).toLocaleString() }),
      el("div", { class: "tools", role: "cell" }, star, edit, remove),
    );
    const player = new Player({
      src: () => soundUrl(clip.id),
      fallback: () => previewUrl(clip.id),
      level: () => levelOf(clip.id),
      duration: clip.duration,
      onTime: (t) => item.style.setProperty("--played", t / clip.duration),
      onState: (state, error) => changed(row, state, error),
    });
    const row = { clip, item, link, play, player, controls: [play, link, ...tags, star, edit, remove] };
    changed(row, "paused");
    draggable(link, clip);
    play.addEventListener("click", () => player.toggle());
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.#on.open(row.clip);
    });
    return row;
  }

  async #edit(row) {
    row.player.pause();
    const saved = await this.#on.edit(row.clip);
    const here = this.#rows.indexOf(row);
    if (saved && here >= 0) {
      const fresh = this.#row(saved);
      row.player.destroy();
      row.item.replaceWith(fresh.item);
      this.#rows[here] = fresh;
      setCurrent(this.#rows, fresh);
      this.selection.show();
    }
    this.#rows[here]?.link.focus();
  }

  #rowOf(node) {
    const item = node?.closest?.("li.clip");
    return this.#rows.find((row) => row.item === item);
  }

  #key(event) {
    const row = this.#rowOf(event.target);
    if (this.selection.key(event, row, this.#on.letters())) return;
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const several = this.selection.size > 0;
    const chosen = several ? this.selection.clips : [row.clip];
    const keys = {
      ArrowDown: () => this.#move(row, 1),
      ArrowUp: () => this.#move(row, -1),
      Home: () => this.focus(0),
      End: () => this.focus(-1),
      Delete: () => this.#on.remove(chosen),
      ...(event.target === row.link && { " ": () => row.player.toggle() }),
      ...(this.#on.letters() && {
        e: () => this.#edit(row),
        t: () => (several ? this.#on.many.teach(chosen) : this.#on.teach(row.clip)),
        l: () => switchPlayback("loop"),
        f: () => this.#on.many.favourite(chosen),
        c: () => this.#on.many.collect(chosen),
        d: () => (several ? this.#on.many.download(chosen) : download(row.clip)),
      }),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Moves to another clip; if one is playing, the new one plays. */
  #move(row, step) {
    const index = this.#rows.indexOf(row) + step;
    if (index < 0) return this.#on.leave();
    if (!this.#rows[index]) return;
    const playing = row.player.playing;
    this.focus(index);
    if (playing || playback.follows) this.#rows[index].player.play(0);
  }
}

function changed(row, state, error) {
  const playing = state === "playing";
  row.item.classList.toggle("playing", playing);
  row.play.replaceChildren(icon(playing ? "pause" : "play"));
  row.play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${row.clip.filename}`);
  row.item.querySelector(".problem")?.remove();
  if (state !== "failed") return;
  row.item.querySelector(".info").append(el("p", { class: "problem wrong", text: error.message }));
  announce(`${row.clip.filename}: ${error.message}`);
}

function chips(clip, filter) {
  const { metadata } = clip;
  const collections = collectionsOf(clip).filter((name) => name !== FAVOURITES).map((value) => ({ key: "collections", value }));
  const all = [...collections, ...TAGS.flatMap((key) => [metadata[key]].flat().map((value) => ({ key, value })))];
  const tags = all.filter(({ value }) => typeof value === "string" && value);
  const shown = tags.slice(0, SHOWN_TAGS).map(({ key, value }) =>
    el("button", { type: "button", class: `chip ${key}`, tabindex: -1, title: `Only ${key}: ${value}`, onclick: () => filter(key, value) }, el("span", { text: value })),
  );
  return shown;
}

function formatOf({ sample_rate, channels }) {
  return `${(sample_rate / 1000).toLocaleString("en")} kHz ${{ 1: "mono", 2: "stereo" }[channels] ?? `${channels} ch`}`;
}

const dateOf = ({ created }) => new Date(created).toLocaleDateString([], { dateStyle: "medium" });
