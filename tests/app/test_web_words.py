"""The page's scripts for times, sizes, filters, rulers, debouncing and recordings."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODULES = ("api", "dom", "events", "facets", "filters", "paint", "recording", "spectrum")


@pytest.fixture(scope="module")
def script(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a script with the page's modules by their names and `input`, a JSON value; returns its JSON result."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the browser's tests run the same modules")
    folder = tmp_path_factory.mktemp("web")
    for name in MODULES:
        shutil.copy(repo_dir / "app" / "web" / f"{name}.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    # paint.js makes a canvas and asks for the colour scheme when it is loaded; nothing here draws
    browser = "globalThis.matchMedia = () => ({ matches: false }); globalThis.document = { createElement: () => ({}) };"

    def run(body: str, input: Any = None) -> Any:
        imports = "".join(f'const {name} = await import("./{name}.js");\n' for name in MODULES)
        reading = 'import { readFileSync } from "node:fs";\nconst input = JSON.parse(readFileSync(0));\n'
        output = f"console.log(JSON.stringify(await (async () => {{ {body} }})()));\n"
        (folder / "main.js").write_text(reading + browser + "\n" + imports + output)
        done = subprocess.run(
            [node, "main.js"], cwd=folder, input=json.dumps(input).encode(), capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


def test_times_and_sizes(script: Callable[..., Any]) -> None:
    times = {
        0: "0.00 s",
        0.424: "0.42 s",
        9.99: "9.99 s",
        59.94: "59.9 s",
        62.26: "1:02.3",
        3599.96: "1:00:00",
        3723: "1:02:03",
    }
    assert script("return input.map((s) => dom.clock(s));", list(times)) == list(times.values())
    sizes = {0: "0 B", 830: "830 B", 4_200: "4.2 kB", 12_345: "12 kB", 4_200_000: "4.2 MB", 635_000_000: "635 MB"}
    assert script("return input.map((n) => dom.bytes(n));", list(sizes)) == list(sizes.values())
    assert script('return [1, 2, 1204].map((n) => dom.count(n, "sound"));') == ["1 sound", "2 sounds", "1,204 sounds"]
    rulers = [(5, 0), (65.4, 0), (3723, 0), (5.24, 1), (59.96, 1), (3600, 1), (5.0421, 3), (59.9996, 3)]
    assert script("return input.map(([s, digits]) => paint.formatTime(s, digits));", rulers) == [
        *("0:05", "1:05", "1:02:03"),
        *("0:05.2", "1:00.0", "1:00:00.0"),
        *("0:05.042", "1:00.000"),
    ]


def test_frequencies_are_marked_at_their_bands(script: Callable[..., Any]) -> None:
    """The centre of a band is marked in the middle of its row, the lowest at the bottom; others are not."""
    marks = script(
        """
        const marks = {};
        const context = { strokeText() {}, fillRect() {}, fillText: (text, x, y) => (marks[text] = y) };
        paint.paintFrequencies(context, { x: 0, y: 10, w: 100, h: 80 }, input, {});
        return marks;
        """,
        {"frequencies": [100, 250, 1000, 3000], "bands": 4},
    )
    assert marks == {"250 Hz": 60, "1 kHz": 40}


def test_ruler_marks_do_not_overlap(script: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    cases = [
        [float(random.random() * 3600), float(10 ** random.uniform(-0.5, 4)), int(random.integers(200, 2000))]
        for _ in range(200)
    ]
    given = script("return input.map(([from, length, w]) => paint.ticks({ from, to: from + length }, w));", cases)
    for (start, length, width), marks in zip(cases, given, strict=True):
        places = np.array([mark["at"] for mark in marks])
        assert ((places >= start - 1e-6) & (places <= start + length + 1e-6)).all()
        if len(places) > 1:
            steps = np.diff(places)
            assert np.allclose(steps, steps[0]) and steps[0] / length * width >= 75.9
            assert len({mark["text"] for mark in marks}) == len(marks)


def test_filters_add_and_remove_values(script: Callable[..., Any]) -> None:
    given = script(
        """
        const { including, without } = filters;
        const one = including({}, "tags", "rain");
        const two = including(one, "tags", "wind");
        return [one, two, including(two, "tags", "rain"), without(two, "tags", "rain"), without(one, "tags", "rain"),
                without({ duration: { lt: 5 }, ...one }, "duration"),
                including({ duration: { lt: 5 } }, "duration", 3)];
        """
    )
    rain, both = {"tags": "rain"}, {"tags": ["rain", "wind"]}
    assert given == [rain, both, both, {"tags": "wind"}, {}, rain, {"duration": 3}]


def test_debounce_makes_only_the_last_call(script: Callable[..., Any]) -> None:
    given = script(
        """
        const made = [];
        const later = dom.debounce((x) => made.push(x), 20);
        for (const x of [1, 2, 3]) later(x);
        await new Promise((done) => setTimeout(done, 200));
        later(4);
        later.now();
        later(5);
        later.cancel();
        later.now();
        await new Promise((done) => setTimeout(done, 200));
        return made;
        """
    )
    assert given == [3, 4]


def test_a_recording_grows_line_by_line(script: Callable[..., Any]) -> None:
    """Parts of any length: scores, peaks, spectrogram, loudest sample and quantiles equal the data sent."""
    random = np.random.default_rng(4)
    frames, columns, bands, phrases = 5_000, 4_000, 6, ["rain", "a dog"]
    scores = random.random((len(phrases), frames)).astype("<f4")
    peaks = random.integers(-32767, 32768, (columns, 2)).astype("<i2")
    levels = random.integers(0, 256, (columns, bands)).astype("u1")

    def packed(values: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()

    lines: list[dict[str, Any]] = [
        {"type": "start", "filename": "a.wav", "frame_hop": 0.16, "phrases": phrases}
        | {"outline": {"step": 0.1, "frequencies": list(range(bands))}}
    ]
    edges = [0, *sorted(random.integers(0, frames, 30).tolist()), frames]
    lines += [
        {"type": "frames", "first": a, "scores": packed(scores[:, a:b])} for a, b in zip(edges, edges[1:], strict=False)
    ]
    edges = [0, *sorted(random.integers(0, columns, 30).tolist()), columns]
    lines += [
        {"type": "outline", "first": a, "columns": b - a, "peaks": packed(peaks[a:b]), "spectrum": packed(levels[a:b])}
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    lines += [{"type": "progress", "position": 1.0}, {"type": "end", "duration": 799.5}]
    given = script(
        """
        const r = new recording.Recording();
        let analysed;
        for (const line of input) {
          if (line.type === "end") analysed = r.duration;
          r.take(line);
        }
        return { analysed, duration: r.duration, hop: r.hop, scores: r.tracks.map((track) => [...track.scores]),
                 peaks: [...r.peaks.subarray(0, 2 * r.columns)], levels: [...r.levels.subarray(0, r.bands * r.columns)],
                 loudest: r.loudest, quantiles: [0, 0.25, 0.9995].map((q) => r.quantile(q)) };
        """,
        lines,
    )
    assert np.array_equal(np.array(given["scores"], dtype=np.float32), scores)
    assert given["peaks"] == peaks.ravel().tolist() and given["levels"] == levels.ravel().tolist()
    assert given["analysed"] == pytest.approx(frames * 0.16) and given["duration"] == 799.5 and given["hop"] == 0.16
    assert given["loudest"] == int(np.abs(peaks.astype(int)).max())
    ordered = np.sort(levels, axis=None)
    assert given["quantiles"] == [int(ordered[int(q * len(ordered))]) for q in (0, 0.25, 0.9995)]


def test_the_outline_of_samples_has_the_units_of_the_service(script: Callable[..., Any]) -> None:
    """A full-scale tone of 1 kHz is 0 dB in the band of 1 kHz, and far below in others; silence is at the bottom."""
    body = """
      const rate = 16000;
      const tone = (i) => Math.sin(2 * Math.PI * 1000 * i / rate);
      const samples = Float32Array.from({ length: 2 * rate }, (_, i) => i < rate ? tone(i) : 0);
      const { columns, bands, peaks, levels, loudest } = spectrum.outlineOf(samples, rate, 0.1);
      const column = (c) => [...levels.subarray(c * bands, (c + 1) * bands)];
      return { columns, loudest, tone: column(5), silence: column(15), peaks: [...peaks.subarray(10, 12)] };
    """
    outline = script(body)
    assert outline["columns"] == 20 and outline["loudest"] == 32767 and outline["peaks"] == [-32767, 32767]
    tone = outline["tone"]
    loudest = tone.index(max(tone))
    assert abs(tone[loudest] / 2 - 127.5) <= 1
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (50, 7800))
    expected = (1127 * np.log(1 + 1000 / 700) - low) / (high - low) * len(tone)
    assert abs(loudest + 0.5 - expected) <= 1
    assert max(tone[: loudest - 5] + tone[loudest + 5 :]) / 2 - 127.5 < -50
    assert max(outline["silence"]) <= 2


def test_the_transform_is_a_fourier_transform(script: Callable[..., Any]) -> None:
    values = np.random.default_rng(1).normal(size=(2, 64))
    body = """
      const [re, im] = input.map((each) => Float64Array.from(each));
      spectrum.transform(re, im);
      return [[...re], [...im]];
    """
    real, imaginary = script(body, values.tolist())
    expected = np.fft.fft(values[0] + 1j * values[1])
    assert np.allclose(np.array(real) + 1j * np.array(imaginary), expected)
