"""The published protocol differs from the full one in nine places, and its retrieval equals a slow reference."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from app.cli.main import main
from training.data.manifests import Item, ManifestError, Phrase, read_manifest
from training.evaluation.benchmark import EvaluationSettings, Report, evaluate, manifest_datasets
from training.evaluation.protocol import FULL, PUBLISHED, Protocol
from training.evaluation.readers import Dataset, DatasetError, find_datasets, read_dataset
from training.evaluation.tables import Row, write_tables

RATE = 16_000
HOP = 0.25
BOTH = (PUBLISHED, FULL)


class ToneModel:
    """Hears levels: a frame of samples n / 10 is the n-th word, and other texts are like no word."""

    WORDS = ("dog", "rain", "bell")

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []
        self.queries: list[str] = []

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        self.queries += texts
        found = torch.tensor([[float(word in text.lower()) for word in self.WORDS] for text in texts])
        return torch.nn.functional.normalize(found + 1e-3, dim=-1)

    def encode_audio(self, waveforms: list[np.ndarray], rate: int) -> list[Any]:
        self.heard += waveforms
        result = []
        for samples in waveforms:
            numbers = np.round(samples[:: int(rate * HOP)] * 10).astype(int)
            frames = torch.from_numpy(np.eye(4, dtype=np.float32)[numbers][:, 1:])
            clip = torch.nn.functional.normalize(frames.sum(0) + 1e-3, dim=-1)
            result.append(SimpleNamespace(clip=clip, frames=frames, frame_hop=HOP))
        return result

    def frame_score(self, frames: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return (texts @ frames.T).clamp(0, 1) * 0.9


def settings(protocol: Protocol, **values: Any) -> EvaluationSettings:
    return EvaluationSettings(pictures=0, protocol=protocol, **values)


def sound(path: Path, *levels: float, seconds: float = 1.0) -> Path:
    """A file with each level for `seconds`."""
    soundfile.write(path, np.repeat(np.array(levels, np.float32), int(seconds * RATE)), RATE, subtype="FLOAT")
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def silence(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        sound(folder / name, 0.0)


# 1. Every caption is a query, with its own clip only


class VectorModel:
    """Finds clips by the number in their samples and texts by their number, in given embeddings."""

    def __init__(self, clips: np.ndarray, texts: dict[str, np.ndarray]) -> None:
        self.clips, self.texts = torch.from_numpy(clips), texts

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.texts[t] for t in texts]))

    def encode_audio(self, waveforms: list[np.ndarray], rate: int) -> list[Any]:
        return [SimpleNamespace(clip=self.clips[round(float(w[0]) * 4096)]) for w in waveforms]


def audiocaps_like() -> list[list[str]]:
    """975 clips with five captions: 4,633 distinct, of which 71 belong to two clips."""
    captions = [[f"caption {clip} {n}" for n in range(5)] for clip in range(975)]
    for clip in range(71):  # a text shared with the next but one hundredth clip
        captions[clip][0] = captions[clip + 100][4]
    for clip in range(300, 300 + 4875 - 71 - 4633):  # a clip described twice in the same words
        captions[clip][3] = captions[clip][1]
    return captions


def slow_reference(captions: list[list[str]], clips: np.ndarray, texts: dict[str, np.ndarray]) -> dict[str, float]:
    """The published retrieval: one query at a time, its rank counted; five captions per clip."""
    flat = [(text, clip) for clip, five in enumerate(captions) for text in five]
    similarity = np.stack([texts[text] for text, _ in flat]) @ clips.T
    result: dict[str, float] = {}
    ranks = []
    for row, (_, clip) in zip(similarity, flat, strict=True):
        better = int((row > row[clip]).sum()) + int((row[:clip] == row[clip]).sum())
        ranks.append(better)
    for k in (1, 5, 10):
        result[f"text→audio R@{k}"] = 100 * sum(r < k for r in ranks) / len(ranks)
    result["text→audio mAP@10"] = 100 * sum(1 / (r + 1) for r in ranks if r < 10) / len(ranks)
    firsts, precisions = [], []
    by_clip = np.ascontiguousarray(similarity.T)
    for clip in range(len(clips)):
        column, own = by_clip[clip], range(5 * clip, 5 * clip + 5)
        places = sorted(int((column > column[i]).sum()) + int((column[:i] == column[i]).sum()) for i in own)
        firsts.append(places[0])
        precisions.append(sum((n + 1) / (place + 1) for n, place in enumerate(places) if place < 10) / 5)
    for k in (1, 5, 10):
        result[f"audio→text R@{k}"] = 100 * sum(f < k for f in firsts) / len(firsts)
    result["audio→text mAP@10"] = 100 * sum(precisions) / len(precisions)
    return result


def test_retrieval_equals_a_slow_reference_on_the_multiplicities_of_audiocaps(tmp_path: Path) -> None:
    captions = audiocaps_like()
    distinct = {text for five in captions for text in five}
    owners: dict[str, set[int]] = {}
    for clip, five in enumerate(captions):
        for text in five:
            owners.setdefault(text, set()).add(clip)
    assert (sum(map(len, captions)), len(distinct)) == (4875, 4633)
    assert sum(len(clips) > 1 for clips in owners.values()) == 71
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((975, 24)).astype(np.float32)
    clips /= np.linalg.norm(clips, axis=1, keepdims=True)
    texts = {}
    for text in sorted(distinct):
        vector = clips[min(owners[text])] + 0.15 * rng.standard_normal(24).astype(np.float32)
        texts[text] = vector / np.linalg.norm(vector)
    items = []
    for clip, five in enumerate(captions):
        path = tmp_path / f"{clip}.wav"
        soundfile.write(path, np.full(8, clip / 4096, np.float32), RATE, subtype="FLOAT")
        items.append(Item(str(clip), path, tuple(five)))
    model: Any = VectorModel(clips, texts)
    report = evaluate(model, Dataset("audiocaps", "retrieval", tuple(items)), settings=settings(PUBLISHED))
    assert report.figures == pytest.approx(slow_reference(captions, clips, texts), abs=0.006)
    assert report.notes == ("4875 captions, 4633 distinct, 975 clips",) and report.protocol == "published"
    merged = evaluate(model, Dataset("audiocaps", "retrieval", tuple(items)), settings=settings(FULL))
    assert merged.figures["text→audio R@1"] > report.figures["text→audio R@1"] + 0.5, "merging flatters"


# 2 and 3. The first ten seconds, channel 0


def test_published_hears_ten_seconds_of_the_first_channel(tmp_path: Path) -> None:
    stereo = np.zeros((12 * RATE, 2), np.float32)
    stereo[:, 0], stereo[:, 1] = 0.1, 0.3
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    data = Dataset("made", "retrieval", (Item("a", tmp_path / "a.wav", ("rain",)),))
    model: Any = ToneModel()
    report = evaluate(model, data, settings=settings(PUBLISHED))
    assert len(model.heard[0]) == 160_000 and np.allclose(model.heard[0], 0.1)
    assert report.audio_seconds == pytest.approx(10) and report.encoding_seconds > 0
    evaluate(model, data, settings=settings(FULL))
    assert len(model.heard[1]) == 192_000 and np.allclose(model.heard[1], 0.2)


# 4. Labels as annotated


def test_published_queries_are_the_labels_as_annotated(tmp_path: Path) -> None:
    events = ("filename\tonset\toffset\tevent_label", "a.wav\t0.0\t0.5\tAlarm_bell_ringing", "a.wav\t0.5\t1.0\tDog")
    write(tmp_path / "desed/metadata/eval/public.tsv", *events)
    silence(tmp_path / "desed/audio/eval/public", "a.wav")
    write(tmp_path / "urbansed/annotations/test/s.txt", "0.0 0.5 dog_bark")
    silence(tmp_path / "urbansed/audio/test", "s.wav")
    write(
        tmp_path / "esc50/meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", "a.wav,1,0,Dog_X,T,1,A"
    )
    silence(tmp_path / "esc50/audio", "a.wav")
    found = {p.name: {n: read_dataset(n, tmp_path / n, None, p) for n in ("desed", "urbansed", "esc50")} for p in BOTH}
    assert found["published"]["desed"].classes[0] == "Alarm_bell_ringing"
    assert found["full"]["desed"].classes[0] == "alarm bell ringing"
    names = [p.text for p in found["published"]["desed"].items[0].phrases or ()]
    assert names == ["Alarm_bell_ringing", "Dog"]
    assert "dog_bark" in found["published"]["urbansed"].classes and "dog bark" in found["full"]["urbansed"].classes
    assert found["published"]["esc50"].classes == ("Dog X",) and found["full"]["esc50"].classes == ("dog x",)
    model: Any = ToneModel()
    evaluate(model, found["published"]["esc50"], settings=settings(PUBLISHED))
    assert model.queries == ["The sound of Dog X"]


# 5. No median for grounding


def test_published_grounding_has_no_median(tmp_path: Path, metrics: None) -> None:
    path = sound(tmp_path / "a.wav", 0.0, 0.1, 0.0, 0.0, seconds=0.25)  # one frame of "dog"
    item = Item("a", path, (), (Phrase("dog", ((0.25, 0.5),)),))
    model: Any = ToneModel()
    figures = {
        p.name: evaluate(model, Dataset("made", "grounding", (item,)), settings=settings(p)).figures["PSDS"]
        for p in BOTH
    }
    assert figures == {"published": 100.0, "full": 0.0}
    both = Dataset("made", "detection", (item,), ("dog",))
    assert evaluate(model, both, settings=settings(PUBLISHED)).figures["PSDS1"] == 0.0, "detection keeps it"


# 6. [[0, 0]] in AudioGrounding


def grounding(root: Path, segments: list[list[float]], tokens: str = "a dog in the rain") -> None:
    phrases = [
        {"phrase": "dog", "start_index": 0, "end_index": 0, "segments": [[0.0, 1.0]]},
        {"phrase": "rain", "start_index": 3, "end_index": 3, "segments": segments},
    ]
    row = {"audiocap_id": 1, "audio_id": "Ya.wav", "tokens": tokens, "phrases": phrases}
    write(root / "test.json", json.dumps([row]))
    (root / "test").mkdir(exist_ok=True)
    sound(root / "test/Ya.wav", 0.1, 0.0, 0.0)


@pytest.mark.parametrize("protocol", BOTH, ids=lambda p: p.name)
def test_a_phrase_at_zero_is_queried_and_does_not_sound(tmp_path: Path, protocol: Protocol, metrics: None) -> None:
    grounding(tmp_path, [[0, 0]])
    data = read_dataset("audiogrounding", tmp_path, None, protocol)
    assert data.items[0].phrases == (Phrase("dog", ((0.0, 1.0),)), Phrase("rain", ()))
    model: Any = ToneModel()
    report = evaluate(model, data, settings=settings(protocol))
    assert report.figures["PSDS"] == 100.0 and report.notes == ("2 phrases in 1 recordings",)


# 7. Segments of no length


def test_segments_of_no_length_are_skipped(tmp_path: Path) -> None:
    grounding(tmp_path, [[2.5, 2.5], [1.0, 2.0]])
    for protocol in BOTH:
        item = read_dataset("audiogrounding", tmp_path, None, protocol).items[0]
        assert item.phrases and item.phrases[1] == Phrase("rain", ((1.0, 2.0),))
    events = ("0.0 0.5 dog_bark", "0.7 0.7 siren")
    write(tmp_path / "annotations/test/s.txt", *events)
    silence(tmp_path / "audio/test", "s.wav")
    (item,) = read_dataset("urbansed", tmp_path, None, PUBLISHED).items
    assert item.phrases == (Phrase("dog_bark", ((0.0, 0.5),)),)
    with pytest.raises(DatasetError, match=r"s\.txt, line 2: .*onset < offset"):
        read_dataset("urbansed", tmp_path, None, FULL)
    row = {"audio_id": "a", "audio_path": "a.wav", "phrases": [{"phrase": "dog", "segments": [[0, 0]]}]}
    (item,) = read_manifest(write(tmp_path / "m.jsonl", json.dumps(row)))
    assert item.phrases == (Phrase("dog", ()),)
    row["phrases"] = [{"phrase": "dog", "segments": [[1, 0.5]]}]
    with pytest.raises(ManifestError, match="onset < offset"):
        read_manifest(write(tmp_path / "m.jsonl", json.dumps(row)))


# 8. Empty captions


def test_published_asks_for_an_empty_caption_too(tmp_path: Path) -> None:
    header = "audiocap_id,youtube_id,start_time,caption"
    write(tmp_path / "test.csv", header, "1,abc,0,a dog", "2,abc,0,", "3,def,0,rain")
    silence(tmp_path / "test", "Yabc.wav", "Ydef.wav")
    data = read_dataset("audiocaps", tmp_path, None, PUBLISHED)
    assert [i.captions for i in data.items] == [("a dog", ""), ("rain",)]
    report = evaluate(ToneModel(), data, settings=settings(PUBLISHED))  # type: ignore[arg-type]
    assert report.notes == ("3 captions, 3 distinct, 2 clips",)
    with pytest.raises(DatasetError, match=r"test\.csv, line 3: an empty caption"):
        read_dataset("audiocaps", tmp_path, None, FULL)
    (tmp_path / "g").mkdir()
    grounding(tmp_path / "g", [], tokens="")
    assert read_dataset("audiogrounding", tmp_path / "g", None, PUBLISHED).items[0].captions == ("",)
    with pytest.raises(DatasetError, match="empty phrase or caption"):
        read_dataset("audiogrounding", tmp_path / "g", None, FULL)


# 9. Files without events


def test_published_drops_recordings_without_events(tmp_path: Path, metrics: None) -> None:
    write(
        tmp_path / "metadata/eval/public.tsv",
        "filename\tonset\toffset\tevent_label",
        "a.wav\t0.0\t1.0\tDog",
        "quiet.wav\t\t\t",
    )
    folder = tmp_path / "audio/eval/public"
    folder.mkdir(parents=True)
    sound(folder / "a.wav", 0.1, 0.0, 0.0)
    sound(folder / "quiet.wav", 0.0, 0.1, 0.1)  # the annotators heard no dog here
    names = {p.name: [i.audio_id for i in read_dataset("desed", tmp_path, None, p).items] for p in BOTH}
    assert names == {"published": ["a.wav"], "full": ["a.wav", "quiet.wav"]}
    model: Any = ToneModel()
    figures = {
        p.name: evaluate(model, read_dataset("desed", tmp_path, None, p), settings=settings(p)).figures["PSDS1"]
        for p in BOTH
    }
    assert figures == {"published": 100.0, "full": 0.0}
    quiet = Item("q", tmp_path / "q.wav", ("x",), ())
    loud = Item("l", tmp_path / "l.wav", ("y",), (Phrase("dog", ((0.0, 1.0),)),))
    assert manifest_datasets("m", [quiet, loud], "detection", PUBLISHED)[0].items == (loud,)


# Benchmarks and tables


def test_benchmarks_are_found_by_the_names_of_their_folders(tmp_path: Path) -> None:
    for name in ("ESC-50", "ESC-50-master", "URBAN-SED_v2.0.0", "UrbanSound8K", "audioset_strong", "other"):
        (tmp_path / name).mkdir()
    found = {name: path.name for name, path in find_datasets(tmp_path)}
    assert found == {
        "esc50": "ESC-50",
        "urbansound8k": "UrbanSound8K",
        "audioset-strong": "audioset_strong",
        "urbansed": "URBAN-SED_v2.0.0",
    }
    with pytest.raises(DatasetError, match="no folder is named after a benchmark"):
        find_datasets(tmp_path / "other")


def test_tables_have_a_row_for_each_checkpoint(tmp_path: Path) -> None:
    def report(dataset: str, task: str, **figures: float) -> Report:
        return Report(dataset, task, figures, 2, protocol="published", audio_seconds=20.0, encoding_seconds=0.5)

    one = [
        report("clotho", "retrieval", **{"text→audio R@1": 20.0, "audio→text mAP@10": 30.0}),
        report("desed", "detection", PSDS1=12.345, PSDS2=float("nan")),
    ]
    two = [report("clotho", "retrieval", **{"text→audio R@1": 21.5, "audio→text mAP@10": 31.0})]
    rows = [Row("a", one, 244_000_000, 1000.0, 60.0), Row("b", two, 20_000_000, 100.0, 6.0)]
    text, data = (path.read_text() for path in write_tables(tmp_path, rows))
    assert "Protocol: published." in text
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["checkpoint", "clotho T→A R@1", "clotho A→T mAP@10"] in lines
    assert ["a", "20.00", "30.00"] in lines and ["b", "21.50", "31.00"] in lines
    assert ["a", "12.35", "—"] in lines and ["b", "", ""] in lines
    assert ["a", "244.0", "40", "1.0", "40", "60.0", "1000"] in lines
    first = json.loads(data)["checkpoints"][0]
    assert first["results"][1]["figures"] == {"PSDS1": 12.345, "PSDS2": None} and first["peak_memory_mb"] == 1000.0


def test_two_checkpoints_in_one_command(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise.wav", rng.normal(0, 0.1, 12 * RATE), RATE)
    row = {"audio_id": "noise", "audio_path": "noise.wav", "caption": ["noise", ""]}
    manifest = write(tmp_path / "m.jsonl", json.dumps(row))
    again = tmp_path / "again"
    again.symlink_to(small_checkpoint)
    out = tmp_path / "out"
    arguments = [str(small_checkpoint), str(again), "--manifest", str(manifest), "--protocol", "published"]
    assert main(["evaluate", *arguments, "--out", str(out)]) == 0
    name = small_checkpoint.name
    assert sorted(p.name for p in out.iterdir()) == sorted([name, f"{name}-2", "table.json", "table.md"])
    described = json.loads((out / name / "report.json").read_text())
    assert described["about"]["protocol"].startswith("published (the first 10 s")
    assert described["reports"][0]["protocol"] == "published"
    rows = json.loads((out / "table.json").read_text())["checkpoints"]
    assert [r["checkpoint"] for r in rows] == [name, f"{name}-2"]
    assert all(r["audio_seconds"] == 10.0 and r["peak_memory_mb"] > 100 and r["parameters"] > 1e6 for r in rows)
    assert rows[0]["results"][0]["figures"] == rows[1]["results"][0]["figures"]
    assert "m T→A R@1" in capsys.readouterr().out
    assert main(["evaluate", "x", "--manifest", str(manifest), "--out", str(out)]) == 1, "an empty caption"
    assert "empty caption" in capsys.readouterr().err
