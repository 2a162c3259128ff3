// How sounds are played: volume, matched loudness, repeating, where to stop, and whether the arrow keys play. Kept in the browser's storage.

import { $, announce } from "./dom.js";

const KEY = "finelap-playback"; // localStorage
const SWITCHES = { levels: "Match loudness", loop: "Repeat", stops: "Stop at the end of the moment", follows: "Play while moving with the arrow keys" };

function read() {
  const usual = { volume: 1, levels: false, loop: false, stops: false, follows: false };
  try {
    const { volume, ...kept } = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    for (const name of Object.keys(SWITCHES)) usual[name] = kept[name] === true;
    return { ...usual, volume: volume >= 0 && volume <= 1 ? volume : 1 };
  } catch {
    return usual; // not ours, or the browser keeps nothing
  }
}

/** The settings; change them with `setPlayback`. `volume`: 0 to 1. */
export const playback = read();

/** Changes settings and tells players about it. @param {Partial<typeof playback>} changes */
export function setPlayback(changes) {
  Object.assign(playback, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(playback));
  } catch {
    // they hold until the page is closed
  }
  show();
  document.dispatchEvent(new CustomEvent("finelap:playback"));
}

/** Turns a switch on or off and says so. @param {"levels" | "loop" | "stops" | "follows"} name */
export function switchPlayback(name) {
  setPlayback({ [name]: !playback[name] });
  announce(`${SWITCHES[name]}: ${playback[name] ? "on" : "off"}`);
}

function show() {
  $("volume").value = playback.volume;
  $("volume-value").textContent = `${Math.round(playback.volume * 100)} %`;
  for (const name of Object.keys(SWITCHES)) $(`playback-${name}`).checked = playback[name];
}

/** Connects the panel. */
export function mountPlayback() {
  $("volume").addEventListener("input", () => setPlayback({ volume: Number($("volume").value) }));
  for (const name of Object.keys(SWITCHES)) $(`playback-${name}`).addEventListener("change", (event) => setPlayback({ [name]: event.target.checked }));
  $("playback").addEventListener("toggle", (event) => event.newState === "open" && $("volume").focus());
  show();
}
