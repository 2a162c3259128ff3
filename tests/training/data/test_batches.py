"""Batches are a function of the step, labels match the audio, and unreadable files contribute nothing.

Recordings are silent except for their events, each at a distinct level, so that the events of a crop can be decoded
from its samples without the code under test.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from model.config import ConfigError, WindowConfig
from training.config import parse_config
from training.data.batches import BLOCK, Batch, Batches, BatchPlan, Schedule, crop_samples, samples_per_frame
from training.data.manifests import ManifestError, Phrase
from training.data.phrase_bank import PhraseBank
from training.data.sets import DataConfig, DataError, SceneConfig, SetConfig, cropped

WINDOWS = WindowConfig(mel_frames=256, frames=16, frame_hop=0.16)
CLUSTERS = [["dog", "bark", "hound"], ["rain", "drizzle"], ["bell"], ["car", "engine"], ["wind"], ["drum", "snare"]]
BANK = PhraseBank(CLUSTERS)
NAMES = [c[0] for c in CLUSTERS[:4]]


def recording(folder: Path, name: str, seconds: float, events: dict[str, list[tuple[float, float]]]) -> dict:
    """Writes a file with each phrase at a distinct level; returns its manifest line."""
    samples = np.zeros(int(seconds * 16000), np.float32)
    for phrase, segments in events.items():
        for onset, offset in segments:
            samples[int(onset * 16000) : int(offset * 16000)] += level(phrase)
    soundfile.write(folder / f"{name}.wav", samples, 16000)
    phrases = [{"phrase": p, "segments": s} for p, s in events.items()]
    return {
        "audio_id": name,
        "audio_path": f"{name}.wav",
        "caption": [f"{name} one", f"{name} two"],
        "phrases": phrases,
    }


def level(phrase: str) -> float:
    return 2.0 ** -(1 + NAMES.index(phrase))  # unique in every sum


def manifest(folder: Path, rows: list[dict], name: str = "m.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strong recordings of 1 to 6 s, weak ones, and a folder of single sounds."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    strong, weak = [], []
    for n in range(10):
        seconds = float(rng.uniform(1, 6))
        events = {}
        for name in rng.permutation(NAMES)[: rng.integers(1, 4)]:
            onset = float(rng.uniform(0, seconds - 0.2))
            events[str(name)] = [(round(onset, 3), round(min(onset + float(rng.uniform(0.1, 2)), seconds), 3))]
        strong.append(recording(folder, f"s{n}", seconds, events))
    for n in range(5):
        row = recording(folder, f"w{n}", 1.5, {"bell": [(0.0, 1.0)]})
        del row["phrases"]
        weak.append(row)
    manifest(folder, strong)
    manifest(folder, weak, "weak.jsonl")
    lines = []
    (folder / "sounds").mkdir()
    for n, label in enumerate(["dog", "dog", "rain", "bell", None]):
        tone = 0.5 * np.sin(np.arange(6000 + 900 * n) * (0.1 + n / 10)).astype(np.float32)
        soundfile.write(folder / "sounds" / f"{n}.wav", tone, 16000)
        lines.append({"audio": f"{n}.wav", "label": label, "package": f"p{n % 2}"})
    manifest(folder / "sounds", lines, "manifest.jsonl")
    return folder


def mixed(**changes: object) -> DataConfig:
    sets = (
        SetConfig("m.jsonl", weight=2),
        SetConfig("weak.jsonl"),
        SetConfig(folder="sounds", simulate=True, scene=SceneConfig(augment=0.3)),
    )
    return DataConfig(**({"sets": sets, "seconds": 2.56, "phrases": 5, "workers": 0} | changes))  # type: ignore[arg-type]


def strong_only(**changes: object) -> DataConfig:
    return mixed(**({"sets": (SetConfig("m.jsonl"),), "swap": 0.0} | changes))


def make(root: Path, config: DataConfig, size: int = 6, seed: int = 0, rank: int = 0, world: int = 1) -> Batches:
    return Batches(config, root, WINDOWS, BANK, BatchPlan(size, seed, rank, world))


def assert_equal(first: Batch, second: Batch) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_batch_depends_only_on_its_step(root: Path) -> None:
    batches = make(root, mixed())
    wanted = [batches.batch(step) for step in range(4, 7)]
    assert_equal(make(root, mixed()).batch(5), wanted[1])
    for workers in (0, 1, 3):
        stream = make(root, mixed(workers=workers)).stream(4)
        for found, want in zip(islice(stream, 3), wanted, strict=True):
            assert_equal(found, want)
        stream.close()
    other = make(root, mixed(), seed=1).batch(5)
    assert other.captions != wanted[1].captions or other.phrases != wanted[1].phrases


def test_a_cache_changes_only_the_last_bit(root: Path, tmp_path: Path) -> None:
    plain, cached = make(root, strong_only()), make(root, strong_only(cache=str(tmp_path / "cache")))
    for step in range(3):
        first, second = plain.batch(step), cached.batch(step)
        torch.testing.assert_close(first.waveforms, second.waveforms, rtol=0, atol=1 / 32767)
        assert first.phrases == second.phrases and torch.equal(first.labels, second.labels)


def test_ranks_together_equal_one_process(root: Path) -> None:
    config = mixed(cache="cache")
    for step in range(3):
        whole = make(root, config, size=6).batch(step)
        parts = [make(root, config, 2, 0, rank, 3).batch(step) for rank in range(3)]
        for name in ("waveforms", "lengths", "labels", "strong"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)), name
        for name in ("captions", "phrases", "meanings"):
            assert sum((getattr(p, name) for p in parts), []) == getattr(whole, name), name


@pytest.mark.parametrize("crop", ["random", "centre"])
def test_labels_match_the_audio(root: Path, crop: str) -> None:
    """Compares labels with the samples, in which each phrase is a binary digit."""
    batches = make(root, strong_only(crop=crop, seconds=1.28))
    seen = Counter()
    for step in range(6):
        batch = batches.batch(step)
        for n in range(6):
            samples = batch.waveforms[n, : batch.labels.shape[2] * 2560].numpy()
            digits = np.rint(samples * 16).astype(int)
            positives = [p for p in range(5) if batch.labels[n, p].any()]
            audible = {name for name in NAMES if (digits & int(level(name) * 16)).astype(bool).sum() > 0.045 * 16000}
            assert audible <= {batch.phrases[n][p] for p in positives}
            assert positives == list(range(len(positives)))  # first in the row
            for p in positives:
                name = batch.phrases[n][p]
                on = (digits & int(level(name) * 16)).astype(bool).reshape(-1, 2560).mean(1)
                label = batch.labels[n, p].numpy()
                assert (label[on > 0.51] == 1).all() and (label[on == 0] == 0).all()
                assert label.sum() == 1 or (label[on < 0.49] == 0).all()  # a short event always has one frame
                seen[name] += 1
    assert len(seen) == 4


def test_events_outside_the_crop_are_not_positives(tmp_path: Path) -> None:
    events = {"dog": [(0.0, 0.5)], "rain": [(2.9, 3.39)], "bell": [(5.5, 6.0)], "car": [(0.5, 2.37), (3.63, 6.0)]}
    manifest(tmp_path, [recording(tmp_path, "a", 6.0, events)])
    batch = make(tmp_path, strong_only(crop="centre", seconds=1.28), size=2).batch(0)  # 2.36 s to 3.64 s
    assert batch.phrases[0][0] == "rain" and batch.labels[0, 1:].sum() == 0  # 10 ms of a car are dropped
    assert torch.nonzero(batch.labels[0, 0]).flatten().tolist() == [3, 4, 5]  # 0.54 s to 1.03 s


def test_the_start_is_cropped_and_only_the_first_channel_is_heard(tmp_path: Path) -> None:
    stereo = np.zeros((4 * 16000, 2), np.float32)
    stereo[:16000, 0], stereo[:, 1], stereo[16000:, 0] = 0.5, 0.25, 0.125
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT")
    segments = {"dog": [[0.0, 1.0]], "rain": [[1.5, 4.0]]}
    phrases = [{"phrase": p, "segments": s} for p, s in segments.items()]
    manifest(tmp_path, [{"audio_id": "a", "audio_path": "a.wav", "caption": "a", "phrases": phrases}])
    for cache in (None, "cache"):
        config = strong_only(crop="start", channel="first", seconds=1.28, cache=cache)
        for step in range(3):
            batch = make(tmp_path, config, size=2).batch(step)
            assert [p[0] for p in batch.phrases] == ["dog", "dog"] and batch.labels[:, 1:].sum() == 0
            assert torch.allclose(batch.waveforms[:, :16000], torch.tensor(0.5), atol=1e-4)
            assert torch.allclose(batch.waveforms[:, 16000:20480], torch.tensor(0.125), atol=1e-4)
        mean = make(tmp_path, strong_only(crop="start", seconds=1.28, cache=cache), size=1).batch(0)
        assert torch.allclose(mean.waveforms[:, :16000], torch.tensor(0.375), atol=1e-4)


def test_sets_are_drawn_by_size(root: Path) -> None:
    config = mixed(sets=(SetConfig("m.jsonl"), SetConfig("weak.jsonl")), draw="size")
    batches = make(root, config)
    rows = [batches.schedule.place(row) for row in range(BLOCK)]
    assert Counter(s for s, _ in rows) == {0: 2731, 1: 1365}, "ten items against five"
    weighted = make(root, mixed(sets=(SetConfig("m.jsonl"), SetConfig("weak.jsonl", weight=2)), draw="size"))
    assert Counter(weighted.schedule.place(row)[0] for row in range(BLOCK)) == {0: 2048, 1: 2048}


def test_the_first_positives_stay(tmp_path: Path) -> None:
    events = {name: [(0.2 * n, 0.2 * n + 0.2)] for n, name in enumerate(reversed(NAMES))}
    manifest(tmp_path, [recording(tmp_path, "a", 2.0, events)])
    batch = make(tmp_path, strong_only(surplus="first", phrases=2), size=16).batch(0)
    assert {tuple(p) for p in batch.phrases} == {tuple(list(events)[:2])}
    drawn = make(tmp_path, strong_only(phrases=2), size=16).batch(0)
    assert len({tuple(p) for p in drawn.phrases}) > 1


def test_an_empty_list_of_phrases_is_clip_supervision_only(tmp_path: Path) -> None:
    row = recording(tmp_path, "a", 2.0, {"dog": [(0.0, 1.0)]})
    empty = recording(tmp_path, "b", 2.0, {})
    assert empty["phrases"] == []
    manifest(tmp_path, [row, empty])
    batch = make(tmp_path, strong_only(), size=8).batch(0)
    assert {c[0]: bool(s) for c, s in zip(batch.captions, batch.strong, strict=True)} == {"a": True, "b": False}


def test_cropped() -> None:
    phrases = (Phrase("a", ((0.0, 1.0), (2.0, 5.0))), Phrase("click", ((1.51, 1.53),)), Phrase("b", ((0.0, 1.52),)))
    found = cropped(phrases, 1.5, 3.0)
    assert [p.text for p in found] == ["a", "click"]  # short events are kept, a 20 ms rest of a long one is not
    np.testing.assert_allclose(found[0].segments, [(0.5, 1.5)])
    np.testing.assert_allclose(found[1].segments, [(0.01, 0.03)])


def test_negatives_come_from_clusters_without_a_positive(root: Path) -> None:
    batches = make(root, mixed(swap=0.5), size=16)
    rows = swapped = 0
    for step in range(20):
        batch = batches.batch(step)
        for phrases, labels, strong in zip(batch.phrases, batch.labels, batch.strong, strict=True):
            assert len(phrases) == 5
            if not strong:
                assert not labels.any()
                continue
            clusters = [BANK.cluster_of[p] for p in phrases]
            count = int(labels.any(1).sum())
            assert not labels[count:].any()
            assert not set(clusters[:count]) & set(clusters[count:])
            assert len(set(clusters[count:])) == 5 - count  # one per cluster
            assert len(set(phrases)) == 5
            rows += 1
            swapped += sum(p not in NAMES for p in phrases[:count])
    assert rows > 150 and swapped > 20


def test_a_swap_never_gives_a_text_two_labels(tmp_path: Path) -> None:
    row = recording(tmp_path, "a", 2.0, {"dog": [(0.0, 0.9)]})
    row["phrases"] += [{"phrase": "bark", "segments": [[1.1, 2.0]]}, {"phrase": "dog", "segments": [[1.0, 1.5]]}]
    manifest(tmp_path, [row])
    batch = make(tmp_path, strong_only(swap=1.0), size=64).batch(0)
    pairs = Counter(tuple(phrases[:2]) for phrases in batch.phrases)
    assert all(a != b for a, b in pairs) and len(pairs) > 2
    assert (batch.labels[:, :2].sum(2) > 0).all() and not batch.labels[:, 2:].any()
    assert batch.labels[0, 0].sum() > 6  # both segments of the dog are in one row


def test_more_positives_than_phrases(root: Path) -> None:
    batch = make(root, strong_only(phrases=1), size=32).batch(0)
    assert all(len(p) == 1 for p in batch.phrases) and batch.labels.shape[1] == 1


def test_a_phrase_without_segments_is_neither_positive_nor_negative(tmp_path: Path) -> None:
    row = recording(tmp_path, "a", 2.0, {"dog": [(0.0, 0.9)], "rain": []})
    manifest(tmp_path, [row])
    batch = make(tmp_path, strong_only(), size=32).batch(0)
    assert all(BANK.cluster_of[p] != 1 for phrases in batch.phrases for p in phrases)
    with pytest.raises(DataError, match="6 phrases per clip need 7 clusters; the bank has 6"):
        make(tmp_path, strong_only(phrases=6))


def test_weak_rows_have_no_frame_labels(root: Path) -> None:
    sets = (SetConfig("weak.jsonl"), SetConfig("m.jsonl", strong=False), SetConfig(folder="sounds"))
    for batch in islice(make(root, mixed(sets=sets)).stream(0), 4):
        assert not batch.strong.any() and not batch.labels.any()
        assert batch.labels.shape[:2] == (6, 5) and {len(p) for p in batch.phrases} == {5}
    bare = Batches(mixed(sets=sets), root, WINDOWS, None, BatchPlan(6, 0)).batch(0)
    assert bare.labels.shape[1] == 0 and bare.phrases == [[]] * 6


def test_captions_come_from_the_item_and_labels_use_templates(root: Path) -> None:
    batch = make(root, strong_only(), size=40).batch(0)
    assert all(c.split()[1] in ("one", "two") for c in batch.captions)
    assert {c.split()[1] for c in batch.captions} == {"one", "two"}
    folder = make(root, mixed(sets=(SetConfig(folder="sounds"),)), size=40).batch(0)
    assert {m for m in folder.meanings} == {("dog",), ("rain",), ("bell",)}  # the unlabelled sound is skipped
    assert all(m[0] in c for c, m in zip(folder.captions, folder.meanings, strict=True))
    assert "the sound of dog" in folder.captions or "dog sound" in folder.captions or len(set(folder.captions)) > 3


def test_scenes_have_exact_labels_and_their_own_captions(root: Path) -> None:
    config = mixed(sets=(SetConfig(folder="sounds", simulate=True),), swap=0.0)
    batch = make(root, config, size=24).batch(0)
    assert batch.strong.all() and (batch.lengths == 2.56 * 16000).all()
    for n in range(24):
        names = [p for p, row in zip(batch.phrases[n], batch.labels[n], strict=True) if row.any()]
        assert tuple(sorted(names)) == batch.meanings[n] and set(names) <= {"dog", "rain", "bell"}
        assert all(name in batch.captions[n] for name in names)
        # only events and faint noise sound, so labelled frames are the loudest
        power = batch.waveforms[n, : 16 * 2560].reshape(16, 2560).square().mean(1)
        on = batch.labels[n].any(0)
        if on.any() and not on.all():
            assert power[on].max() > power[~on].max()


def test_rows_are_padded_to_the_longest_in_whole_frames(root: Path) -> None:
    for pad in ("batch", "window"):
        batch = make(root, mixed(sets=(SetConfig("m.jsonl"),), pad=pad, seconds=2.0), size=3).batch(1)
        frames = batch.labels.shape[2]
        assert frames == (16 if pad == "window" else -(-int(batch.lengths.max()) // 2560))
        assert batch.waveforms.shape[1] == frames * 2560 + 240
        for row, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True):
            assert length <= 2.0 * 16000 and not row[length:].any()


def test_the_published_frame_grid(root: Path) -> None:
    published = WindowConfig(frame_hop=0.15625)
    assert crop_samples(10.24, published) == 160_000 and samples_per_frame(published) == 2560
    assert crop_samples(10.24, WindowConfig()) == 163_840
    with pytest.raises(DataError, match="do not fit into a window of 10.24 s"):
        crop_samples(10.5, WindowConfig())
    batches = Batches(strong_only(seconds=10.24), root, published, BANK, BatchPlan(2, 0))
    assert batches.frames(160_000) == 64 and batches.frames(1) == 1 and batches.frames(16_000) == 7


def test_sets_have_their_exact_share_and_every_item_is_drawn() -> None:
    schedule = Schedule([3.0, 1.0, 1e-9], [100, 7, 3], seed=5)
    places = [schedule.place(row) for row in range(2 * BLOCK)]
    counts = Counter(s for s, _ in places)
    assert counts[2] == 2 and counts[0] / counts[1] == pytest.approx(3, rel=0.01)
    for chosen, size in ((0, 100), (1, 7)):
        items = [i for s, i in places if s == chosen]
        for start in range(0, len(items) - size, size):
            assert sorted(items[start : start + size]) == list(range(size))
        assert items[:size] != items[size : 2 * size]
    again = Schedule([3.0, 1.0, 1e-9], [100, 7, 3], seed=5)
    assert [again.place(row) for row in (7777, 3)] == [places[7777], places[3]]


def test_an_epoch_draws_as_many_rows_as_items(root: Path) -> None:
    batches = make(root, strong_only(), size=4)
    assert batches.epoch_steps == 3
    assert make(root, mixed(), 3, 0, 1, 2).epoch_steps == 4  # 10 + 5 + 4 items, 6 rows a step


def test_groups(root: Path) -> None:
    only = make(root, mixed(sets=(SetConfig(folder="sounds", only_groups=("p1",)),)))
    assert {m for m in only.batch(0).meanings} == {("dog",), ("bell",)}
    with pytest.raises(DataError, match="sounds: no items"):
        make(root, mixed(sets=(SetConfig(folder="sounds", exclude_groups=("p0", "p1")),)))
    with pytest.raises(DataError, match="no item of the group typo"):
        make(root, mixed(sets=(SetConfig(folder="sounds", only_groups=("typo",)),)))


@pytest.mark.parametrize("cache", [None, "cache"])
def test_unreadable_files_are_reported_and_never_silence(tmp_path: Path, cache: str | None) -> None:
    rows = [recording(tmp_path, name, 1.0, {"dog": [(0.0, 1.0)]}) for name in ("good", "header", "cut", "gone", "fine")]
    (tmp_path / "header.wav").write_bytes(b"not audio")
    (tmp_path / "gone.wav").unlink()
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 3])
    rows[2]["audio_path"] = "cut.flac"
    manifest(tmp_path, rows)
    batches = make(tmp_path, strong_only(cache=cache), size=8)
    for step in range(3):
        batch = batches.batch(step)
        assert {c.split()[0] for c in batch.captions} == {"good", "fine"}
        assert (batch.waveforms.abs().amax(1) > 0.4).all()
        assert_equal(make(tmp_path, strong_only(cache=cache), size=8).batch(step), batch)
    assert set(batches.skipped) == {"header", "cut", "gone"} and all(batches.skipped.values())


def test_a_set_without_readable_files_is_an_error(tmp_path: Path) -> None:
    rows = [{"audio_id": "a", "audio_path": "a.wav", "caption": "rain"}]
    manifest(tmp_path, rows)
    with pytest.raises(DataError, match="m.jsonl: 1 of 1 files cannot be read, such as a: no such file"):
        make(tmp_path, strong_only())
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", noise, 16000)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:9000])
    manifest(tmp_path, [rows[0] | {"audio_path": "a.flac"}])
    batches = make(tmp_path, strong_only())
    with pytest.raises(DataError, match="draws in a row cannot be read, such as a:"):
        batches.batch(0)
    with pytest.raises(DataError, match="draws in a row"):
        next(make(tmp_path, strong_only(workers=2)).stream(0))


def test_unknown_phrases_are_reported_before_training(tmp_path: Path) -> None:
    row = recording(tmp_path, "a", 1.0, {"dog": [(0.0, 0.5)]})
    row["phrases"].append({"phrase": "vuvuzela", "segments": [[0.0, 1.0]]})
    manifest(tmp_path, [row])
    with pytest.raises(DataError, match="m.jsonl: the phrase 'vuvuzela' of a is not in the phrase bank$"):
        make(tmp_path, strong_only())
    make(tmp_path, strong_only(sets=(SetConfig("m.jsonl", strong=False),)))  # phrases are not used
    with pytest.raises(DataError, match="m.jsonl: its phrases need a phrase bank"):
        Batches(strong_only(), tmp_path, WINDOWS, None, BatchPlan(1, 0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sets": ()}, "sets: at least one set is required"),
        ({"sets": (SetConfig(),)}, "either a manifest or a folder"),
        ({"sets": (SetConfig("m.jsonl", "sounds"),)}, "either a manifest or a folder"),
        ({"sets": (SetConfig("m.jsonl", weight=0.0),)}, "m.jsonl: a weight of 0.0"),
        ({"sets": (SetConfig("empty.jsonl"),)}, "empty.jsonl: no items"),
        ({"sets": (SetConfig("m.jsonl", simulate=True),)}, "scenes need single sounds"),
        ({"crop": "left"}, "data.crop: 'left'"),
        ({"phrases": 7}, "7 phrases per clip need 7 clusters; the bank has 6"),
        ({"seconds": 3.0}, "do not fit"),
        ({"swap": 1.5}, "swap <= 1"),
    ],
)
def test_invalid_configurations_are_rejected(root: Path, change: dict, reason: str) -> None:
    (root / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=reason):
        make(root, mixed(**change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phrases": [{"phrase": "dog", "segments": [[2.0, 1.0]]}]}, "onset < offset"),
        ({"caption": ""}, "an empty caption"),
    ],
)
def test_invalid_manifest_lines_are_rejected(root: Path, change: dict, reason: str) -> None:
    rows = [json.loads((root / "m.jsonl").read_text().splitlines()[0])]
    manifest(root, [*rows, rows[0] | change], "bad.jsonl")
    with pytest.raises(ManifestError, match=f"bad.jsonl, line 2: .*{reason}"):
        make(root, mixed(sets=(SetConfig("bad.jsonl"),)))


def test_sets_from_plain_data(root: Path) -> None:
    data = {"folder": "sounds", "simulate": True, "scene": {"snr_db": [3.0, 9.0]}}
    config = parse_config(DataConfig, {"sets": [data], "seconds": 2.56, "phrases": 5, "workers": 0}, "data")
    assert config.sets == (SetConfig(folder="sounds", simulate=True, scene=SceneConfig(snr_db=(3.0, 9.0))),)
    assert make(root, config).batch(0).strong.all()


def test_unknown_keys_of_a_set_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"data: sets\[0\]: unknown keys wieght"):
        parse_config(DataConfig, {"sets": [{"manifest": "m.jsonl", "wieght": 2}]}, "data")
