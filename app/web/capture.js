// Runs in the audio thread: collects the microphone's samples, interleaved if it has several channels, and posts them as
// 16-bit integers, 100 ms at a time.

const CHUNK = 0.1; // seconds

class Capture extends AudioWorkletProcessor {
  constructor({ channelCount = 1 } = {}) {
    super();
    this._chunk = new Int16Array(Math.round(CHUNK * sampleRate) * channelCount);
    this._used = 0;
  }

  process([channels]) {
    if (!channels.length) return true; // nothing connected yet
    for (let i = 0; i < channels[0].length; i++) {
      for (const samples of channels) {
        this._chunk[this._used++] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768)));
      }
      if (this._used === this._chunk.length) {
        this.port.postMessage(this._chunk.buffer, [this._chunk.buffer]);
        this._chunk = new Int16Array(this._used);
        this._used = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
