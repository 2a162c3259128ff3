// The drawer with a clip's details: waveform, moments, file properties, metadata and actions. The URL parameter `open`
// holds the id of the open clip.

import { download, draggable, get, previewUrl, soundUrl } from "./api.js";
import { phrasesIn } from "./concept-names.js";
import { $, announce, clock, el, icon } from "./dom.js";
import { including } from "./filters.js";
import { levelOf } from "./levels.js";
import { selectable } from "./selecting.js";
import { spectrogramFits, Wave, wavesurfer } from "./sound.js";

const COLUMNS = 1600;
const HANDLES = [0, 0.5, 1, 2, 5]; // seconds
const ZOOM = 1.6; // per step

let open = null; // {clip, wave, moments, selected, …}

/**
 * Shows a clip, given as an object or by id. `moments` are highlighted, and playback starts at the first.
 * @param {import("./main.js").Shell} shell
 * @param {any | string} clip
 * @param {{start: number, end: number, score: number}[]} moments
 */
export async function openClip(shell, clip, moments = []) {
  const id = typeof clip === "string" ? clip : clip.id;
  if (open?.clip.id === id) return;
  const dialog = $("clip-dialog");
  close();
  shell.setParams({ open: id });
  prepare(dialog, shell);
  try {
    if (typeof clip === "string") clip = await get(`/clips/${encodeURIComponent(id)}`);
  } catch (error) {
    announce(error.message);
    dialog.replaceChildren(head(dialog, "Cannot show this sound"), el("p", { class: "wrong", text: error.message }));
    if (!dialog.open) dialog.showModal();
    return;
  }
  if (shell.params.get("open") !== id) return; // the user navigated back meanwhile
  build(dialog, shell, clip, moments);
  if (!dialog.open) dialog.showModal();
  open.wave.focus();
}

/** Highlights moments in the clip if it is open and has none. */
export function mark(clipId, moments) {
  if (open?.clip.id !== clipId || open.moments.length) return;
  open.moments = moments;
  showRegions();
  showMoments();
}

function showRegions() {
  open.wave.setRegions([...open.moments, ...(open.selected ? [{ ...open.selected, selected: true }] : [])]);
}

/** Selects a stretch; `start` or `end` alone moves one end of it. @param {{start?: number, end?: number}} stretch */
function select({ start, end }) {
  const { clip, selected } = open;
  const from = start ?? Math.min(selected?.start ?? 0, end);
  const to = end ?? Math.max(selected && selected.end > from ? selected.end : clip.duration, from);
  open.selected = { start: from, end: to };
  showRegions();
  open.showSelected();
}

/** Teaches from the selected stretch, or the best moment, or the whole clip. */
function teach(shell, stretch = open.selected ?? open.moments[0]) {
  const { clip, wave } = open;
  wave.pause();
  shell.teach({ clip, name: clip.filename, duration: clip.duration, start: stretch?.start, end: stretch?.end });
}

