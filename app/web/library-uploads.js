// Uploads with progress: one file per request, two at a time.

import { Problem, upload } from "./api.js";
import { $, announce, bytes, count, el, icon } from "./dom.js";

const PARALLEL = 2;
const MAX_SHOWN = 200; // added files in the list; others stay until cleared
const FIRST_WAIT = 1000; // ms, while the service is busy; doubles with each attempt
const MAX_WAIT = 30_000;
const MAX_ATTEMPTS = 12;
const BUSY = [429, 503];
const HOPELESS = [413, 415, 422]; // statuses of files that will never be accepted

class TooLarge extends Error {}

/**
 * @typedef {object} Task
 * @property {File} file
 * @property {Record<string, any>} metadata
 * @property {number} sent  fraction uploaded
 * @property {"waiting" | "sending" | "added" | "there" | "failed" | "stopped"} state
 * @property {string} problem
 * @property {boolean} [hopeless]  whether trying again cannot succeed
 * @property {HTMLElement | null} row
 */

export class Uploads {
  /** @type {Task[]} */
  #tasks = [];
  #running = 0;
  #stop = new AbortController();
  #onAdded;
  #onIdle;
  #limit;
  #shown = [];

  /**
   * @param {{onAdded: () => void, onIdle: () => void, open: (clip: any) => void, limit: () => number | null}} on
   *   `onAdded`: a file was added; `onIdle`: all uploads have finished; `limit`: maximum bytes per file
   */
  constructor({ onAdded, onIdle, open, limit }) {
    this.#onAdded = onAdded;
    this.#onIdle = onIdle;
    this.open = open;
    this.#limit = limit;
    $("uploads-stop").addEventListener("click", () => this.stop());
    $("uploads-again").addEventListener("click", () => this.again());
    $("uploads-clear").addEventListener("click", () => this.clear());
    addEventListener("beforeunload", (event) => {
      if (this.busy) event.preventDefault(); // makes the browser ask for confirmation
    });
  }

  get busy() {
    return this.#tasks.some(({ state }) => state === "waiting" || state === "sending");
  }

  /** @param {{file: File, metadata: Record<string, any>}[]} files */
  add(files) {
    if (!files.length) return;
    if (!this.busy) this.#stop = new AbortController();
    this.#tasks.push(...files.map(({ file, metadata }) => ({ file, metadata, sent: 0, state: "waiting", problem: "", row: null })));
    $("uploads").hidden = false;
    announce(`Adding ${count(files.length, "file")}`);
    this.#pump();
  }

