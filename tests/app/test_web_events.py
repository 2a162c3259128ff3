"""The page's scripts compute the same events and export files as the service."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.export.formats import to_audacity, to_csv, to_raven
from model.detection import DetectionSettings, find_events

HOPS = (0.16, 0.1, 0.02, 1 / 3)
COUNT = 400
AWKWARD = [
    "dog barking",
    'a "loud", long bang; twice',
    "tab\tand\nline  break",
    "犬が吠える\u3000大きい",
    "=1+1",
    "''-20 dB noise",
    "＠home",
    "'quoted'",
    " \x1c\x85\u2028 odd\xa0spaces\ufeff ",
]


@pytest.fixture(scope="module")
def script(repo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Any]:
    """Runs a script with the page's modules and `input`, a JSON value; returns its JSON result."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the browser's tests run the same modules")
    folder = tmp_path_factory.mktemp("web")
    for name in ("events.js", "exports.js"):
        shutil.copy(repo_dir / "app" / "web" / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(body: str, input: Any) -> Any:
        (folder / "main.js").write_text(
            'import * as events from "./events.js";\nimport * as exports from "./exports.js";\n'
            'import { readFileSync, writeSync } from "node:fs";\n'
            "const input = JSON.parse(readFileSync(0));\n"
            f"const output = (() => {{ {body} }})();\n"
            "const bytes = Buffer.from(JSON.stringify(output));\n"
            "for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);\n"
        )
        done = subprocess.run(
            [node, "main.js"], cwd=folder, input=json.dumps(input).encode(), capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


def random_case(random: np.random.Generator) -> dict[str, Any]:
    """A realistic track, noise, or steps that meet thresholds exactly, with settings that may be extreme."""
    count, hop = int(random.integers(1, 700)), float(random.choice(HOPS))
    kind = random.integers(3)
    if kind == 0:
        drift = 2 * np.cumsum(random.normal(0, 0.5, count))
        scores = 1 / (1 + np.exp(-drift + random.normal(0, 0.5, count)))
    elif kind == 1:
        scores = random.random(count)
    else:
        scores = random.integers(0, 11, count) / 10
    threshold = round(float(random.random()), int(random.integers(1, 4)))
    low = None if random.random() < 0.5 else threshold * round(float(random.random()), 2)
    settings = DetectionSettings(
        threshold=threshold,
        low_threshold=low,
        median_filter=float(random.choice([0, 0.1, 0.32, 0.48, 1.6, 7.0, 60.0])),
        min_duration=float(random.choice([0, 0, 0.16, 0.5, 3.0])),
        max_gap=float(random.choice([0, 0.2, 0.32, 1.0, 10.0])),
    )
    duration = count * hop - float(random.choice([0, 0, 1e-7, 0.3, 1.01, 40])) * hop
    return {
        "scores": scores.astype(np.float32),
        "settings": settings,
        "hop": hop,
        "duration": max(duration, hop / 3),
        "cuts": sorted(random.integers(0, count + 1, int(random.integers(0, 20))).tolist()),
    }


def as_input(case: dict[str, Any]) -> dict[str, Any]:
    settings = asdict(case["settings"])
    return {
        "scores": base64.b64encode(case["scores"].tobytes()).decode(),
        "settings": {
            "threshold": settings["threshold"],
            "lowThreshold": settings["low_threshold"],
            "medianFilter": settings["median_filter"],
            "minDuration": settings["min_duration"],
            "maxGap": settings["max_gap"],
        },
        "hop": case["hop"],
        "duration": case["duration"],
        "cuts": case["cuts"],
    }


def test_events_equal_those_of_the_service(script: Callable[[str, Any], Any]) -> None:
    """Complete tracks, and growing tracks evaluated in between with other settings: equal to the last bit."""
    random = np.random.default_rng(5)
    cases = [random_case(random) for _ in range(COUNT)]
    given = script(
        """
        return input.map(({ scores, settings, hop, duration, cuts }) => {
          const bytes = Uint8Array.from(atob(scores), (c) => c.charCodeAt(0));
          const all = new Float32Array(bytes.buffer);
          const whole = events.findEvents(all, settings, hop, duration);
          const track = new events.Track();
          let at = 0;
          for (const cut of [...cuts, all.length]) {
            track.push(all.subarray(at, cut));
            at = cut;
            if (at) track.events(settings, hop, at * hop);
          }
          const grown = track.events(settings, hop, duration);
          for (const medianFilter of [0, 1.6]) track.events({ ...settings, medianFilter }, hop, duration);
          return { whole, grown, again: track.events(settings, hop, duration), highest: track.highest };
        });
        """,
        [as_input(case) for case in cases],
    )
    found = 0
    for case, answer in zip(cases, given, strict=True):
        wanted = [
            asdict(event) for event in find_events(case["scores"], case["settings"], case["hop"], case["duration"])
        ]
        assert answer["whole"] == answer["grown"] == answer["again"] == wanted, case
        assert answer["highest"] == float(case["scores"].max())
        found += len(wanted)
    assert found > COUNT


def test_defaults_equal_those_of_the_service(script: Callable[[str, Any], Any]) -> None:
    given, wanted = script("return events.DEFAULTS;", None), DetectionSettings()
    assert given == {
        "threshold": wanted.threshold,
        "lowThreshold": wanted.low_threshold,
        "medianFilter": wanted.median_filter,
        "minDuration": wanted.min_duration,
        "maxGap": wanted.max_gap,
    }


def test_numbers_are_rounded_as_python_does(script: Callable[[str, Any], Any]) -> None:
    random = np.random.default_rng(0)
    values = [0.0, 0.0625, 0.1875, 3.0625, 2.5, 0.5, 1.0005, 0.99995, 3599.9995, 3601.1875]
    values += (random.integers(0, 2**20, 2_000) / 128).tolist() + random.random(2_000).tolist()
    given = script("return input.map((x) => [2, 3, 4, 6].map((n) => events.fixed(x, n)));", values)
    assert given == [[f"{x:.{n}f}" for n in (2, 3, 4, 6)] for x in values]
    event = {"onset": 3.0625, "offset": 3601.1875, "score": float(np.float32(0.8))}
    rounded = {"onset": 3.062, "offset": 3601.188, "score": 0.8}
    assert script("return events.rounded(input);", event) == rounded


def test_files_equal_those_of_the_service(script: Callable[[str, Any], Any]) -> None:
    random = np.random.default_rng(1)
    for filename in ("street, night.wav", '=HYPERLINK("http://x")', "狗 叫.flac", "plain.wav"):
        phrases = [
            {
                "phrase": phrase,
                "events": [
                    {"onset": onset, "offset": onset + 0.48, "score": round(float(random.random()), 6)}
                    for onset in np.round(np.sort(random.integers(0, 60, 5)) * 0.0625, 3).tolist()
                ],
            }
            for phrase in [*AWKWARD, "never heard"]
        ]
        phrases[-1]["events"] = []
        answer = {"filename": filename, "duration": 10.0, "phrases": phrases}
        given = script("return [exports.toCsv(input), exports.toAudacity(input), exports.toRaven(input)];", answer)
        assert given == [to_csv(answer), to_audacity(answer), to_raven(answer)]


def test_files_without_events(script: Callable[[str, Any], Any]) -> None:
    answer = {"filename": "a.wav", "phrases": [{"phrase": "dog", "events": []}]}
    given = script("return [exports.toCsv(input), exports.toAudacity(input), exports.toRaven(input)];", answer)
    assert given == [to_csv(answer), to_audacity(answer), to_raven(answer)]
