"""Stretches, backgrounds and mixtures are what their settings say; a set's bytes depend on its seed alone."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.config import SAMPLE_RATE
from training.data.activity import (
    ClipConfig,
    SimulationError,
    background_pieces,
    clip_event,
    first_stretch,
    is_background,
)
from training.data.manifests import read_manifest
from training.data.mixer import GAP, MixConfig, Mixer, SoundClip, caption
from training.simulation.dataset import MixtureSetConfig, write_mixtures
from training.simulation.jobs import Workers
from training.simulation.sources import read_sources

CUTTING = ClipConfig(background=4.0, shortest=0.3, longest=3.0)


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.3)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def slow_stretch(samples: np.ndarray, config: ClipConfig) -> tuple[float, float] | None:
    """Window by window, hop by hop."""
    peak, hops = float(np.abs(samples).max()), [samples[i : i + 160] for i in range(0, len(samples), 160)]
    power = [max(float(np.mean((h.astype(np.float64) / peak) ** 2)), 0.0) + 1e-12 for h in hops]
    line, size = 10 ** (config.threshold_db / 10), min(round(config.window * 100), len(hops))
    sounding: set[int] = set()
    for start in range(len(hops) - size + 1):
        if np.mean(power[start : start + size]) > line:
            sounding.update(range(start, start + size))
        elif sounding:
            break
    loud = [i for i in sounding if power[i] > line]
    return (min(loud) * 0.01, min((max(loud) + 1) * 0.01, len(samples) / SAMPLE_RATE)) if loud else None


def test_the_first_continuous_stretch() -> None:
    sound = np.concatenate([silence(0.5), tone(0.6), silence(0.1), tone(0.6), silence(1.0), tone(2.0)])
    assert first_stretch(sound, ClipConfig()) == pytest.approx((0.5, 1.8), abs=0.011)
    assert first_stretch(sound * 1e-2, ClipConfig()) == first_stretch(sound, ClipConfig())
    assert first_stretch(silence(1), ClipConfig()) is None
    assert first_stretch(silence(0), ClipConfig()) is None


@pytest.mark.parametrize("seed", range(12))
def test_stretch_equals_the_slow_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(int(rng.integers(40, 9000))) * 10 ** (-rng.uniform(0, 4.5)) for _ in range(12)]
    sound = np.concatenate(parts).astype(np.float32)
    assert first_stretch(sound, ClipConfig()) == pytest.approx(slow_stretch(sound, ClipConfig()))


def test_only_stretches_of_the_right_length_are_kept() -> None:
    config = ClipConfig()
    assert clip_event(tone(1.0), config)[0] == pytest.approx((0, 1.0))
    assert clip_event(tone(7.5), config)[0] == pytest.approx((0, 7.5))
    assert clip_event(tone(0.9), config) == (None, "sounds for less than 1 s")
    assert clip_event(tone(7.6), config) == (None, "sounds for more than 7.5 s")
    assert clip_event(silence(3), config) == (None, "silent")


def test_backgrounds_are_long_and_steady_or_named() -> None:
    config = ClipConfig(backgrounds=("rain*", "Wind"), pieces=2)
    noise = np.random.default_rng(0).standard_normal(35 * SAMPLE_RATE).astype(np.float32) * 0.1
    assert background_pieces(noise, config, False) == [0.0, 10.0]
    assert background_pieces(noise[: 9 * SAMPLE_RATE], config, True) == []
    broken = np.concatenate([tone(5), silence(6), tone(5)])
    assert background_pieces(broken, config, False) == []
    assert background_pieces(broken, config, True) == [0.0]
    assert [is_background(x, config) for x in ("rain", "rain on roof", "wind", "window", "train")] == [1, 1, 1, 0, 0]


def sounds() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(1).standard_normal(10 * SAMPLE_RATE).astype(np.float32) * 0.1
    return {"bed": noise} | {f"e{i}": tone(1.0 + i, 0.3) for i in range(6)}


def mixer(**settings: object) -> Mixer:
    store = sounds()
    events = [SoundClip(f"e{i}", f"label {i}", 1.0 + i) for i in range(6)]
    return Mixer(events, [SoundClip("bed", "label 0", 10.0)], lambda c: store[c.name], MixConfig(**settings))  # type: ignore[arg-type]


def test_mixtures_are_as_drawn() -> None:
    counts, repeats = set(), set()
    for seed in range(80):
        mixture = mixer().draw(np.random.default_rng(seed))
        counts.add(len(mixture.events))
        assert len(mixture.samples) == 10 * SAMPLE_RATE and np.abs(mixture.samples).max() <= 0.9501
        labels = [e.clip.label for e in mixture.events]
        assert len(set(labels)) == len(labels) and "label 0" not in labels  # the background is called that
        for event in mixture.events:
            assert 12 <= event.snr_db <= 20
            spans = event.segments
            assert all(b - a == pytest.approx(event.clip.seconds, abs=1e-3) and 0 <= a < b <= 10 for a, b in spans)
            assert all(later[0] - sooner[1] >= GAP - 1e-3 for sooner, later in zip(spans, spans[1:], strict=False))
            repeats.add(len(spans))
            assert len(spans) == 1 or event.clip.seconds < 3
    assert counts == {1, 2, 3, 4, 5} and repeats == {1, 2, 3}


def test_an_event_is_as_far_above_the_background_as_it_says() -> None:
    for seed in range(10):
        mixture = mixer(events=(1, 1)).draw(np.random.default_rng(seed))
        (event,) = mixture.events
        bed, heard = sounds()["bed"], np.zeros(10 * SAMPLE_RATE, bool)
        for a, b in event.segments:
            heard[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] = True
        scale = np.sqrt((mixture.samples[~heard] ** 2).mean() / (bed[~heard] ** 2).mean())  # by the peak guard
        alone = mixture.samples[heard] / scale - bed[heard]
        assert 10 * np.log10((alone**2).mean() / (bed**2).mean()) == pytest.approx(event.snr_db, abs=0.1)


def test_one_state_one_mixture_and_augmentation_changes_it() -> None:
    first, second, other = (mixer().draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.samples, second.samples)
    assert (first.events, first.caption) == (second.events, second.caption) and first.events != other.events
    for varied in ({"reverb": 1.0}, {"equalise_db": 9.0}, {"swell_db": 12.0}):
        mixture = mixer(**varied).draw(np.random.default_rng(3))
        assert not np.array_equal(mixture.samples, first.samples)
        assert all(0 <= a < b <= 10 for e in mixture.events for a, b in e.segments)


def test_captions_name_every_sound() -> None:
    for seed in range(30):
        text = caption(["dog bark", "bell", "horn"], "rain", np.random.default_rng(seed))
        assert text[0].isupper() and text.endswith(".") and "dog bark, bell and horn" in text.lower() and "rain" in text


def test_settings_and_sounds_that_cannot_be_used() -> None:
    for bad in ({"events": (0, 2)}, {"events": (3, 2)}, {"snr_db": (20.0, 12.0)}, {"reverb": 2.0}):
        with pytest.raises(SimulationError):
            MixConfig(**bad)  # type: ignore[arg-type]
    for bad in ({"shortest": 2.0, "longest": 1.0}, {"longest": 11.0}, {"threshold_db": 3.0}):
        with pytest.raises(SimulationError):
            ClipConfig(**bad)
    with pytest.raises(SimulationError, match="no background"):
        Mixer([SoundClip("a", "a", 1)], [], lambda c: tone(1))
    with pytest.raises(SimulationError, match="every event has the label of a background"):
        Mixer([SoundClip("a", "a", 1)], [SoundClip("b", "a", 1)], lambda c: tone(1)).draw(np.random.default_rng(0))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(5)
    made = {
        "bell/1.wav": tone(0.5),
        "bell/2.wav": tone(0.1),
        "horn/1.flac": tone(1.2),
        "dog/1.ogg": np.concatenate([silence(0.2), tone(0.6)]),
        "rain/1.wav": rng.standard_normal(9 * SAMPLE_RATE) * 0.05,
        "quiet/1.wav": silence(1.0),
    }
    for name, samples in made.items():
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, samples, SAMPLE_RATE)
    (folder / "dog" / "2.wav").write_bytes(b"RIFF, but no more")
    return folder


def content(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make(tree: Path, out: Path, count: int = 5, seed: int = 1, workers: int = 1):  # noqa: ANN201
    return write_mixtures(read_sources(tree), [], out, MixtureSetConfig(count, seed, CUTTING), Workers(workers))


def test_a_set_is_readable_counted_and_the_same_again(tree: Path, tmp_path: Path) -> None:
    made = make(tree, tmp_path / "a")
    assert (made.events, made.labels, made.backgrounds, made.made) == (3, 3, 2, 5)
    assert dict(made.unusable) == {"sounds for less than 0.3 s": 1, "silent": 1, "cannot be decoded": 1}
    items = read_manifest(tmp_path / "a" / "manifest.jsonl")
    strong = [line.split("\t") for line in (tmp_path / "a" / "strong.tsv").read_text().splitlines()]
    assert strong[0] == ["filename", "onset", "offset", "event_label"]
    listed = {(i.path.name, *s, p.text) for i in items for p in i.phrases or () for s in p.segments}
    assert {(f, float(a), float(b), e) for f, a, b, e in strong[1:]} == listed and len(items) == 5
    info = soundfile.info(items[0].path)
    assert (info.format, info.samplerate, info.duration, info.channels) == ("FLAC", SAMPLE_RATE, 4.0, 1)
    assert make(tree, tmp_path / "a").made == 0  # nothing left to do
    make(tree, tmp_path / "b", workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(make_other(tree, tmp_path / "c"))


def make_other(tree: Path, out: Path) -> Path:
    make(tree, out, seed=2)
    return out


def test_a_set_grows_but_keeps_its_settings(tree: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "a", count=3)
    assert make(tree, tmp_path / "a", count=5).made == 2
    make(tree, tmp_path / "b", count=5)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    with pytest.raises(SimulationError, match="seed 1, not 2"):
        make(tree, tmp_path / "a", seed=2)
    with pytest.raises(SimulationError, match="has 5 mixtures already"):
        make(tree, tmp_path / "a", count=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(SimulationError, match="not empty"):
        make(tree, tmp_path / "mine")


KILLED = """
import argparse, os, signal
from training.simulation import jobs
from training.commands import simulate
line_of = jobs.line_of
def line_or_end(row):
    if row.get("audio_id") == "mix-1-000020":
        os.kill(os.getpid(), signal.SIGKILL)
    return line_of(row)