function key(shell, event) {
  if (!open || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !shell.letters()) return;
  if (event.target.matches("select, input")) return;
  const act = {
    i: () => select({ start: open.wave.time }),
    o: () => select({ end: open.wave.time }),
    t: () => teach(shell),
  }[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

function prepare(dialog, shell) {
  if (dialog.dataset.ready) return;
  dialog.dataset.ready = "yes";
  dialog.addEventListener("keydown", (event) => key(shell, event));
  dialog.addEventListener("close", () => {
    close();
    if (shell.params.has("open")) shell.setParams({ open: null });
  });
}

function close() {
  open?.wave.destroy();
  open = null;
}

function head(dialog, title) {
  const button = el("button", { type: "button", class: "ghost round", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  return el("div", { class: "dialog-head" }, el("h2", { id: "clip-title", text: title }), button);
}

function build(dialog, shell, clip, moments) {
  const stage = el("div", { class: "stage" });
  const toggle = el("button", { type: "button", class: "primary round", onclick: () => wave.toggle() });
  const time = el("output", { class: "time", "aria-label": "Position" });
  const message = el("p", { class: "wrong" });
  const selection = el("p", { class: "row selection", hidden: true });
  const list = el("ul", { class: "moments" });
  const zoom = el("span", { class: "zoom" });
  const pad = el("select", {}, ...HANDLES.map((s) => el("option", { value: String(s), text: s ? `${s} s` : "none" })));
  const handles = el("label", { class: "handles" }, "Handles around a downloaded moment ", pad);
  dialog.replaceChildren(
    head(dialog, clip.filename),
    stage,
    el("div", { class: "transport row" }, toggle, time, zoom),
    selection,
    message,
    el("section", { class: "moments-box", hidden: true }, el("h3", { text: "Best moments" }), list, handles),
    actions(dialog, shell, clip, message),
    facts(clip),
    metadata(dialog, shell, clip),
  );
  const showTime = (t) => (time.textContent = `${clock(Math.min(t, clip.duration))} / ${clock(clip.duration)}`);
  const wave = new Wave(stage, {
    src: () => soundUrl(clip.id),
    fallback: () => previewUrl(clip.id),
    level: () => levelOf(clip.id),
    duration: clip.duration,
    regions: moments,
    start: () => open?.moments[0]?.start ?? 0,
    height: 128,
    timeline: true,
    label: `Waveform of ${clip.filename}`,
    onTime: showTime,
    onSeek: (t) => wave.play(t),
    onState: (state, error) => {
      const playing = state === "playing";
      toggle.replaceChildren(icon(playing ? "pause" : "play"));
      toggle.setAttribute("aria-label", playing ? "Pause" : "Play");
      message.textContent = state === "failed" ? error.message : "";
    },
  });
  wave.focus = () => stage.focus({ preventScroll: true });
  open = { clip, wave, moments, selected: null, list, handles: () => Number(pad.value), showSelected: () => {} };
  open.teach = (stretch) => teach(shell, stretch);
  open.showSelected = () => showSelected(selection);
  selectable(stage, { at: (x) => wave.timeAt(x), onSelect: select });
  toggle.append(icon("play"));
  toggle.setAttribute("aria-label", "Play");
  showTime(0);
  showMoments();
  wavesurfer().then((there) => there && addViews(zoom, wave, stage, clip, message), () => {}); // without wavesurfer the plain canvas stays
  get(`/clips/${encodeURIComponent(clip.id)}/peaks`, { n: COLUMNS }).then(
    ({ peaks }) => open?.wave === wave && wave.setPeaks(peaks),
    (error) => open?.wave === wave && (message.textContent = error.message),
  );
}

/** The selected stretch, with buttons that play it, teach from it and forget it. */
function showSelected(place) {
  const { selected, wave, clip, handles } = open;
  place.hidden = !selected;
  if (!selected) return place.replaceChildren();
  const button = (name, text, act) => el("button", { type: "button", class: "ghost", onclick: act }, icon(name), text);
  place.replaceChildren(
    el("span", { class: "time", text: `Selected ${clock(selected.start)} – ${clock(selected.end)}` }),
    button("play", "Play", () => wave.play(selected.start, selected.end)),
    button("download", "Download", () => download(clip, selected, handles()).catch((error) => announce(error.message))),
    button("close", "Clear", () => {
      open.selected = null;
      showRegions();
      open.showSelected();
      wave.focus();
    }),
  );
}

function showMoments() {
  const { clip, moments, list, wave, handles } = open;
  list.parentElement.hidden = !moments.length;
  list.replaceChildren(
    ...moments.map(({ start, end, score }) => {
      const label = `${clock(start)} – ${clock(end)}`;
      const button = el("button", { type: "button", class: "chip", title: "Drag into an editor" }, icon("play"), el("span", { class: "unseen", text: "Play " }), label);
      if (score !== undefined) button.append(el("span", { class: "quiet", text: score.toFixed(2) }));
      button.addEventListener("click", () => wave.play(start, end));
      draggable(button, clip, () => ({ start, end }), handles);
      const take = `Download ${label}`;
      const save = el("button", { type: "button", class: "ghost round", "aria-label": take, title: take }, icon("download"));
      save.addEventListener("click", () => download(clip, { start, end }, handles()).catch((error) => announce(error.message)));
      const about = `Teach from ${label}`;
      const example = el("button", { type: "button", class: "ghost round", "aria-label": about, title: about }, icon("concept"));
      example.addEventListener("click", () => open.teach({ start, end }));
      return el("li", {}, button, save, example);
    }),
  );
}

/** Adds the zoom and spectrogram buttons, which need wavesurfer. */
function addViews(place, wave, stage, clip, message) {
  let scale = 1;
  const by = (factor) => () => {
    scale = Math.min(Math.max(scale * factor, 1), 400);
    wave.zoom(scale === 1 ? 0 : (stage.clientWidth / clip.duration) * scale);
  };
  const button = (text, label, factor) =>
    el("button", { type: "button", class: "ghost round", "aria-label": label, title: label, text, onclick: by(factor) });
  const toggle = el("button", { type: "button", class: "ghost", "aria-pressed": "false", text: "Spectrogram" });
  toggle.addEventListener("click", async () => {
    const wanted = toggle.getAttribute("aria-pressed") === "false";
    toggle.setAttribute("aria-pressed", String(wanted));
    try {
      await wave.spectrogram(wanted);
    } catch (error) {
      toggle.setAttribute("aria-pressed", "false");
      message.textContent = error.message;
    }
  });
  if (spectrogramFits(clip.duration)) place.append(toggle);
  place.append(button("−", "Zoom out", 1 / ZOOM), button("+", "Zoom in", ZOOM));
}

function actions(dialog, shell, clip, message) {
  const action = (name, text, act) => el("button", { type: "button", onclick: act }, icon(name), text);
  const go = (tab, params) => {
    shell.show(tab, { params });
    if (dialog.open) dialog.close();
  };
  return el(
    "div",
    { class: "row" },
    action("concept", "Teach from this", () => teach(shell)),
    action("similar", "Find similar", () => go("search", { like: clip.id })),
    shell.info?.model.frames === null
      ? null
      : action("detect", "Detect sounds in this clip", () => go("detect", { clip: clip.id, p: phrasesOf(shell) })),
    action("download", "Download", () => download(clip).catch((error) => (message.textContent = error.message))),
  );
}

/** The sounds of the current search, to detect them in a clip that it found. */
function phrasesOf(shell) {
  const sounds = phrasesIn(shell.params.get("q") ?? "", />/);
  return sounds.length ? sounds : null;
}

function facts(clip) {
  const channels = { 1: "mono", 2: "stereo" }[clip.channels] ?? `${clip.channels} channels`;
  const added = new Date(clip.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const pairs = [
    ["Duration", clock(clip.duration)],
    ["Format", `${(clip.sample_rate / 1000).toLocaleString("en")} kHz, ${channels}`],
    ["Added", added],
    ["ID", clip.id],
  ];
  return table("File", pairs.map(([name, value]) => [name, value, null]));
}

function metadata(dialog, shell, clip) {
  const rows = Object.entries(clip.metadata).map(([key, value]) => {
    const plain = ["string", "number", "boolean"].includes(typeof value);
    const only = (one) => {
      const filter = JSON.stringify(including({}, key, one));
      shell.show("search", { params: { filter } });
      if (dialog.open) dialog.close();
    };
    const chips = Array.isArray(value) && value.every((each) => typeof each === "string");
    if (chips) return [key, el("span", { class: "chips" }, ...value.map((one) => filterButton(key, one, only))), null];
    return [key, plain ? linked(String(value)) : JSON.stringify(value), plain ? () => only(value) : null];
  });
  return rows.length ? table("Metadata", rows) : null;
}

const filterButton = (key, value, only) =>
  el("button", { type: "button", class: "chip", title: `Only ${key}: ${value}`, text: value, onclick: () => only(value) });

function table(title, rows) {
  const items = rows.map(([name, value, only]) => {
    const label = `Only sounds with this ${name}`;
    const button = only && el("button", { type: "button", class: "ghost round", "aria-label": label, title: label, onclick: only }, icon("filter"));
    return el("div", {}, el("dt", { text: name }), el("dd", {}, value, button));
  });
  return el("section", { class: "facts" }, el("h3", { text: title }), el("dl", {}, ...items));
}

/** Text, as a link if it is a URL. */
function linked(text) {
  if (!/^https?:\/\/\S+$/i.test(text)) return text;
  return el("a", { href: text, rel: "noreferrer", target: "_blank", text });
}
