"""The command measures every section on a folder of synthetic sounds, and its report has every key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.quality.__main__ import SECTIONS, main
from benchmarks.quality.retrieval import figures_of, score
from benchmarks.quality.sounds import CachedModel, Sizes
from model import FineLAP
from model.config import SAMPLE_RATE
from training.config import EvaluationConfig
from training.data.audio_cache import AudioStore
from training.data.manifests import read_labelled
from training.evaluation.validation import event_report, frame_report, make_mixtures, tracks

pytestmark = pytest.mark.slow

LABELS = ["dog", "clock", "sheep", "typing", "flute", "splash", "gong", "hammer", "cow", "balloon", "thunder", "slurp"]
SIZES = Sizes(
    mixtures=3,
    recordings=1,
    minutes=0.5,
    half_hours=1,
    half_hour=0.5,
    repeating=1,
    libraries=1,
    phrases=4,
    nonsense=2,
    searched=1,
    distractors=2,
    groups=2,
    demo=3,
)


def embed(labels: list[str]) -> np.ndarray:
    return np.eye(len(labels), dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of two validation packages, and of another one."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number, label in enumerate([*LABELS, *LABELS, "trombone", "zither"]):
        package = ("scratch", "btanks-data")[number % 2] if label in LABELS else "else"
        audio = f"{package}/{label}-{number:06x}.wav"
        (folder / package).mkdir(exist_ok=True)
        t = np.arange(int(0.6 * SAMPLE_RATE)) / SAMPLE_RATE
        soundfile.write(folder / audio, 0.3 * np.sin(2 * np.pi * (200 + 90 * number) * t), SAMPLE_RATE)
        rows.append({"audio": audio, "label": label, "package": package, "source": f"{package}/x/{label} {number}.wav"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_section_reports(folder: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = [str(folder), "--checkpoint", str(small_checkpoint), "--work", str(tmp_path), "--out", str(out)]
    report = main(arguments, SIZES, embed)
    assert json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == report
    assert {"date", "command", "revision", "checkpoints", "sounds", "sections", "notes"} <= report.keys()
    assert report["command"].startswith("python -m benchmarks.quality ")
    assert len(report["checkpoints"][0]["stamp"]) == 64
    assert tuple(report["sections"]) == SECTIONS
    figures = {name: set(found) for name, found in report["sections"].items()}
    assert {"label, clip: mAP@10", "sound_of, clip or best segment: R@10"} <= figures["retrieval"]
    assert {"frame AP", "event F1 at the default settings"} <= figures["frames"]
    assert {"recall at the default settings", "false events per minute at the default settings"} <= figures["long"]
    assert {"F1, sebb", "recall with 4 at once, threshold", "false events per minute, the defaults"} <= figures[
        "longform"
    ]
    (half,) = report["notes"]["longform"]["grid"][0]
    assert half["events"] and half["minutes"] == 0.5 and half["peak memory over idle, MB"] > 0
    assert {"AUROC, by sound", "balanced accuracy, by sound at the best cutoff"} <= figures["presence"]
    assert {"recording in the first ten, /search", "ratio of the two shares"} <= figures["search"]
    assert {"A then B: operators", "A while B: frames", "two A: plain", "A without B: guessing"} <= figures["temporal"]
    assert "A while B: operators" not in figures["temporal"], "there is no operator for sounds at once"
    assert report["sections"]["long"]["recall at the default settings"]["units"] == 1
    assert len(report["notes"]["long"]["grid"][0]) == 26
    asked = report["notes"]["queries"]["grid"][0]
    assert {"dog barking", "horse", "asdfgh"} < {row["query"] for row in asked}
    assert (
        all(0 <= row["matches"] <= 3 for row in asked)
        and {row["query"]: row for row in asked}["asdfgh"]["matches"] == 0
    )
    assert {"UI click", "airplane engine", "animal snorting"} >= {row["first by sound"] for row in asked}
    ended = report["sections"].pop("endings")
    assert {"mixtures, each sound once", "two minutes, one at a time", "half hours, four at once"} <= ended.keys()
    assert all(len(figure["values"]) == 2 for figure in ended.values())
    for found in report["sections"].values():
        for figure in found.values():
            assert set(figure) == {"units", "values", "intervals"} and len(figure["values"]) == 1


def test_a_checkpoint_does_not_differ_from_itself(folder: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    same = ["--checkpoint", str(small_checkpoint)]
    arguments = [str(folder), *same, *same, "--only", "retrieval,frames", "--work", str(tmp_path)]
    report = main(arguments, SIZES, embed)
    assert list(report["sections"]) == ["retrieval", "frames"]
    for found in report["sections"].values():
        for figure in found.values():
            assert figure["difference"] == 0 and figure["difference_interval"] == [0, 0]


def test_frame_figures_equal_those_of_the_recipe(folder: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    model = FineLAP.from_pretrained(small_checkpoint)
    store = AudioStore(tmp_path / "store.i16", read_labelled(folder))
    mixtures = make_mixtures(store, EvaluationConfig(mixtures=4, phrases=5))
    found = {name: figure.value for name, figure in figures_of(score(CachedModel(model, tmp_path), mixtures)).items()}
    expected = tracks(model, mixtures)
    assert found["frame AP"] == pytest.approx(frame_report(expected)["frame AP"], abs=0.01)
    assert found["event F1 at the default settings"] == pytest.approx(
        event_report(model, expected)["F1 at 0.5"], abs=0.01
    )


def test_bad_arguments_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), "--only", "retrieval,loudness"])
    assert "unknown sections: loudness" in capsys.readouterr().err