jobs.line_of = line_or_end
parser = argparse.ArgumentParser()
simulate.add_arguments(parser)
simulate.run(parser.parse_args())
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tree: Path, tmp_path: Path, repo_dir: Path) -> None:
    make(tree, tmp_path / "whole", count=100)
    own = ["--event-seconds", "0.3", "3", "--seconds", "4", "--seed", "1", "--workers", "1"]
    command = [sys.executable, "-c", KILLED, str(tree), "--out", str(tmp_path / "a"), "--count", "100", *own]
    run = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    part = tmp_path / "a" / "mixtures.jsonl.part"
    with part.open("a") as f:
        f.write('{"audio_id": "broken o')
    (tmp_path / "a" / "audio" / "x.flac.part").write_bytes(b"half")
    assert make(tree, tmp_path / "a", count=100).made == 80
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_a_full_disk_is_one_error_and_nothing_half_written(tree: Path, tmp_path: Path, repo_dir: Path) -> None:
    def small() -> None:  # files end at 40 kB, as on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    script = (
        "import sys; from pathlib import Path; from training.data.activity import ClipConfig;"
        "from training.simulation.dataset import *; from training.simulation.sources import read_sources\n"
        "try: write_mixtures(read_sources(Path(sys.argv[1])), [], Path(sys.argv[2]),"
        " MixtureSetConfig(5, 1, ClipConfig(background=4.0, shortest=0.3, longest=3.0)))\n"
        "except OSError as e: print('OSError', Path(e.filename).suffix, e.strerror)"
    )
    where = [str(tree), str(tmp_path / "a")]
    run = subprocess.run(
        [sys.executable, "-c", script, *where], cwd=repo_dir, capture_output=True, text=True, preexec_fn=small
    )
    assert run.stdout.strip() == f"OSError .flac {os.strerror(27)}", run.stderr
    flacs = list((tmp_path / "a").rglob("*.flac"))
    assert flacs and all(len(soundfile.read(p)[0]) for p in flacs)
    assert not list((tmp_path / "a").rglob("*.flac.part"))
    make(tree, tmp_path / "a")
    make(tree, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_rows_say_where_each_sound_came_from(tree: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "clips.jsonl").read_text().splitlines()]
    kept = {f for r in rows for f in r.get("files", [r.get("file")]) if f}
    assert all((tmp_path / "a" / f).is_file() for f in kept)
    mixtures = [json.loads(line) for line in (tmp_path / "a" / "mixtures.jsonl").read_text().splitlines()]
    assert {e["file"] for m in mixtures for e in m["events"]} <= kept
    assert str(tree.parent) not in (tmp_path / "a" / "clips.jsonl").read_text()
