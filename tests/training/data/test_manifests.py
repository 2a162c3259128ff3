"""Manifests are read as published, and the audio cache survives crashes and reports undecodable files."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.data.audio_cache import AudioFiles, AudioStore, UnreadableError
from training.data.manifests import Item, ManifestError, Phrase, read_labelled, read_manifest, write_manifest


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return path


def test_published_lines_are_read(tmp_path: Path) -> None:
    strong = {
        "audio_id": "a",
        "audio_path": "x/a.wav",
        "caption": ["A dog barks.", "Barking."],
        "phrases": [{"phrase": "dog bark", "segments": [[0.5, 1.25], [3, 4]]}],
    }
    weak = {"audio_id": "b", "audio_path": "b.wav", "caption": "Rain."}
    first, second = read_manifest(write(tmp_path / "m.jsonl", strong, weak))
    assert first == Item(
        "a", tmp_path / "x/a.wav", ("A dog barks.", "Barking."), (Phrase("dog bark", ((0.5, 1.25), (3.0, 4.0))),)
    )
    assert second.captions == ("Rain.",) and second.phrases is None


def test_written_manifests_can_be_read(tmp_path: Path) -> None:
    items = [
        Item("a", tmp_path / "a.wav", ("雨", "rain"), (Phrase("rain", ((0.0, 2.0),)),), "pack"),
        Item("b", tmp_path / "b.wav", ("wind",)),
    ]
    write_manifest(tmp_path / "m.jsonl", items, tmp_path)
    assert read_manifest(tmp_path / "m.jsonl") == items


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phrases": [{"phrase": "dog", "segments": [[2.0, 1.0]]}]}, "onset"),
        ({"phrases": [{"phrase": "dog", "segments": [[0.0, float("nan")]]}]}, "onset"),
        ({"phrases": [{"phrase": " ", "segments": [[0.0, 1.0]]}]}, "empty phrase"),
        ({"caption": ""}, "empty caption"),
        ({"audio_path": None}, "line 2"),
        ({"caption": []}, "neither"),
    ],
)
def test_invalid_lines_are_reported(tmp_path: Path, change: dict, reason: str) -> None:
    good = {"audio_id": "a", "audio_path": "a.wav", "caption": "Rain."}
    with pytest.raises(ManifestError, match=reason) as error:
        read_manifest(write(tmp_path / "m.jsonl", good, good | change))
    assert "m.jsonl, line 2" in str(error.value)


def test_missing_keys_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="audio_path"):
        read_manifest(write(tmp_path / "m.jsonl", {"audio_id": "a", "caption": "Rain."}))


def test_labelled_folder(tmp_path: Path) -> None:
    rows = [
        {"audio": "p/bell.ogg", "label": "bell", "package": "p"},
        {"audio": "p/x.ogg", "label": None, "package": "p"},
        {"audio": "q/y.ogg", "label": "dog", "package": "q"},
    ]
    write(tmp_path / "manifest.jsonl", *rows)
    items = read_labelled(tmp_path, exclude_groups=["q"])
    assert [(i.captions, i.group) for i in items] == [(("bell",), "p"), ((), "p")]


def test_the_store_decodes_once_and_reports_failures(tmp_path: Path) -> None:
    tone = np.sin(np.arange(8000) / 5).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "mono.wav", tone, 8000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, np.zeros_like(tone)], 1), 16000)
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    items = [Item(n, tmp_path / f"{n}.wav", ("x",)) for n in ("mono", "broken", "stereo", "missing")]
    store = AudioStore(tmp_path / "store.i16", items)
    assert [i.audio_id for i in store.items] == ["mono", "stereo"]
    assert set(store.failed) == {"broken", "missing"} and all(store.failed.values())
    assert len(store.get(0)) == 16000 and store.duration(0) == pytest.approx(1.0)
    np.testing.assert_allclose(store.get(1), tone / 2, atol=1e-4)
    before = (tmp_path / "store.i16").stat().st_mtime_ns
    again = AudioStore(tmp_path / "store.i16", items)
    assert (tmp_path / "store.i16").stat().st_mtime_ns == before
    assert [i.audio_id for i in again.items] == ["mono", "stereo"] and again.failed == store.failed


def test_lines_that_are_not_text_are_reported(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(
        b'{"audio_id": "a", "audio_path": "a.wav", "caption": "rain"}\n{"caption": "\xff"}\n'
    )
    with pytest.raises(ManifestError, match="m.jsonl, line 2"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("[1]\n")
    with pytest.raises(ManifestError, match="line 1: not an object"):
        read_manifest(tmp_path / "m.jsonl")


def tones(folder: Path, count: int, seconds: float = 0.1) -> list[Item]:
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", np.full(int(16000 * seconds), (i + 1) / (count + 1), np.float32), 16000)
    return [Item(str(i), folder / f"{i}.wav", ("tone",)) for i in range(count)]


def assert_tones(store: AudioStore, items: list[Item]) -> None:
    assert [i.audio_id for i in store.items] == [i.audio_id for i in items]
    for i, item in enumerate(items):
        np.testing.assert_allclose(store.get(i), soundfile.read(item.path, dtype="float32")[0], atol=1e-4)


def test_a_part_of_the_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ramp.wav", np.arange(1000, dtype=np.float32) / 1000, 16000)
    items = [Item("ramp", tmp_path / "ramp.wav", ("x",))]
    for source in (AudioStore(tmp_path / "s.i16", items), AudioFiles(items)):
        whole = source.get(0)
        assert source.length(0) == len(whole) == 1000
        np.testing.assert_array_equal(source.get(0, 100, 250), whole[100:250])
        np.testing.assert_array_equal(source.get(0, 900, 2000), whole[900:])


def test_a_changed_file_is_decoded_again_and_a_new_one_added(tmp_path: Path) -> None:
    items = tones(tmp_path, 3)
    AudioStore(tmp_path / "s.i16", items[:2])
    soundfile.write(items[0].path, np.full(500, -0.5, np.float32), 16000)
    size = (tmp_path / "s.i16").stat().st_size
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)
    assert (tmp_path / "s.i16").stat().st_size == size + 2 * (500 + 1600)  # nothing else was decoded
    items[1].path.unlink()
    store = AudioStore(tmp_path / "s.i16", items)
    assert store.failed == {"1": "no such file"}
    assert_tones(store, [items[0], items[2]])


def test_a_repaired_file_is_read(tmp_path: Path) -> None:
    items = tones(tmp_path, 2)
    good, stat = items[0].path.read_bytes(), items[0].path.stat()
    items[0].path.write_bytes(b"x" * len(good))
    assert set(AudioStore(tmp_path / "s.i16", items).failed) == {"0"}
    items[0].path.write_bytes(good)
    os.utime(items[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)


@pytest.mark.parametrize("damage", ["torn index", "torn audio", "no index", "no audio", "short audio", "garbage"])
def test_a_damaged_cache_is_repaired(tmp_path: Path, damage: str) -> None:
    items = tones(tmp_path, 4)
    AudioStore(tmp_path / "s.i16", items)
    audio, index = tmp_path / "s.i16", tmp_path / "s.jsonl"
    if damage == "torn index":
        index.write_bytes(index.read_bytes()[:-20])
    elif damage == "torn audio":
        audio.write_bytes(audio.read_bytes() + b"\x01" * 333)
    elif damage == "no index":
        index.unlink()
        audio.write_bytes(b"\x01" * 3)
    elif damage == "no audio":
        audio.unlink()
    elif damage == "short audio":
        audio.write_bytes(audio.read_bytes()[: 2 * 1600 + 77])
    else:
        index.write_bytes(b"\x00" * 100 + index.read_bytes())
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)


def test_a_killed_writer_keeps_finished_files(tmp_path: Path) -> None:
    items = tones(tmp_path, 400)
    script = (
        "import sys; from pathlib import Path\n"
        "from training.data.audio_cache import AudioStore; from training.data.manifests import Item\n"
        "AudioStore.COMMIT_SAMPLES = 1\n"
        "f = Path(sys.argv[1]); items = [Item(str(i), f / f'{i}.wav', ('x',)) for i in range(400)]\n"
        "AudioStore(f / 's.i16', items, threads=1)"
    )
    repo = Path(__file__).parents[3]
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=repo)
    index = tmp_path / "s.jsonl"
    while writer.poll() is None and (not index.is_file() or index.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    writer.kill()
    writer.wait()
    finished = index.read_bytes().count(b"\n")
    assert finished >= 20
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)
    assert index.read_bytes().count(b"\n") == 400  # finished files were not decoded again


def test_a_full_disk_is_an_error_and_finished_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = tones(tmp_path, 12)
    monkeypatch.setattr(AudioStore, "COMMIT_SAMPLES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 3200 + 100, hard))  # space for five files
    try:
        with pytest.raises(OSError, match=r"cannot cache decoded audio.*s\.i16"):
            AudioStore(tmp_path / "s.i16", items, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "s.i16").stat().st_size == 4 * 3200  # the fifth file belongs to an incomplete group
    assert_tones(AudioStore(tmp_path / "s.i16", items[:4]), items[:4])
    assert_tones(AudioStore(tmp_path / "s.i16", items), items)


def test_several_processes_can_open_one_cache(tmp_path: Path) -> None:
    items = tones(tmp_path, 30)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: AudioStore(tmp_path / "s.i16", items), range(4)))
    for store in stores:
        assert_tones(store, items)
    assert (tmp_path / "s.i16").stat().st_size == 30 * 3200


def test_without_a_cache_corrupt_audio_is_reported_on_access(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    items = [Item(n, tmp_path / n, ("x",)) for n in ("cut.flac", "broken.wav", "gone.wav")]
    files = AudioFiles(items)
    assert set(files.failed) == {"broken.wav", "gone.wav"} and [i.audio_id for i in files.items] == ["cut.flac"]
    with pytest.raises(UnreadableError, match="cut.flac"):
        files.get(0)
    assert set(AudioStore(tmp_path / "s.i16", items).failed) == {"cut.flac", "broken.wav", "gone.wav"}
