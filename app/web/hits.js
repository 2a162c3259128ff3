// The list of search results with keyboard navigation: each has its waveform, matching moments, score and tags. A line
// separates results that match from less likely ones.

import { draggable, previewUrl, soundUrl } from "./api.js";
import { announce, clock, el, icon, setCurrent } from "./dom.js";
import { levelOf } from "./levels.js";
import { cachedPeaks, peaksOf } from "./peaks.js";
import { isFavourite } from "./many.js";
import { byPointer, selectable } from "./selecting.js";
import { playback, switchPlayback } from "./playback.js";
import { Selection } from "./selection.js";
import { seekStep, Wave } from "./sound.js";

/**
 * `match`: whether it is a match, or null if the service makes no claim; `example`: in which list of examples it is, or
 * undefined if the search takes none; `reasons`: why it is found, with the query's words in it.
 * @typedef {{clip: any, score?: number, similarity?: number, match?: boolean | null, example?: "more" | "less" | null,
 *           reasons?: {kind: string, words: string[]}[],
 *           moments?: {start: number, end: number, score: number}[]}} Hit
 */

const TAGS = ["tags", "category", "subcategory", "label", "genre"]; // metadata shown as filter buttons
const SHOWN_TAGS = 4;
const ABOUT = ["title", "description"];
const CREATORS = ["artist", "author", "creator", "designer", "originator"];
const RIGHTS = ["license", "licence"];
const IDENTICAL = 0.9995; // similarity of the same sound

export class HitList {
  #list;
  #on;
  #rows = [];
  #pending = new AbortController();
  #watch = null;
  #divider = el("li", { class: "divider", text: "Less likely" });

