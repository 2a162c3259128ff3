"""Killed at any moment, the library has every change that was acknowledged and no half of any other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index import SqliteLibrary
from tests.support.clips import nearest_hits
from tests.support.crash_writer import clip_of, sound_of

ROUNDS = int(os.environ.get("FINELAP_CRASH_ROUNDS", "8"))  # kills
REPO = Path(__file__).parents[3]
WRITER = REPO / "tests/support/crash_writer.py"


def _run_and_kill(folder: Path, start: int, changes: int, delay: float, *more: str) -> list[list]:
    """Kills a writer `delay` seconds after it acknowledged so many changes; the lines it printed whole."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(WRITER), str(folder), str(start), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout
    output, done = b"", 0
    while done < changes:
        line = process.stdout.readline()
        assert line, "the writer ended by itself"
        output += line
        done += line.startswith(b'["done"')
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    output += process.stdout.read()
    process.wait(10)
    process.stdout.close()
    return [json.loads(line) for line in output.split(b"\n")[:-1]]


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path: Path) -> None:
    choose = random.Random(7)
    versions: dict[int, int] = {}  # of every clip that must be there
    for turn in range(ROUNDS):
        lines = _run_and_kill(
            tmp_path / "library", turn * 1_000_000, changes=choose.randint(1, 80), delay=choose.uniform(0, 0.02)
        )
        begun: dict[tuple[str, tuple[int, ...]], None] = {}
        for line in lines:
            if line[0] == "open":
                continue
            state, verb, seeds = line
            if state == "begin":
                begun[verb, tuple(seeds)] = None
                continue
            del begun[verb, tuple(seeds)]
            for seed in seeds:
                if verb == "add":
                    versions[seed] = 0
                elif verb == "update":
                    versions[seed] += 1
                else:
                    del versions[seed]

        with SqliteLibrary.open(tmp_path / "library", dim=32, checkpoint="crash") as library:
            clips, _ = library.list(100_000)
            there = {clip.metadata["seed"]: clip for clip in clips}
            assert len(there) == len(clips) == len(library)
            may_add = {seed for verb, seeds in begun if verb == "add" for seed in seeds}
            may_go = {seed for verb, seeds in begun if verb == "delete" for seed in seeds}
            may_change = {seed for verb, seeds in begun if verb == "update" for seed in seeds}
            assert set(versions) - may_go <= set(there)  # every acknowledged clip
            assert set(there) <= set(versions) | may_add  # and nothing that was deleted or never begun
            for verb, seeds in begun:
                if verb == "add":
                    assert len(set(seeds) & set(there)) in (0, len(seeds))  # a batch whole or not at all
            everything = {hit.clip.id for hit in nearest_hits(library, np.ones(32, np.float32), 100_000)}
            assert everything == {clip.id for clip in clips}
            by_stretch = {hit.clip.id for hit in library.search_segments(np.ones(32, np.float32), 100_000)}
            assert by_stretch == everything
            for seed, clip in there.items():
                new = clip_of(seed, batch=0)
                version = versions.get(seed, 0)
                assert clip.metadata["version"] in ((version, version + 1) if seed in may_change else (version,))
                assert library.audio_path(clip.id).read_bytes() == new.audio
                np.testing.assert_array_equal(library.clip_vector(clip.id), new.embedding)
                assert library.frames(clip.id)[0].shape == new.frames.shape
                [stretch] = library.search_segments(new.frames[0], 1, {"seed": seed})
                assert stretch.clip == clip and stretch.similarity > 0.4
                [hit] = nearest_hits(library, new.embedding, 1, {"seed": seed})
                assert hit.clip == clip and abs(hit.similarity - 1) < 1e-5
            names = {path.name for path in (tmp_path / "library" / "audio").rglob("*") if path.is_file()}
            assert names == {clip.sha256 for clip in clips}
            versions = {seed: clip.metadata["version"] for seed, clip in there.items()}


@pytest.mark.slow
def test_concepts_survive_kills(tmp_path: Path) -> None:
    choose = random.Random(3)
    there: set[int] = set()  # examples that must be there
    for turn in range(3):
        lines = _run_and_kill(
            tmp_path / "library", turn * 1_000_000, choose.randint(3, 60), choose.uniform(0, 0.02), "concepts"
        )
        begun: dict[tuple[str, int], None] = {}
        for state, verb, (seed, *_) in (line for line in lines if line[0] != "open"):
            if state == "begin":
                begun[verb, seed] = None
                continue
            del begun[verb, seed]
            (there.add if verb == "add" else there.discard)(seed)
        with SqliteLibrary.open(tmp_path / "library", dim=32, checkpoint="crash") as library:
            store = library.concepts
            examples = {
                int(one.filename): (concept, one) for concept in store.list() for one in store.examples(concept.id)
            }
            may_add = {seed for verb, seed in begun if verb == "add"}
            may_go = {seed for verb, seed in begun if verb == "delete"}
            assert there - may_go <= set(examples) <= there | may_add
            there = set(examples)
            stored = store.sounds([one.sha256 or "" for _, one in examples.values()])
            for seed, (concept, one) in examples.items():
                assert one.label == (bool(seed % 3) if seed % 100_000 else True)
                assert store.audio(concept.id, one.id) == sound_of(seed).audio and one.sha256 in stored
