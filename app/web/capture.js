// Runs in the audio thread: collects the microphone's samples and posts them as 16-bit integers, 100 ms at a time.

const CHUNK = 0.1; // seconds

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this._chunk = new Int16Array(Math.round(CHUNK * sampleRate));
    this._used = 0;
  }

  process([channels]) {
    const samples = channels[0];
    if (!samples) return true; // nothing connected yet
    for (let i = 0; i < samples.length; i++) {
      this._chunk[this._used++] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768)));
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
