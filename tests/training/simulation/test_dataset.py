"""A folder of mixtures is complete, resumable, and byte-identical for the same seed."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from app.cli.main import main
from model.config import SAMPLE_RATE
from training.data.activity import ClipConfig, SimulationError
from training.data.manifests import read_manifest
from training.simulation.dataset import MixtureSetConfig, write_mixtures
from training.simulation.jobs import Workers
from training.simulation.sources import read_sources

CUTTING = ClipConfig(background=4.0, shortest=0.3, longest=3.0)


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.3)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


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


def test_a_folder_is_readable_and_reproducible(tree: Path, tmp_path: Path) -> None:
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
    assert make(tree, tmp_path / "a").made == 0  # already complete
    make(tree, tmp_path / "b", workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(make_other(tree, tmp_path / "c"))


def make_other(tree: Path, out: Path) -> Path:
    make(tree, out, seed=2)
    return out


def test_a_folder_can_grow_but_not_change_its_settings(tree: Path, tmp_path: Path) -> None:
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


def test_the_published_preset(tree: Path, tmp_path: Path) -> None:
    loud = tmp_path / "sounds"
    shutil.copytree(tree, loud)
    soundfile.write(loud / "bell" / "3.wav", tone(1.5, 3e-4), SAMPLE_RATE, subtype="FLOAT")  # -74 dBFS: above
    soundfile.write(loud / "bell" / "4.wav", tone(1.5, 1e-5), SAMPLE_RATE, subtype="FLOAT")  # -103 dBFS: silent
    arguments = ["simulate", str(loud), "--preset", "published", "--count", "4", "--workers", "1", "--seconds", "4"]
    arguments += ["--event-seconds", "0.3", "3", "--background", "rain"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    kinds = {row["recording"].removeprefix("sounds/"): row["kind"] for row in rows}
    assert kinds["bell/3.wav"] == "event" and kinds["bell/4.wav"] is None
    items = read_manifest(tmp_path / "out" / "manifest.jsonl")
    for item in items:
        samples, rate = soundfile.read(item.path)
        assert rate == 22_050 and len(samples) == 4 * rate and np.abs(samples).max() > 0.99
        assert all(b <= 4.0 for p in item.phrases or () for _, b in p.segments)
    with pytest.raises(SimulationError, match="made with other settings.*draw"):
        ours = MixtureSetConfig(4, 0, ClipConfig(background=4.0, shortest=0.3, longest=3.0, backgrounds=("rain",)))
        write_mixtures(read_sources(loud), [], tmp_path / "out", ours)
    assert main([*arguments, "--out", str(tmp_path / "other"), "--pictures", "1"]) == 1


def test_settings_of_ours_are_stored_as_before(tree: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "a", count=1)
    stored = json.loads((tmp_path / "a" / "simulate.json").read_text())
    assert not {"rule", "sample_rate"} & set(stored["cutting"]) and not {"draw", "normalise"} & set(stored["mixing"])


KILLED = """
import argparse, os, signal
from training.simulation import jobs
from training.commands import simulate
line_of = jobs.line_of
def line_or_kill(row):
    if row.get("audio_id") == "mix-1-000020":
        os.kill(os.getpid(), signal.SIGKILL)
    return line_of(row)
jobs.line_of = line_or_kill
parser = argparse.ArgumentParser()
simulate.add_arguments(parser)
simulate.run(parser.parse_args())
"""


def test_a_killed_run_resumes_to_the_same_bytes(tree: Path, tmp_path: Path, repo_dir: Path) -> None:
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


def test_a_full_disk_is_an_error_and_leaves_no_partial_file(tree: Path, tmp_path: Path, repo_dir: Path) -> None:
    def small() -> None:  # limits files to 40 kB, like a full disk
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


def test_rows_name_the_origin_of_each_sound(tree: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "clips.jsonl").read_text().splitlines()]
    kept = {f for r in rows for f in r.get("files", [r.get("file")]) if f}
    assert all((tmp_path / "a" / f).is_file() for f in kept)
    mixtures = [json.loads(line) for line in (tmp_path / "a" / "mixtures.jsonl").read_text().splitlines()]
    assert {e["file"] for m in mixtures for e in m["events"]} <= kept
    assert str(tree.parent) not in (tmp_path / "a" / "clips.jsonl").read_text()
