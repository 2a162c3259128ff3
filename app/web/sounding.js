// Parts of sounds, from the library or a local file: decoded to draw them, and as WAV to play and upload them.

import { audioPath, call } from "./api.js";

const RATE = 16_000; // Hz, for drawing
const WAV_RATE = 32_000; // Hz, of parts that are cut here
export const MAX_LOCAL = 600; // seconds: the browser decodes a local file as a whole

/** Samples of one channel. @param {ArrayBuffer} bytes  @returns {Promise<Float32Array>} */
export async function decode(bytes, rate = RATE) {
  const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  const mixed = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    const samples = audio.getChannelData(channel);
    for (let i = 0; i < mixed.length; i++) mixed[i] += samples[i] / audio.numberOfChannels;
  }
  return mixed;
}

export const DRAWN_RATE = RATE;

/** The part of a clip of the library, in seconds, as WAV. */
export const partOfClip = (clipId) => (start, end, signal) =>
  call(audioPath(clipId, { start, end }), { signal }).then((response) => response.blob());

/** The part of a local file as WAV; the file is decoded once. @param {File} file */
export function partOfFile(file) {
  let samples = null;
  return async (start, end) => {
    samples ??= file.arrayBuffer().then((bytes) => decode(bytes, WAV_RATE));
    return wav((await samples).subarray(Math.floor(start * WAV_RATE), Math.ceil(end * WAV_RATE)), WAV_RATE);
  };
}

/** A WAV file of one channel with 16 bits. */
function wav(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  for (const [at, size, value] of [[16, 32, 16], [20, 16, 1], [22, 16, 1], [24, 32, rate], [28, 32, 2 * rate], [32, 16, 2], [34, 16, 16]]) {
    bytes[`setUint${size}`](at, value, true);
  }
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => bytes.setInt16(44 + 2 * i, Math.round(Math.min(Math.max(sample, -1), 1) * 32767), true));
  return new Blob([bytes], { type: "audio/wav" });
}
