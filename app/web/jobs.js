// Jobs in the Library tab: starts a detection over the clips of the list's filter, shows progress, downloads tables.

import { call, get, json } from "./api.js";
import { Completion } from "./completion.js";
import { named, noSuch, phrasesIn, unknownConcept } from "./concept-names.js";
import { $, announce, clock, count, el, icon, showMessage } from "./dom.js";
import { DEFAULTS } from "./events.js";

const INTERVAL = 1000; // ms between two looks while a job runs
const SHOWN = 10; // jobs in the list, the newest
const TABLES = { csv: "CSV", parquet: "Parquet", raven: "Raven", audacity: "Audacity" };
const STATES = { queued: "waiting", cancelled: "cancelled", failed: "failed" };
const namesOf = ({ phrases }) => phrases.map(named).join(", ");
const unfinished = ({ state }) => state === "queued" || state === "running";

export class Jobs {
  #rows = new Map(); // job id → {row, about, bar, actions, kind}
  #timer = 0;
  #shown = false;
  #filter;

  /** @param {() => Record<string, any>} filter  of the list of clips */
  constructor(filter) {
    this.#filter = filter;
    new Completion($("scan-phrases"), { separator: /,/, byName: true });
    $("scan-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
  }

  /** Says which clips a job would scan. */
  describe() {
    const keys = Object.keys(this.#filter());
    $("scan-hint").textContent = keys.length
      ? `Scans the clips that pass the filter below (${keys.join(", ")}), without decoding them again.`
      : "Scans all clips, without decoding them again. Filter the list below to scan some.";
  }

  show() {
    this.#shown = true;
    this.describe();
    this.#load();
  }

  hide() {
    this.#shown = false;
    clearTimeout(this.#timer);
  }

  async #start() {
    const read = () => phrasesIn($("scan-phrases").value, /,/);
    if (!read().length) {
      showMessage($("scan-message"), "Describe the sounds first, separated by commas.", true);
      return $("scan-phrases").focus();
    }
    const unknown = await unknownConcept(read);
    if (unknown !== undefined) return showMessage($("scan-message"), noSuch(unknown), true);
    const phrases = read();
    const filter = this.#filter();
    const threshold = Number($("scan-threshold").value);
    const body = { kind: "detect", phrases, ...(threshold !== DEFAULTS.threshold && { threshold }) }; // concepts may have their own
    if (Object.keys(filter).length) body.filter = filter;
    $("scan-start").disabled = true;
    try {
      await json("/jobs", { body });
      showMessage($("scan-message"), "");
      announce("The scan has started");
    } catch (error) {
      showMessage($("scan-message"), error.message, true);
    }
    $("scan-start").disabled = false;
    this.#load();
  }

  async #load() {
    clearTimeout(this.#timer);
    if (!this.#shown) return;
    let jobs = [];
    try {
      if (!document.hidden) ({ jobs } = await get("/jobs"));
      if (!document.hidden) this.#draw(jobs.slice(0, SHOWN));
    } catch (error) {
      $("scan").hidden = error.status === 501; // a library without jobs
      if (error.status !== 501) showMessage($("scan-message"), error.message, true);
    }
    const waiting = document.hidden || jobs.some(unfinished);
    if (this.#shown && waiting) this.#timer = setTimeout(() => this.#load(), INTERVAL);
  }

  #draw(jobs) {
    const ids = new Set(jobs.map(({ id }) => id));
    for (const [id, { row }] of this.#rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    for (const job of [...jobs].reverse()) {
      if (!this.#rows.has(job.id)) $("jobs").prepend(this.#add(job));
      this.#update(job);
    }
  }

  #add(job) {
    const name = el("span", { class: "name", text: namesOf(job), title: namesOf(job), id: `job-${job.id}` });
    const about = el("span", { class: "about" });
    const bar = el("progress", { max: "1", "aria-labelledby": name.id });
    const actions = el("span", { class: "row actions" });
    const row = el("li", {}, el("span", { class: "texts" }, name, about), actions, bar);
    this.#rows.set(job.id, { row, about, bar, actions, kind: "" });
    return row;
  }

  #update(job) {
    const own = this.#rows.get(job.id);
    const busy = unfinished(job);
    const done = job.state === "done" ? `${count(job.total, "clip")}, ${clock(job.seconds)}` : `${job.done.toLocaleString("en")} of ${count(job.total, "clip")}`;
    const parts = [STATES[job.state], done, count(job.events, "event"), job.filter && "filtered", job.error];
    own.about.textContent = parts.filter(Boolean).join(" · ");
    own.row.dataset.state = job.state;
    own.bar.hidden = !busy;
    own.bar.value = job.total ? job.done / job.total : 1;
    const kind = busy ? "busy" : "ended";
    if (own.kind === kind) return;
    if (own.kind === "busy") announce(`The scan for ${namesOf(job)} is ${job.state}: ${count(job.events, "event")}`);
    const focused = own.actions.contains(document.activeElement);
    own.kind = kind;
    own.actions.replaceChildren(...(busy ? [this.#button("close", "Cancel", job)] : this.#downloads(job)));
    if (focused) own.actions.querySelector("button")?.focus();
  }

  #downloads(job) {
    const tables = Object.entries(TABLES).map(([format, text]) =>
      this.#file(job, `events?format=${format}`, text, `Download the events (${text})`),
    );
    const map = this.#file(job, "summary?by=hour&format=png", "Heat map", "Download a heat map of days and hours");
    return [...tables, map, this.#button("trash", "Delete", job)];
  }

  /** A button that cancels an unfinished job, and deletes a finished one. */
  #button(symbol, label, job) {
    const remove = async (event) => {
      event.currentTarget.disabled = true;
      try {
        await call(`/jobs/${job.id}`, { method: "DELETE" });
      } catch (error) {
        if (error.status !== 404) showMessage($("scan-message"), error.message, true);
      }
      this.#load();
    };
    const about = `${label} the scan for ${namesOf(job)}`;
    const button = el("button", { type: "button", class: "ghost round", title: label, "aria-label": about, onclick: remove });
    button.append(icon(symbol));
    return button;
  }

  #file(job, path, text, title) {
    const fetchFile = async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      try {
        const response = await call(`/jobs/${job.id}/${path}`);
        const url = URL.createObjectURL(await response.blob());
        const named = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "");
        const link = el("a", { href: url, download: named ? named[1] : `heat-map-${job.id.slice(0, 8)}.png` });
        link.click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
      } catch (error) {
        showMessage($("scan-message"), error.message, true);
      }
      button.disabled = false;
    };
    return el("button", { type: "button", class: "ghost", text, title, onclick: fetchFile });
  }
}