  /**
   * @param {HTMLOListElement} list  @param {HTMLButtonElement} select  the button that shows check boxes
   * @param {{open: (hit: Hit) => void, similar: (hit: Hit) => void, download: (hit: Hit) => void,
   *          teach: (hit: Hit, stretch: {start: number, end: number} | null) => void,
   *          example: (hit: Hit, which: "more" | "less") => void, filter: (key: string, value: any) => void,
   *          leave: () => void, used: () => void, letters: () => boolean, many: import("./many.js").Many,
   *          remove: (clips: any[]) => void}} on
   *   `leave`: focus moves up out of the list; `used`: a hit was played or opened.
   */
  constructor(list, select, on) {
    this.#list = list;
    this.#on = on;
    this.selection = new Selection(list, select, { rows: () => this.#rows, clipOf: ({ hit }) => hit.clip, actions: on.many.actions(on.remove) });
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", ({ target }) => setCurrent(this.#rows, this.#rowOf(target)));
  }

  get hits() {
    return this.#rows.map(({ hit }) => hit);
  }

  /** Shows hits, those that match first. If they extend the current ones, as when `k` grew, existing rows are kept. */
  show(hits) {
    const focused = this.#list.contains(document.activeElement);
    const current = this.#rowOf(document.activeElement)?.hit.clip.id;
    const same = this.#rows.findIndex((row, i) => !hits[i] || id(row.hit) !== id(hits[i]));
    const keep = same === -1 && hits.length >= this.#rows.length ? this.#rows.length : 0;
    if (!keep) this.clear();
    const fresh = hits.slice(keep).map((hit) => this.#row(hit));
    this.#list.append(...fresh.map(({ item }) => item));
    this.#rows.push(...fresh);
    this.#watch ??= new IntersectionObserver((seen) => this.#seen(seen), { rootMargin: "200px" });
    for (const { item } of fresh) this.#watch.observe(item);
    const unlikely = hits.findIndex(({ match }) => match === false);
    if (unlikely > 0) this.#rows[unlikely].item.before(this.#divider);
    else this.#divider.remove();
    if (this.#rows.length && !this.#rows.some(({ link }) => link.tabIndex === 0)) setCurrent(this.#rows, this.#rows[0]);
    this.selection.show();
    if (!focused || keep) return;
    const there = this.#rows.find(({ hit }) => hit.clip.id === current) ?? this.#rows[0];
    (there?.link ?? this.#list).focus();
  }

  clear() {
    this.#pending.abort();
    this.#pending = new AbortController();
    this.#watch?.disconnect();
    for (const { wave } of this.#rows) wave.destroy();
    this.#rows = [];
    this.#list.replaceChildren();
  }

  /** Removes clips that are being deleted; focus moves to the neighbour of the first. */
  take(ids) {
    const index = this.#rows.findIndex(({ hit }) => ids.includes(hit.clip.id));
    const gone = this.#rows.filter(({ hit }) => ids.includes(hit.clip.id));
    this.#rows = this.#rows.filter((row) => !gone.includes(row));
    for (const { wave, item } of gone) {
      wave.destroy();
      item.remove();
    }
    this.selection.show();
    const next = this.#rows[index] ?? this.#rows.at(-1);
    setCurrent(this.#rows, next);
    if (next) next.link.focus();
    else this.#on.leave();
  }

  pause() {
    for (const { wave } of this.#rows) wave.pause();
  }

  /** Focuses a hit: 0 for the first, -1 for the last. Returns false if there is none. */
  focus(index) {
    const row = this.#rows.at(index);
    row?.link.focus();
    row?.item.scrollIntoView({ block: "nearest" });
    return Boolean(row);
  }

  #seen(entries) {
    for (const { isIntersecting, target } of entries) {
      const row = isIntersecting && this.#rows.find(({ item }) => item === target);
      if (!row) continue;
      this.#watch.unobserve(target);
      peaksOf(row.hit.clip.id, this.#pending.signal).then(
        (peaks) => row.wave.setPeaks(peaks),
        (error) => error.name !== "AbortError" && row.item.classList.add("no-wave"),
      );
    }
  }

  #row(hit) {
    const { clip, match, example, moments } = hit;
    const best = moments?.[0];
    const wordsIn = (...kinds) => (hit.reasons ?? []).filter(({ kind }) => kinds.includes(kind)).flatMap(({ words }) => words);
    const name = el("span", { class: "name" }, ...marked(clip.filename, wordsIn("name")));
    const link = el("a", { class: "title", href: `?open=${encodeURIComponent(clip.id)}`, tabindex: -1 }, name);
    const play = el("button", { type: "button", class: "round play", tabindex: -1 }, icon("play"));
    const time = el("span", { class: "time", text: clock(clip.duration) });
    const stage = el("div", { class: "stage" });
    const star = action("star", `Favourite ${clip.filename}`, "Favourite (F)");
    star.setAttribute("aria-pressed", String(isFavourite(clip)));
    star.addEventListener("click", () => this.#on.many.favourite([clip]));
    const similar = action("similar", `Find sounds like ${clip.filename}`, "Find similar sounds (S)");
    const download = action("download", `Download ${clip.filename}`, "Download (D)");
    const teach = action("concept", `Teach from ${clip.filename}`, "Teach from this (T)");
    teach.classList.add("teaches");
    const examples = example === undefined ? [] : [this.#example(hit, "more"), this.#example(hit, "less")];
    const tags = this.#tags(clip, wordsIn("tags", "metadata"));
    const about = aboutOf(clip);
    const texts = (hit.reasons ? about.slice(-1) : about).map((text, i) => el("span", { class: tags && !i ? "text first" : "text", text }));
    const facts = el("div", { class: "about" }, time, reasonsOf(hit), tags, ...texts);
    const item = el(
      "li",
      { class: match === false ? "hit unlikely" : "hit", dataset: { clip: clip.id } },
      this.selection.box(clip),
      play,
      el("div", { class: "info" }, link, facts),
      stage,
      meter(hit),
      el("div", { class: "tools" }, ...examples, star, similar, teach, download),
    );
    const wave = new Wave(stage, {
      light: true,
      src: () => soundUrl(clip.id),
      fallback: () => previewUrl(clip.id),
      level: () => levelOf(clip.id),
      duration: clip.duration,
      peaks: cachedPeaks(clip.id),
      regions: moments ?? [],
      height: 44,
      label: `Waveform of ${clip.filename}${best ? `; best moment ${clock(best.start)} to ${clock(best.end)}` : ""}`,
      onSeek: () => {
        this.#play(row, null);
        link.focus({ preventScroll: true }); // a click on the waveform leaves the keys, such as Space, to this hit
      },
      onTime: (t) => {
        time.textContent = row.touched ? `${clock(Math.min(t, clip.duration))} of ${clock(clip.duration)}` : clock(clip.duration);
      },
      onState: (state, error) => this.#changed(row, state, error),
    });
    const row = { hit, item, link, play, wave, touched: false, selected: null, controls: [play, ...examples, star, similar, teach, download, link] };
    row.controls.push(...item.querySelectorAll(".tags button"));
    this.#changed(row, "paused");
    play.addEventListener("click", () => this.#toggle(row));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.#on.used();
      this.#on.open(hit);
    });
    draggable(link, clip);
    if (best) draggable(stage, clip, () => best);
    this.#selectable(row, stage);
    similar.addEventListener("click", () => this.#on.similar(hit));
    teach.addEventListener("click", () => this.#on.teach(hit, row.selected));
    download.addEventListener("click", () => this.#on.download(hit));
    return row;
  }

  /** A drag over the waveform selects a stretch; where it takes the best moment along, only with Shift. */
  #selectable(row, stage) {
    const { wave, hit } = row;
    const drags = ({ shiftKey }) => shiftKey || !stage.draggable;
    stage.addEventListener("dragstart", (event) => drags(event) && (event.preventDefault(), event.stopImmediatePropagation()), true);
    selectable(stage, {
      at: (x) => wave.timeAt(x),
      when: (event) => byPointer(event) && drags(event),
      onSelect: (stretch) => {
        row.selected = stretch;
        wave.setRegions([...(hit.moments ?? []), { ...stretch, selected: true }]);
        row.link.focus({ preventScroll: true });
      },
    });
  }

  #example(hit, which) {
    const [word, name, key] = which === "more" ? ["More", "plus", "+"] : ["Less", "minus", "−"];
    const button = action(name, `${word} like ${hit.clip.filename}`, `${word} like this (${key})`);
    button.classList.add("example");
    button.setAttribute("aria-pressed", String(hit.example === which));
    button.addEventListener("click", () => this.#on.example(hit, which));
    return button;
  }

  #tags(clip, words) {
    const all = TAGS.flatMap((key) => [clip.metadata[key]].flat().map((value) => ({ key, value })));
    const tags = all.filter(({ value }) => typeof value === "string" && value).slice(0, SHOWN_TAGS);
    if (!tags.length) return null;
    const chips = tags.map(({ key, value }) => {
      const about = { type: "button", class: "chip", tabindex: -1, title: `Only ${key}: ${value}` };
      const chip = el("button", about, el("span", {}, ...marked(value, words)));
      chip.addEventListener("click", () => this.#on.filter(key, value));
      return chip;
    });
    return el("div", { class: "tags" }, ...chips);
  }

  /** Plays from the best moment, resumes, or pauses. */
  #toggle(row) {
    const { wave, hit } = row;
    if (wave.playing) return wave.pause();
    const best = hit.moments?.[0];
    const ended = wave.time >= wave.duration - 0.05 || (playback.stops && best && wave.time > best.end - 0.05 && wave.time < best.end + 0.5);
    if (row.touched && !ended) this.#play(row, null);
    else this.#play(row, best?.start ?? 0, best);
  }

  /** Plays from a position, or on; with `moment` to its end, if that is set. */
  #play(row, from, moment = null) {
    row.touched = true;
    this.#on.used();
    setCurrent(this.#rows, row);
    row.wave.play(from ?? undefined, playback.stops && moment ? moment.end : undefined);
  }

  #changed(row, state, error) {
    const playing = state === "playing";
    const best = row.hit.moments?.[0];
    row.item.classList.toggle("playing", playing);
    row.play.replaceChildren(icon(playing ? "pause" : "play"));
    const from = best && !row.touched ? ` from ${clock(best.start)}` : "";
    row.play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${row.hit.clip.filename}${from}`);
    if (state !== "failed") return;
    row.item.querySelector(".problem")?.remove();
    row.item.querySelector(".info").append(el("p", { class: "problem wrong", text: error.message }));
    announce(`${row.hit.clip.filename}: ${error.message}`);
  }

  #rowOf(node) {
    const item = node.closest?.("li.hit");
    return this.#rows.find((row) => row.item === item);
  }

  #key(event) {
    const row = this.#rowOf(event.target);
    if (this.selection.key(event, row, this.#on.letters())) return;
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const letters = this.#on.letters();
    const several = this.selection.size > 0;
    const chosen = several ? this.selection.clips : [row.hit.clip];
    const seek = (sign) => {
      row.touched = true;
      row.wave.seek(row.wave.time + sign * seekStep(row.wave.duration) * (event.shiftKey ? 4 : 1));
    };
    const keys = {
      ArrowDown: () => this.#move(row, 1),
      ArrowUp: () => this.#move(row, -1),
      Home: () => this.focus(0),
      End: () => this.focus(-1),
      ArrowLeft: () => seek(-1),
      ArrowRight: () => seek(1),
      ...(several && { Delete: () => this.#on.remove(chosen) }),
      ...(event.target === row.link && { " ": () => this.#toggle(row) }),
      ...(letters && {
        "[": () => this.#moment(row, -1),
        "]": () => this.#moment(row, 1),
        s: () => this.#on.similar(row.hit),
        d: () => (several ? this.#on.many.download(chosen) : this.#on.download(row.hit)),
        t: () => (several ? this.#on.many.teach(chosen) : this.#on.teach(row.hit, row.selected)),
        l: () => switchPlayback("loop"),
        f: () => this.#on.many.favourite(chosen),
        c: () => this.#on.many.collect(chosen),
        ...(row.hit.example !== undefined && {
          "+": () => this.#on.example(row.hit, "more"),
          "-": () => this.#on.example(row.hit, "less"),
        }),
      }),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Moves to another hit; if one is playing, the new one plays, so the arrow keys alone audition the list. */
  #move(row, step) {
    const index = this.#rows.indexOf(row) + step;
    if (index < 0) return this.#on.leave();
    const next = this.#rows[index];
    if (!next) return;
    this.focus(index);
    const best = next.hit.moments?.[0];
    if (row.wave.playing || playback.follows) this.#play(next, best?.start ?? 0, best);
  }

  /** Plays the previous or next moment in time. */
  #moment(row, step) {
    const moments = [...(row.hit.moments ?? [])].sort((a, b) => a.start - b.start);
    const here = row.wave.time;
    const to = step > 0 ? moments.find(({ start }) => start > here + 0.05) : moments.findLast(({ start }) => start < here - 0.25);
    if (to) this.#play(row, to.start, to);
  }
}

const id = ({ clip, score, match, example, moments }) =>
  JSON.stringify([clip.id, clip.filename, clip.metadata, score, match, example === undefined, example, moments?.[0]?.start]);

const KINDS = { name: "name", tags: "tag", metadata: "description", sound: "sound" };

/** Why a hit is there: "by name and sound", "by a moment at 12.3 s"; null if it isn't the answer to a question. */
function reasonsOf({ reasons, moments }) {
  if (!reasons?.length) return null;
  const at = moments?.length ? ` at ${clock(moments[0].start)}` : "";
  const kinds = reasons.map(({ kind }) => (kind === "moment" ? `a moment${at}` : KINDS[kind]));
  const last = kinds.pop();
  const words = reasons.filter(({ words }) => words.length).map(({ kind, words }) => `${KINDS[kind]}: ${words.join(", ")}`);
  return el("span", { class: "why", title: words.join("; ") || null, text: `by ${kinds.length ? `${kinds.join(", ")} and ` : ""}${last}` });
}

/** A text with the words in it marked. @returns {(Node | string)[]} */
function marked(text, words) {
  if (!words.length) return [text];
  const any = [...words].sort((a, b) => b.length - a.length); // letters and digits only
  return text.split(new RegExp(`(${any.join("|")})`, "giu")).map((part, i) => (i % 2 ? el("mark", { text: part }) : part));
}

/** The score as a number and as a bar, or null without one. */
function meter({ score, similarity, match }) {
  if (score === undefined) return null;
  const about = similarity === undefined ? null : `similarity ${similarity.toFixed(3)}`;
  const bar = el("span", { class: "bar" });
  bar.style.setProperty("--share", score);
  const label = el("span", { class: "unseen", text: match === false ? "less likely, score " : "score " });
  return el("span", { class: "score", title: about }, label, scoreText(score, similarity), bar);
}

/** Two decimals, or three near 1, where two would show different sounds as equal. Only the same sound has 1.00. */
function scoreText(score, similarity) {
  if (score < 0.99 || similarity >= IDENTICAL) return score.toFixed(2);
  return (Math.min(Math.floor(score * 1000), 999) / 1000).toFixed(3);
}

function action(name, label, title) {
  return el("button", { type: "button", class: "ghost round", "aria-label": label, title, tabindex: -1 }, icon(name));
}

/** The description, creator and licence that fit on a line. */
function aboutOf({ metadata }) {
  const first = (keys) => keys.map((key) => metadata[key]).find((value) => typeof value === "string" && value);
  return [first(ABOUT), first(CREATORS), first(RIGHTS)].filter(Boolean);
}
