// The Detect tab: choosing a recording and phrases, running the request, showing the result. The service scores a
// recording once; events are derived from the scores here, again whenever a setting changes.
//
// Parts: source.js (the recording to analyse), phrases.js, cutting.js (settings), recording.js (received data), strips.js
// (drawing), eventlist.js (table), exports.js and picture.js (files).

import { Problem, upload } from "./api.js";
import { named, noSuch, unknownConcept } from "./concept-names.js";
import { Cutting } from "./cutting.js";
import { $, announce, bytes, clock, count, el, icon, showMessage } from "./dom.js";
import { EventList } from "./eventlist.js";
import { rounded } from "./events.js";
import { save, TEXTS } from "./exports.js";
import { Live } from "./live.js";
import { formatTime } from "./paint.js";
import { Phrases } from "./phrases.js";
import { picture } from "./picture.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { seekStep } from "./sound.js";
import { Source } from "./source.js";
import { Strips } from "./strips.js";

const PADDING = 0.1; // seconds played before and after an event
const FINE = 600; // seconds: shorter recordings are drawn with a column per 20 ms, longer ones per 100 ms
const ZOOM = 1.6; // per step

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  let source = /** @type {Source | null} */ (null);
  let recording = /** @type {Recording | null} */ (null);
  let resultSource = /** @type {Source | null} */ (null); // of the result shown; another file may have been chosen since
  let player = /** @type {Player | null} */ (null);
  let running = /** @type {AbortController | null} */ (null);
  let rows = /** @type {import("./eventlist.js").Row[]} */ ([]);
  let chosen = -1; // index of the selected row
  let queued = 0;
  let visible = false;

  const phrases = new Phrases({ list: $("phrase-list"), field: $("phrase"), more: $("phrase-ideas") }, phrasesChanged);
  const cutting = new Cutting(panel, () => updateEvents());
  const strips = new Strips($("strips"), { onSeek: seek, onPick: (phrase, event) => pick(rowOf(phrase, event), false), onSelect: select });
  const list = new EventList(
    {
      ...{ body: $("events"), pages: $("event-pages"), where: $("events-where") },
      ...{ before: $("events-before"), after: $("events-after") },
    },
    { onPick: (row) => pick(row, true), onMove: (row) => choose(row, true) },
  );

  const live = new Live({
    phrases: () => (phrases.take(), phrases.all),
    settings: (phrase) => cutting.of(phrase),
    refuse,
    onState(on) {
      if (on) running?.abort();
      $("listen").disabled = on;
      if (on) $("found").hidden = true;
    },
  });

  // The source

  function use(next) {
    if (source && source !== resultSource) source.close();
    source = next;
    $("source-name").textContent = next.name;
    aboutSource();
    next.known.then(() => source === next && aboutSource());
    showMessage($("detect-message"), "");
    $("source-box").classList.add("full");
  }

  function aboutSource() {
    const { file, duration, playable, clip } = source;
    const parts = [
      file ? bytes(file.size) : "in the library",
      duration ? clock(duration) : null,
      playable === false ? "this browser cannot play it, but the service may be able to analyse it" : null,
    ];
    showMessage($("source-about"), parts.filter(Boolean).join(" · "));
    const most = shell.info?.limits.max_upload_mb;
    if (file && most && file.size > most * 2 ** 20) showMessage($("source-about"), `${bytes(file.size)} exceeds the service's limit of ${most} MB`, true);
    if (clip) shell.setParams({ clip: clip.id }, { replace: true });
  }

  function useFile(file) {
    shell.setParams({ clip: null }, { replace: true });
    use(Source.file(file));
    announce(`Selected ${file.name}`);
  }

  async function useClip(id, autostart) {
    try {
      use(await Source.clip(id));
      if (autostart) start();
    } catch (error) {
      showMessage($("detect-message"), error.message, true);
    }
  }

  function phrasesChanged() {
    if (!visible) return;
    shell.setParams({ p: phrases.all }, { replace: true });
    if ($("detect-message").classList.contains("wrong")) showMessage($("detect-message"), "");
  }

  // The request

  async function start() {
    phrases.take();
    if (!source) return refuse("Choose a recording first.", $("recording"));
    if (!phrases.all.length) return refuse("Enter or choose a sound to detect first.", $("phrase"));
    const unknown = await unknownConcept(() => phrases.all);
    if (unknown !== undefined) return refuse(noSuch(unknown), $("phrase"));
    running?.abort();
    const run = (running = new AbortController());
    const form = new FormData();
    source.appendTo(form);
    for (const phrase of phrases.all) form.append("phrases", phrase);
    const step = source.duration && source.duration <= FINE ? 0.02 : 0.1;
    const fields = { format: "ndjson", frames: true, encoding: "base64", outline: true, outline_step: step };
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    setRunning(true);
    begin();
    const began = performance.now();
    let problem = null;
    const onLine = (line) => {
      if (run.signal.aborted) return;
      if (line.type === "error") problem = new Problem(line.status, line);
      else handleLine(line);
    };
    try {
      await upload("/detect", form, { signal: run.signal, onLine, onProgress: sending });
      if (problem) throw problem;
      if (!recording?.ended) throw new Problem(0, { detail: "The response ended early." });
      finish(`in ${clock((performance.now() - began) / 1000)}`);
    } catch (error) {
      if (running !== run) return;
      failed(error);
    }
    if (running === run) setRunning(false);
  }

  function refuse(text, field) {
    showMessage($("detect-message"), text, true);
    announce(text);
    field.focus();
  }

  function setRunning(yes) {
    if (!yes) running = null;
    panel.classList.toggle("running", yes);
    const focused = [$("stop"), $("listen")].includes(document.activeElement);
    $("stop").hidden = !yes;
    $("listen").hidden = yes;
    if (focused) (yes ? $("stop") : $("listen")).focus();
    $("detect-progress").hidden = !yes;
    $("detect-progress").removeAttribute("value");
  }

  function begin() {
    player?.destroy();
    if (resultSource && resultSource !== source) resultSource.close();
    resultSource = source;
    $("heard").hidden = true;
    player = null;
    recording = null;
    rows = [];
    chosen = -1;
    $("found").hidden = true;
    showMessage($("detect-message"), source.file ? "Uploading …" : "Waiting for the service …");
    announce(`Analysing ${source.name}`);
  }

  function sending(sent, total) {
    if (recording) return;
    showMessage($("detect-message"), sent < total ? `Uploading … ${bytes(sent)} of ${bytes(total)}` : "Uploaded. Starting the analysis …");
  }

  /** Handles a line of the response. */
  function handleLine(line) {
    if (line.type === "start") {
      recording = new Recording();
      recording.take(line);
      open();
    } else {
      recording?.take(line);
    }
    if (["frames", "outline", "end"].includes(line.type)) queue();
  }

  /** Shows the result area when the first line arrives. */
  function open() {
    cutting.setPhrases(recording.phrases);
    const name = (text) => el("div", {}, el("span", { class: "name", title: text, text }), el("span", { class: "many" }));
    strips.names.replaceChildren(...["Waveform", "Spectrogram", ...recording.phrases.map(named)].map(name));
    aboutTeaching();
    player = new Player({
      src: () => resultSource.src(),
      fallback: resultSource.fallback,
      level: resultSource.level,
      duration: resultSource.duration ?? 86_400,
      onTime: moved,
      onState: (state, error) => {
        const playing = state === "playing";
        $("found-play").replaceChildren(icon(playing ? "pause" : "play"));
        $("found-play").setAttribute("aria-label", playing ? "Pause" : "Play");
        if (state === "failed") showMessage($("detect-message"), error.message, true);
      },
    });
    $("found-play").replaceChildren(icon("play"));
    $("found").hidden = false;
    strips.show(recording, resultSource.duration ?? 10);
    moved(0);
    updateEvents();
  }

  function queue() {
    queued ||= requestAnimationFrame(() => {
      queued = 0;
      if (!recording) return;
      updateEvents();
      if (running) progress();
    });
  }

  function progress() {
    const { analysed } = recording;
    const whole = resultSource.duration;
    if (whole) $("detect-progress").value = Math.min(analysed / whole, 1);
    showMessage($("detect-message"), `Analysed ${clock(analysed)}${whole ? ` of ${clock(whole)}` : ""} …`);
  }

  function finish(took) {
    resultSource.duration = recording.duration;
    player.setDuration(recording.duration);
    updateEvents();
    const text = `Analysed ${clock(recording.duration)} ${took}`;
    showMessage($("detect-message"), text);
    announce(`${text}: ${count(rows.length, "event")}`);
  }

  function failed(error) {
    const stopped = error.name === "AbortError";
    const text = stopped ? `Stopped${recording ? ` after ${clock(recording.analysed)}` : ""}.` : error.message;
    showMessage($("detect-message"), text, !stopped);
    announce(text);
  }

  // The result

  /** Derives the events from the scores received so far and updates the view. */
  function updateEvents() {
    if (!recording?.tracks.length) return;
    const before = rows[chosen];
    const events = recording.tracks.map((track, i) => {
      return track.length ? track.events(cutting.of(recording.phrases[i]), recording.hop, recording.duration) : [];
    });
    rows = events.flatMap((each, phrase) => each.map((event, i) => ({ phrase, event: i, ...event })));
    rows.sort((a, b) => a.onset - b.onset || a.offset - b.offset);
    chosen = before ? matchingRow(before) : -1;
    strips.extend(recording.ended ? recording.duration : Math.max(recording.analysed, resultSource.duration ?? 10));
    strips.setEvents(events);
    strips.choose(rows[chosen]?.phrase, rows[chosen]?.event, { reveal: false });
    list.show(rows, recording.phrases.map(named), chosen);
    aboutTeaching();
    aboutEvents(events);
    strips.scroll.setAttribute("aria-valuemax", strips.total.toFixed(1));
    moved(player.time);
  }

  /** The row that replaces the selected one: the first of its phrase that overlaps it. */
  function matchingRow({ phrase, onset, offset }) {
    return rows.findIndex((row) => row.phrase === phrase && row.onset < offset && row.offset > onset);
  }

  function aboutEvents(events) {
    events.forEach((each, i) => {
      const { highest } = recording.tracks[i];
      const name = strips.names.children[i + 2];
      const many = name.querySelector(".many");
      const text = each.length ? String(each.length) : `max ${highest.toFixed(2)}`;
      if (many.textContent !== text) many.textContent = text;
      name.classList.toggle("none", !each.length);
    });
    const found = events.filter((each) => each.length).length;
    $("events-head").textContent = count(rows.length, "event");
    const missing = recording.phrases.filter((_, i) => !events[i].length);
    $("events-about").textContent = missing.length && found ? `no ${missing.slice(0, 4).map(named).join(", ")}${missing.length > 4 ? " …" : ""}` : "";
    $("event-table").hidden = !rows.length;
    $("no-events").hidden = Boolean(rows.length);
    const highest = Math.max(...recording.tracks.map((track) => track.highest));
    const none = running ? "No events yet." : `No score reaches the threshold. The highest is ${highest.toFixed(2)}; lower the threshold below it.`;
    if (!rows.length && $("no-events").textContent !== none) $("no-events").textContent = none;
  }

  const rowOf = (phrase, event) => rows.findIndex((row) => row.phrase === phrase && row.event === event);

  function choose(row, focus) {
    chosen = row;
    strips.choose(rows[row]?.phrase, rows[row]?.event);
    list.choose(row, focus);
    aboutTeaching();
  }

  function select(stretch) {
    strips.select(stretch);
    aboutTeaching();
  }

  /** Moves one end of the selected stretch to the position. @param {"start" | "end"} end */
  function selectTo(end) {
    const t = player.time;
    const { start, end: last } = strips.selected ?? { start: 0, end: recording.duration };
    select(end === "start" ? { start: t, end: last > t ? last : recording.duration } : { start: start < t ? start : 0, end: t });
  }

  /** What would be taught: the selected stretch, or the chosen event. */
  function toTeach() {
    if (strips.selected) return strips.selected;
    return rows[chosen] ? { start: rows[chosen].onset, end: rows[chosen].offset } : null;
  }

  function aboutTeaching() {
    $("found-teach").disabled = !toTeach() || !recording?.ended;
  }

  async function teach() {
    const stretch = toTeach();
    if (!stretch || !recording?.ended) return;
    player.pause();
    const { clip, file, name } = resultSource;
    const concept = rows[chosen] && recording.phrases[rows[chosen].phrase];
    await shell.teach({ clip, file, name, duration: recording.duration, ...stretch, concept });
    strips.select(null);
    aboutTeaching();
  }

  /** Plays an event. */
  function pick(row, focus) {
    if (!rows[row]) return;
    choose(row, focus);
    const { onset, offset } = rows[row];
    player.play(Math.max(0, onset - PADDING), offset + PADDING);
  }

  function step(by) {
    if (!rows.length) return;
    const t = player.time;
    const from = chosen >= 0 ? chosen + by : by > 0 ? rows.findIndex((row) => row.onset >= t) : rows.findLastIndex((row) => row.onset < t);
    if (rows[from]) pick(from, list.focused);
  }

  function seek(t) {
    choose(-1, false);
    player?.seek(t);
    if (player && !player.playing) player.play();
  }

  function moved(t) {
    strips.setTime(t, player?.playing);
    const whole = recording?.duration ?? 0;
    const text = `${formatTime(t, 3)} / ${formatTime(whole)}`;
    if ($("found-time").textContent !== text) $("found-time").textContent = text;
    const slider = strips.scroll;
    const spoken = `${clock(t)} of ${clock(whole)}`;
    if (slider.getAttribute("aria-valuetext") === spoken) return;
    slider.setAttribute("aria-valuenow", t.toFixed(1));
    slider.setAttribute("aria-valuetext", spoken);
  }

  async function exportEvents(kind) {
    const stem = resultSource.name.replace(/\.[^.]*$/, "") || "events";
    try {
      if (kind === "png") {
        const about = cutting.describe(recording.phrases);
        save(`${stem}.png`, await picture(strips, `${resultSource.name} · ${count(rows.length, "event")}`, about));
      } else {
        const { make, name, type } = TEXTS[kind];
        const tracks = strips.events.map((events, i) => ({ phrase: recording.phrases[i], events: events.map(rounded) }));
        const text = make({ filename: resultSource.name, phrases: tracks });
        save(name(stem), new Blob([text], { type: `${type};charset=utf-8` }));
      }
      announce("Saved");
    } catch (error) {
      showMessage($("detect-message"), error.message, true);
    }
  }

  // User input

  $("recording").addEventListener("change", () => {
    const [file] = $("recording").files;
    if (file) useFile(file);
    $("recording").value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    panel.addEventListener(name, (event) => {
      event.preventDefault();
      $("detect-form").classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) useFile(event.dataTransfer.files[0]);
    });
  }
  $("detect-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("found-play").addEventListener("click", () => player.toggle());
  $("found-teach").addEventListener("click", teach);
  $("cutting-toggle").addEventListener("click", () => {
    const open = $("cutting").hidden;
    $("cutting").hidden = !open;
    $("cutting-toggle").setAttribute("aria-expanded", String(open));
  });
  for (const [name, event] of [["threshold", "change"], ["cutting-reset", "click"]]) {
    $(name).addEventListener(event, () => {
      shell.setParams({ t: $("threshold").value === "0.5" ? null : $("threshold").value }, { replace: true });
      announce(count(rows.length, "event"));
    });
  }
  $("zoom-in").addEventListener("click", () => strips.zoom(ZOOM));
  $("zoom-out").addEventListener("click", () => strips.zoom(1 / ZOOM));
  $("zoom-fit").addEventListener("click", () => strips.fit());
  for (const button of $("exports").querySelectorAll("button")) {
    button.addEventListener("click", () => exportEvents(button.dataset.export));
  }
  panel.addEventListener("keydown", (event) => {
    if (!player || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys(event);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });

  function keys(event) {
    const { key, target } = event;
    if (target.matches("input:not([type=range]), textarea")) return null;
    const inTable = list.focused;
    const inStrips = target === strips.scroll;
    const far = seekStep(recording.duration) * (event.shiftKey ? 4 : 1);
    const letters = shell.letters() && {
      ...{ "[": () => step(-1), "]": () => step(1) },
      ...{ i: () => selectTo("start"), o: () => selectTo("end"), t: teach },
    };
    if (inTable) {
      const here = list.page * list.size + target.closest("tr").sectionRowIndex;
      const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 }[key];
      if (to !== undefined) return () => rows[to] && choose(to, true);
    }
    if (inStrips) {
      const to = { ArrowLeft: player.time - far, ArrowRight: player.time + far, Home: 0, End: recording.duration }[key];
      if (to !== undefined) return () => player.seek(Math.min(Math.max(to, 0), recording.duration));
      const zoom = { "+": ZOOM, "=": ZOOM, "-": 1 / ZOOM, "−": 1 / ZOOM }[key];
      if (zoom) return () => strips.zoom(zoom);
      if (key === "0") return () => strips.fit();
      if (key === " ") return () => player.toggle();
      if (key === "Enter" && rows[chosen]) return () => pick(chosen, false);
    }
    return (letters && letters[key]) || null;
  }

  return {
    shown(params) {
      visible = true;
      if (shell.info) phrases.limit = shell.info.limits.max_phrases;
      const wanted = params.getAll("p");
      if (wanted.length && wanted.join("\n") !== phrases.all.join("\n")) phrases.set(wanted);
      const threshold = Number(params.get("t"));
      if (threshold > 0 && threshold < 1) cutting.set(threshold);
      const clip = params.get("clip");
      if (clip && source?.clip?.id !== clip) useClip(clip, wanted.length > 0);
      strips.redraw();
    },
    hidden() {
      visible = false;
      player?.pause();
    },
  };
}
