// Listens to the microphone: sends its sound over WS /stream and shows events as they begin and end.

import { get, key, Problem } from "./api.js";
import { named, noSuch, unknownConcept } from "./concept-names.js";
import { $, announce, clock, count, el, showMessage } from "./dom.js";

const SHOWN = 200; // events; older ones leave the table
const BEHIND = 4 << 20; // bytes that wait to be sent, after which the connection counts as too slow

export class Live {
  /**
   * @param {{phrases: () => string[], settings: (phrase: string | null) => import("./events.js").Settings,
   *   refuse: (text: string, field: HTMLElement) => void, onState: (running: boolean) => void}} options
   */
  constructor({ phrases, settings, refuse, onState }) {
    this._phrases = phrases;
    this._settings = settings;
    this._refuse = refuse;
    this._onState = onState;
    this._session = null;
    $("live-start").addEventListener("click", () => (this._session ? this.stop() : this.start()));
  }

  /** Whether it listens, or is about to. */
  get running() {
    return this._session !== null;
  }

  async start() {
    const phrases = this._phrases();
    if (!phrases.length) return this._refuse("Enter or choose a sound to detect first.", $("phrase"));
    const unknown = await unknownConcept(() => phrases);
    if (unknown !== undefined) return this._refuse(noSuch(unknown), $("phrase"));
    const session = (this._session = { rows: new Map(), events: 0, closed: [] });
    this._show(true);
    showMessage($("detect-message"), "Asking for the microphone …");
    try {
      if (!navigator.mediaDevices) throw new Error("This browser offers the microphone only over HTTPS or on localhost.");
      const processing = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 2, ...processing } });
      session.closed.push(() => stream.getTracks().forEach((track) => track.stop()));
      await get("/info"); // asks for the key, which a refused WebSocket would not
      if (this._session !== session) return close(session);
      await this._connect(session, stream, phrases);
    } catch (error) {
      close(session);
      if (this._session !== session) return;
      this._session = null;
      this._show(false);
      const denied = error.name === "NotAllowedError" ? "The browser does not allow the microphone." : error.message;
      const text = error.name === "NotFoundError" ? "There is no microphone." : denied;
      showMessage($("detect-message"), text, true);
      announce(text);
    }
  }

  /** Stops the microphone; the service then tells what is left. */
  stop() {
    const session = this._session;
    if (!session) return;
    this._session = null;
    close(session);
    if (session.socket?.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify({ type: "end" }));
    else session.socket?.close();
    this._show(false);
    const text = `Listened for ${clock(session.heard ?? 0)}: ${count(session.events, "event")}`;
    showMessage($("detect-message"), text);
    announce(text);
  }

  async _connect(session, stream, phrases) {
    const context = new AudioContext();
    const channels = Math.min(2, stream.getAudioTracks()[0].getSettings().channelCount ?? 1); // mixed by the service
    session.closed.push(() => context.close());
    await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
    const url = new URL("/stream", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const encoded = key() && btoa(String.fromCharCode(...new TextEncoder().encode(key())));
    const secret = encoded?.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    const socket = (session.socket = new WebSocket(url, secret ? ["finelap", `finelap.key.${secret}`] : ["finelap"]));
    socket.onopen = () => {
      socket.send(JSON.stringify({ encoding: "pcm_s16le", sample_rate: context.sampleRate, channels, phrases, ...this._options(phrases) }));
      const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0, channelCount: channels, channelCountMode: "explicit" });
      context.createMediaStreamSource(stream).connect(capture);
      capture.port.onmessage = ({ data }) => {
        if (socket.readyState !== WebSocket.OPEN || this._session !== session) return;
        if (socket.bufferedAmount > BEHIND) this._failed(session, "The connection is too slow for the sound.");
        else socket.send(data);
        session.heard = (session.heard ?? 0) + data.byteLength / 2 / channels / context.sampleRate;
        $("live-time").textContent = clock(session.heard);
      };
      context.resume();
    };
    socket.onmessage = ({ data }) => this._take(session, JSON.parse(data));
    socket.onclose = () => this._failed(session, session.problem?.message ?? "The connection to the service was lost.");
  }

  _options(phrases) {
    const { medianFilter, minDuration, maxGap } = this._settings(null);
    const threshold = phrases.map((phrase) => this._settings(phrase).threshold);
    return { threshold, median_filter: medianFilter, min_duration: minDuration, max_gap: maxGap };
  }

  _failed(session, text) {
    if (this._session !== session) return;
    this._session = null;
    close(session);
    session.socket.close();
    this._show(false);
    showMessage($("detect-message"), text, true);
    announce(text);
  }

  _take(session, line) {
    if (line.type === "start") {
      showMessage($("detect-message"), "Listening …");
      announce("Listening");
    } else if (line.type === "error") {
      session.problem = new Problem(line.problem.status, line.problem);
    } else if (line.type === "event" || line.type === "retraction") {
      this._row(session, line);
    }
  }

  /** Shows news of an event in its row, newest first. */
  _row(session, { id, type, phrase, onset, offset, score, open }) {
    let row = session.rows.get(id);
    if (type === "retraction") {
      row?.remove();
      if (session.rows.delete(id)) session.events--;
    } else {
      if (!row) {
        row = el("tr", {});
        session.rows.set(id, row);
        session.events++;
        $("live-events").prepend(row);
        if (session.rows.size > SHOWN) {
          const [oldest] = session.rows.keys();
          session.rows.get(oldest).remove();
          session.rows.delete(oldest);
        }
        announce(`${named(phrase)} at ${clock(onset)}`);
      }
      row.toggleAttribute("data-open", open);
      const cells = [clock(onset), named(phrase), open ? "now" : `${(offset - onset).toFixed(1)} s`, score.toFixed(2)];
      row.replaceChildren(...cells.map((text) => el("td", { text })));
    }
    if (this._session === session || this._session === null) {
      $("live-head").textContent = count(session.events, "event");
      $("live-table").hidden = !$("live-events").rows.length;
      $("live-none").hidden = !$("live-table").hidden;
    }
  }

  _show(running) {
    $("live-start").classList.toggle("on", running);
    $("live-label").textContent = running ? "Stop listening" : "Listen";
    if (running) {
      $("heard").hidden = false;
      $("live-time").textContent = clock(0);
      $("live-head").textContent = "0 events";
      $("live-events").replaceChildren();
      $("live-table").hidden = true;
      $("live-none").hidden = false;
    }
    this._onState(running);
  }
}

function close(session) {
  for (const each of session.closed.splice(0)) each();
}