  stop() {
    for (const task of this.#tasks) if (task.state === "waiting") task.state = "stopped";
    this.#stop.abort();
    this.#showSummary();
  }

  /** Retries failed and stopped uploads. */
  again() {
    if (!this.busy) this.#stop = new AbortController();
    for (const task of this.#tasks) {
      if ((task.state !== "failed" && task.state !== "stopped") || task.hopeless) continue;
      task.row?.remove();
      Object.assign(task, { state: "waiting", sent: 0, problem: "", row: null });
    }
    $("uploads-head").focus();
    this.#pump();
  }

  clear() {
    this.#tasks = this.#tasks.filter(({ state }) => state === "waiting" || state === "sending");
    this.#shown = [];
    const kept = this.#tasks.map(({ row }) => row).filter(Boolean);
    $("upload-list").replaceChildren(...kept);
    $("uploads").hidden = !this.#tasks.length;
    if ($("uploads").hidden) $("add-files").focus();
    this.#showSummary();
  }

  #pump() {
    while (this.#running < PARALLEL) {
      const task = this.#tasks.find(({ state }) => state === "waiting");
      if (!task) break;
      task.state = "sending";
      this.#running += 1;
      this.#run(task).finally(() => {
        this.#running -= 1;
        this.#pump();
        if (!this.busy && !this.#running) this.#end();
      });
    }
    this.#showSummary();
  }

  async #run(task) {
    this.#show(task);
    try {
      const { status, body } = await this.#send(task);
      task.state = status === 201 ? "added" : "there";
      task.clip = body.clips[0];
      if (status === 201) this.#onAdded();
    } catch (error) {
      task.state = error.name === "AbortError" ? "stopped" : "failed";
      task.hopeless = HOPELESS.includes(error.status) || error instanceof TooLarge;
      const name = `${task.file.name}: `; // the row shows the name already
      task.problem = error.message.startsWith(name) ? error.message.slice(name.length) : error.message;
    }
    task.sent = 1;
    this.#show(task);
  }

  async #send(task) {
    const limit = this.#limit();
    if (limit && task.file.size > limit) throw new TooLarge(`The file size of ${bytes(task.file.size)} exceeds the limit of ${bytes(limit)}.`);
    const form = new FormData();
    form.append("files", task.file);
    if (Object.keys(task.metadata).length) form.append("metadata", JSON.stringify(task.metadata));
    const { signal } = this.#stop;
    const onProgress = (sent, total) => {
      task.sent = total ? sent / total : 0;
      this.#show(task);
      this.#showSummary();
    };
    for (let tries = 1; ; tries += 1) {
      try {
        return await upload("/clips", form, { onProgress, signal });
      } catch (error) {
        if (error instanceof Problem && error.status === 0 && !(await isReadable(task.file))) throw new Error("The file can no longer be read.");
        if (!BUSY.includes(error.status) || tries === MAX_ATTEMPTS) throw error;
        task.sent = 0;
        this.#show(task, "service busy, retrying");
        await wait(Math.min(FIRST_WAIT * 2 ** (tries - 1), MAX_WAIT), signal);
      }
    }
  }

  /** Updates the row of a file. Rows of the oldest added files are removed beyond MAX_SHOWN. */
  #show(task, waiting = "") {
    const { file, state, sent } = task;
    task.row ??= $("upload-list").appendChild(el("li"));
    task.row.dataset.state = state;
    if (state === "sending" && task.bar?.isConnected) {
      task.bar.value = sent;
      task.outcome.textContent = waiting || progress(sent);
      return;
    }
    task.outcome = el("span", { class: "outcome", text: OUTCOMES[state]?.(task) ?? (waiting || progress(sent)) });
    task.bar = state === "sending" ? el("progress", { max: 1, value: sent, "aria-label": `Upload progress of ${file.name}` }) : null;
    const name = task.clip
      ? el("button", { type: "button", class: "ghost name", text: file.name, onclick: () => this.open(task.clip) })
      : el("span", { class: "name", text: file.name });
    task.row.replaceChildren(...[icon(ICONS[state]), name, el("span", { class: "size", text: bytes(file.size) }), task.outcome, task.bar].filter(Boolean));
    if (state === "failed") this.#lead(task);
    if (state !== "added") return;
    this.#shown.push(task);
    if (this.#shown.length > MAX_SHOWN) this.#shown.shift().row.remove();
  }

  /** Moves the row of a failed file before those of others, in the order in which they failed. */
  #lead(task) {
    const first = [...$("upload-list").children].find((row) => row !== task.row && row.dataset.state !== "failed");
    if (first) first.before(task.row);
  }

  #showSummary() {
    const all = this.#tasks;
    const how = (...states) => all.filter(({ state }) => states.includes(state));
    const [added, there, failed, stopped] = ["added", "there", "failed", "stopped"].map((state) => how(state).length);
    const done = all.length - how("waiting", "sending").length;
    const size = ({ file }) => file.size + 1; // + 1 so that empty files count too
    const total = all.reduce((sum, task) => sum + size(task), 0);
    $("uploads-progress").value = total ? all.reduce((sum, task) => sum + size(task) * (task.state === "waiting" ? 0 : task.sent), 0) / total : 0;
    $("uploads-progress").hidden = !this.busy;
    const parts = [`${done.toLocaleString("en")} of ${count(all.length, "file")}`];
    if (added) parts.push(`${added.toLocaleString("en")} added`);
    if (there) parts.push(`${there.toLocaleString("en")} already in the library`);
    if (failed) parts.push(`${failed.toLocaleString("en")} failed`);
    if (stopped) parts.push(`${stopped.toLocaleString("en")} stopped`);
    $("uploads-about").textContent = parts.join(" · ");
    $("uploads-stop").hidden = !this.busy;
    $("uploads-again").hidden = !how("failed", "stopped").some(({ hopeless }) => !hopeless);
    $("uploads-clear").hidden = this.busy;
    return parts.slice(1).join(", ");
  }

  #end() {
    announce(this.#showSummary() || "No files were added");
    this.#onIdle();
  }
}

const ICONS = { waiting: "up", sending: "up", added: "check", there: "same", failed: "close", stopped: "close" };

const OUTCOMES = {
  added: () => "added",
  there: ({ clip, file }) => (clip.filename === file.name ? "already in the library" : `already in the library as ${clip.filename}`),
  failed: ({ problem }) => problem,
  stopped: () => "stopped",
};

const progress = (sent) => (sent < 1 ? `${Math.floor(sent * 100)} %` : "analysing");

const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

function wait(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
