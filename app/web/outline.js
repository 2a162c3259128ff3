// A waveform drawn on a plain canvas from the service's peaks: light enough for lists, and the fallback without wavesurfer.

const BAR = 2; // css pixels
const GAP = 1;

/** The page's current colours; canvases do not follow a change of colour scheme by themselves. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const scheme = of("--wave") ? "" : "CanvasText";
  return {
    wave: of("--wave") || scheme,
    played: of("--wave-played") || scheme,
    accent: of("--accent") || scheme,
    region: of("--region") || "transparent",
    selection: of("--selection") || "transparent",
    soft: of("--soft") || scheme,
  };
}

const scheme = matchMedia("(prefers-color-scheme: dark)");

export class CanvasWaveform {
  #canvas = document.createElement("canvas");
  #time = 0;
  #queued = 0;
  #options;

  /**
   * @param {HTMLElement} container
   * @param {{duration: number, peaks?: [number, number][] | null, regions?: Region[], height: number,
   *          onPick: (t: number, region?: Region) => void}} options
   */
  constructor(container, options) {
    this.#options = { peaks: null, regions: [], ...options };
    this.#canvas.className = "outline";
    this.#canvas.style.height = `${options.height}px`;
    this.#canvas.addEventListener("click", (event) => this.#pick(event));
    container.append(this.#canvas);
    this.redraw = () => {
      this.#queued ||= requestAnimationFrame(() => this.#draw());
    };
    this.#sizes = new ResizeObserver(this.redraw);
    this.#sizes.observe(this.#canvas);
    scheme.addEventListener("change", this.redraw);
  }
  #sizes;

  setTime(t) {
    this.#time = t;
    this.redraw();
  }

  setPeaks(peaks) {
    this.#options.peaks = peaks;
    this.redraw();
  }

  setRegions(regions) {
    this.#options.regions = regions;
    this.redraw();
  }

  /** Where the recording is in the window. */
  box() {
    return this.#canvas.getBoundingClientRect();
  }

  zoom() {} // the whole waveform is always in view

  destroy() {
    cancelAnimationFrame(this.#queued);
    this.#sizes.disconnect();
    scheme.removeEventListener("change", this.redraw);
    this.#canvas.remove();
  }

  #pick(event) {
    const box = this.#canvas.getBoundingClientRect();
    const t = ((event.clientX - box.left) / box.width) * this.#options.duration;
    this.#options.onPick(t, this.#options.regions.find(({ start, end }) => t >= start && t <= end));
  }

  #draw() {
    this.#queued = 0;
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const { duration, peaks, regions } = this.#options;
    const colour = colours();
    const x = (t) => (t / duration) * width;
    for (const { start, end, selected } of regions) {
      context.fillStyle = selected ? colour.selection : colour.region;
      context.beginPath();
      context.roundRect(x(start), 0, Math.max(x(end) - x(start), 3), height, 3);
      context.fill();
    }
    const bars = Math.max(1, Math.floor(width / (BAR + GAP)));
    const loudest = peaks ? peaks.reduce((most, [low, high]) => Math.max(most, -low, high), 0.02) : 1;
    for (let i = 0; i < bars; i++) {
      const [low, high] = peaks ? extent(peaks, i / bars, (i + 1) / bars) : [0, 0];
      const middle = ((i + 0.5) / bars) * duration;
      const inside = regions.some(({ start, end }) => middle >= start && middle <= end);
      context.fillStyle = inside ? colour.accent : middle <= this.#time ? colour.played : colour.wave;
      const top = height / 2 - (high / loudest) * (height / 2 - 2);
      const bottom = height / 2 - (low / loudest) * (height / 2 - 2);
      context.fillRect(i * (BAR + GAP), Math.min(top, height / 2 - 0.75), BAR, Math.max(bottom - top, 1.5));
    }
    if (this.#time > 0) {
      context.fillStyle = colour.accent;
      context.fillRect(Math.min(x(this.#time), width - 2), 0, 2, height);
    }
  }
}

/** The lowest and highest peak in the fraction [from, to). */
function extent(peaks, from, to) {
  const first = Math.min(Math.floor(from * peaks.length), peaks.length - 1);
  const last = Math.max(first + 1, Math.floor(to * peaks.length));
  let [low, high] = peaks[first];
  for (let i = first + 1; i < last; i++) {
    low = Math.min(low, peaks[i][0]);
    high = Math.max(high, peaks[i][1]);
  }
  return [low, high];
}
