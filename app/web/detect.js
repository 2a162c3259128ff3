// The Detect tab: events in a dropped file.

import { call, Problem } from "./api.js";
import { $, say } from "./dom.js";

const seconds = (s) => (s < 100 ? s.toFixed(2) : s.toFixed(1));

function tell(where, error) {
  if (error.name === "AbortError") return;
  say(where, error instanceof Problem ? error.message : "The service cannot be reached.", true);
}

function play(audio, from) {
  audio.currentTime = from;
  audio.play().catch(() => {}); // the player shows what it cannot play
}

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  return { shown() {}, hidden: () => $("player").pause() };
}

let playing;

async function detect() {
  const [file] = $("recording").files;
  const phrases = $("phrases").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!file || !phrases.length) return say($("detect-message"), "Choose a recording and write a phrase.", true);
  const form = () => {
    const body = new FormData();
    body.append("file", file);
    for (const phrase of phrases) body.append("phrases", phrase);
    body.append("threshold", $("threshold").value);
    return body;
  };
  $("listen").disabled = true;
  $("found").hidden = true;
  say($("detect-message"), `Listening to ${file.name} …`);
  try {
    const answer = await (await call("/detect", { method: "POST", body: form() })).json();
    showEvents(answer, file);
    const drawing = form();
    drawing.append("format", "png");
    const picture = await (await call("/detect", { method: "POST", body: drawing })).blob();
    URL.revokeObjectURL($("picture").src);
    $("picture").src = URL.createObjectURL(picture);
    $("picture").alt = `Waveform of ${file.name} and the scores of ${phrases.join(", ")} over time`;
    $("picture-box").hidden = false;
  } catch (error) {
    tell($("detect-message"), error);
  } finally {
    $("listen").disabled = false;
  }
}

function showEvents(answer, file) {
  if (playing) URL.revokeObjectURL(playing);
  $("player").src = playing = URL.createObjectURL(file);
  const events = answer.phrases.flatMap(({ phrase, events }) => events.map((event) => ({ phrase, ...event })));
  events.sort((a, b) => a.onset - b.onset);
  const rows = events.map(({ phrase, onset, offset, score }) => {
    const row = document.createElement("tr");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `▶ ${seconds(onset)}`;
    button.setAttribute("aria-label", `play ${phrase} from ${seconds(onset)} seconds`);
    button.addEventListener("click", () => play($("player"), onset));
    for (const content of [button, seconds(offset), score.toFixed(2), phrase]) {
      const cell = document.createElement("td");
      cell.append(content);
      row.append(cell);
    }
    return row;
  });
  $("events").replaceChildren(...rows);
  const missing = answer.phrases.filter((p) => !p.events.length);
  $("missing").textContent = missing.length
    ? `Not found: ${missing.map((p) => `${p.phrase} (highest ${p.max_score.toFixed(2)})`).join(", ")}`
    : "";
  say($("detect-message"), `${events.length === 1 ? "1 event" : `${events.length} events`} in ${seconds(answer.duration)} s`);
  $("picture-box").hidden = true;
  $("found").hidden = false;
}

$("detect-form").addEventListener("submit", (event) => {
  event.preventDefault();
  detect();
});
$("threshold").addEventListener("input", () => {
  $("threshold-value").value = Number($("threshold").value).toFixed(2);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) $("recording").files = event.dataTransfer.files;
  });
}
