"""Every task on synthetic benchmarks, with a model that decodes words from the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from training.data.manifests import Item, Phrase
from training.evaluation.benchmark import BenchmarkError, EvaluationSettings, evaluate, manifest_datasets
from training.evaluation.readers import Dataset

WORDS = ["dog", "rain", "bell", "car"]
HOP = 0.25


class WordModel:
    """Decodes each quarter second of constant samples (n + 1) / 10 as the n-th word; silence is no word."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        self.queries += texts
        found = torch.tensor([[float(word in text.lower()) for word in WORDS] for text in texts])
        return torch.nn.functional.normalize(found + 1e-3, dim=-1)

    def encode_audio(self, waveforms: list[np.ndarray], rate: int) -> list[Any]:
        result = []
        for samples in waveforms:
            numbers = np.round(samples[:: int(rate * HOP)] * 10).astype(int)
            frames = torch.from_numpy(np.eye(len(WORDS) + 1, dtype=np.float32)[numbers][:, 1:])
            clip = torch.nn.functional.normalize(frames.sum(0) + 1e-3, dim=-1)
            result.append(SimpleNamespace(clip=clip, frames=frames, frame_hop=HOP))
        return result

    def frame_score(self, frames: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return (texts @ frames.T).clamp(0, 1) * 0.9


def record(folder: Path, name: str, words: list[str]) -> Path:
    """Writes a file with one second per word; "" is silence."""
    levels = [(WORDS.index(w) + 1) / 10 if w else 0.0 for w in words]
    path = folder / f"{name}.wav"
    soundfile.write(path, np.repeat(np.array(levels, np.float32), 16_000), 16_000, subtype="FLOAT")
    return path


def item(folder: Path, name: str, words: list[str], captions: tuple[str, ...] = ()) -> Item:
    found = {w: tuple((float(t), t + 1.0) for t, v in enumerate(words) if v == w) for w in words if w}
    phrases = tuple(Phrase(w, segments) for w, segments in found.items())
    return Item(name, record(folder, name, words), captions, phrases)


@pytest.fixture
def model() -> Any:
    return WordModel()


def test_retrieval_with_any_number_of_captions(tmp_path: Path, model: Any) -> None:
    items = (
        item(tmp_path, "a", ["dog"], ("a dog barks",)),
        item(tmp_path, "b", ["rain"], ("rain falls", "heavy rain", "rain on a roof")),
        item(tmp_path, "c", ["bell"], ("a bell", "the sea")),
        item(tmp_path, "d", ["dog"], ("a dog barks",)),
    )
    report = evaluate(model, Dataset("made", "retrieval", items))
    assert report.items == 4 and not report.unreadable
    assert report.figures["audio→text R@1"] == 100.0
    # one of six texts, "the sea", is equally similar to every clip and may rank its own anywhere
    assert report.figures["text→audio R@1"] in (83.33, 100.0)
    assert report.figures["text→audio R@5"] == 100.0
    assert len(set(model.queries)) == len(model.queries) == 6, "a caption of two clips is one query"


def test_classification_uses_the_clip_template(tmp_path: Path, model: Any) -> None:
    clips = [(word, item(tmp_path, word, [word], (word,))) for word in WORDS]
    wrong = item(tmp_path, "wrong", ["car"], ("dog",))
    report = evaluate(model, Dataset("made", "classification", (*(c for _, c in clips), wrong), tuple(WORDS)))
    assert model.queries == [f"The sound of {w}" for w in WORDS]
    assert report.figures["accuracy"] == 80.0 and report.figures["accuracy, chance"] == 25.0
    assert report.classes["dog"]["accuracy"] == 50.0 and report.classes["bell"]["accuracy"] == 100.0
    with pytest.raises(BenchmarkError, match="'car' is not one of the classes"):
        evaluate(model, Dataset("made", "classification", tuple(c for _, c in clips), ("dog", "rain", "bell")))


def test_detection_of_recordings_of_different_lengths(tmp_path: Path, model: Any, metrics: None) -> None:
    items = (
        item(tmp_path, "a", ["dog", "", "rain", ""]),
        item(tmp_path, "long", ["", "dog"] + [""] * 20 + ["rain", "rain"]),
        Item("quiet", record(tmp_path, "quiet", ["", ""]), (), ()),
    )
    data = Dataset("made", "detection", items, ("dog", "rain", "bell"), missing=("gone",))
    report = evaluate(model, data)
    perfect = {name for name, value in report.figures.items() if value == 100.0}
    assert perfect == set(report.figures) and {"PSDS1", "PSDS2", "collar F1, mean over classes"} <= perfect
    assert set(report.classes) == {"dog", "rain"} and "1 of 3 classes" in report.notes[0]
    assert report.missing == ("gone",) and report.items == 3
    assert [p.audio_id for p in report.pictures] == ["a", "long"]
    assert report.pictures[1].scored.scores.shape == (3, 96)

    strong = evaluate(model, replace(data, name="audioset-strong"))
    assert "PSDS1" in strong.figures and "PSDS2" not in strong.figures


def test_false_alarms_count_on_recordings_without_the_class(tmp_path: Path, model: Any, metrics: None) -> None:
    good = item(tmp_path, "a", ["dog", "", "rain", ""])
    other = Item("b", record(tmp_path, "b", ["dog", "", "dog", "rain"]), (), (Phrase("rain", ((3.0, 4.0),)),))
    report = evaluate(model, Dataset("made", "detection", (good, other), ("dog", "rain")))
    assert report.classes["rain"]["PSDS1"] == 100.0
    assert report.classes["dog"]["PSDS1"] == 0.0, "one alarm in eight seconds is more than a hundred an hour"


def test_grounding_scores_the_phrases_of_each_item(tmp_path: Path, model: Any, metrics: None) -> None:
    first = item(tmp_path, "a", ["dog", "", "rain", ""])
    second = Item("b", record(tmp_path, "b", ["bell", "", ""]), (), (Phrase("a Bell rings", ((0.0, 1.0),)),))
    silent = Item("c", record(tmp_path, "c", ["car", ""]), (), (Phrase("dog", ()),))
    report = evaluate(model, Dataset("made", "grounding", (first, second, silent)))
    assert report.figures["PSDS"] == 100.0
    assert 85 < report.figures["threshold-AUC"] <= 90.0  # scores reach 0.9
    assert sorted(model.queries) == ["a Bell rings", "dog", "rain"]
    assert report.notes == ("4 phrases in 3 recordings",)


def test_unreadable_files_are_reported_and_never_scored(tmp_path: Path, model: Any) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing else")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    bad = tuple(Item(n, tmp_path / f"{n}.wav", ("a dog",)) for n in ("broken", "empty", "absent"))
    good = item(tmp_path, "a", ["rain"], ("rain",))
    report = evaluate(model, Dataset("made", "retrieval", (*bad, good)))
    assert set(report.unreadable) == {"broken", "empty", "absent"} and "no samples" in report.unreadable["empty"]
    assert report.items == 1 and model.queries == ["rain"], "their captions are not queries"
    with pytest.raises(BenchmarkError, match="none of 3 recordings can be read; broken"):
        evaluate(model, Dataset("made", "retrieval", bad))
    with pytest.raises(BenchmarkError, match="no recordings"):
        evaluate(model, Dataset("made", "retrieval", ()))


def test_the_median_filter_is_in_frames(tmp_path: Path, model: Any, metrics: None) -> None:
    samples = np.zeros(16_000 * 4, np.float32)
    samples[16_000:20_000] = 0.1  # one frame of "dog"
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    data = Dataset(
        "made", "detection", (Item("a", tmp_path / "a.wav", (), (Phrase("dog", ((1.0, 1.25),)),)),), ("dog",)
    )
    assert evaluate(model, data, median_filter=1).figures["PSDS1"] == 100.0
    assert evaluate(model, data).figures["PSDS1"] == 0.0
    assert evaluate(model, data, settings=EvaluationSettings(median_frames=1, pictures=0)).pictures == ()


def test_manifests_support_the_tasks_of_their_labels(tmp_path: Path) -> None:
    both = Item("a", tmp_path / "a", ("a dog",), (Phrase("dog", ((0.0, 1.0),)),))
    quiet = Item("b", tmp_path / "b", ("nothing",), ())
    weak = Item("c", tmp_path / "c", ("rain",))
    retrieval, detection = manifest_datasets("m", [both, quiet, weak])
    assert retrieval.task == "retrieval" and len(retrieval.items) == 3
    assert detection.items == (both, quiet) and detection.classes == ("dog",)
    assert [d.task for d in manifest_datasets("m", [weak])] == ["retrieval"]
    (labelled,) = manifest_datasets("m", [both, weak], "classification")
    assert labelled.classes == ("a dog", "rain")
