"""Recordings and labels are found in every layout; recordings without a single label have a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data.manifests import plain_label
from training.simulation.sources import SourceError, read_sources


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_a_folder_with_a_manifest(tmp_path: Path) -> None:
    rows = [
        {"audio": "p/b.ogg", "label": "Dog_bark", "package": "p", "licence": "CC0"},
        {"audio": "p/a.ogg", "label": None, "package": "p"},
        {"audio": "q/c.ogg", "label": "犬", "package": "q"},
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    found = read_sources(tmp_path)
    assert [(s.name.split("/", 1)[1], s.label, s.reason, s.group, s.licence) for s in found] == [
        ("p/a.ogg", None, "no label", "p", ""),
        ("p/b.ogg", "dog bark", "", "p", "CC0"),
        ("q/c.ogg", "犬", "", "q", ""),
    ]
    assert [s.label for s in read_sources(tmp_path, only=["q"])] == ["犬"]
    assert [s.group for s in read_sources(tmp_path, exclude=["q"])] == ["p", "p"]
    with pytest.raises(SourceError, match="no group is called r"):
        read_sources(tmp_path, exclude=["r"])


@pytest.mark.parametrize("line", ["{", '{"audio": "a.wav"}', "[]"])
def test_invalid_lines_are_reported(tmp_path: Path, line: str) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.ogg", "label": "a"}\n' + line)
    with pytest.raises(SourceError, match="manifest.jsonl, line 2"):
        read_sources(tmp_path)


def test_one_folder_per_label(tmp_path: Path) -> None:
    for name in ("dog_bark/1.WAV", "animals/Cat  meow/2.flac", "loose.mp3", "dog_bark/notes.txt"):
        touch(tmp_path / name)
    found = {s.path.name: (s.label, s.reason) for s in read_sources(tmp_path)}
    assert found == {
        "1.WAV": ("dog bark", ""),
        "2.flac": ("cat meow", ""),
        "loose.mp3": (None, "in no folder that would be its label"),
    }


def test_folders_without_recordings_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no recordings"):
        read_sources(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_sources(tmp_path / "absent")


def test_fsd50k(tmp_path: Path) -> None:
    lists = tmp_path / "FSD50K.ground_truth"
    lists.mkdir()
    (lists / "dev.csv").write_text(
        "fname,labels,mids,split\n"
        '1,"Bark,Dog,Animal",/m/1,train\n'
        '2,"Bark,Dog,Animal",/m/1,val\n'
        '3,"Meow,Cat,Animal",/m/1,train\n'
        '4,"Bark,Dog,Meow,Cat,Animal",/m/1,train\n'
        '5,"Dog,Animal",/m/1,train\n'
        "6,Rain,/m/2,train\n"
    )
    (lists / "eval.csv").write_text("fname,labels,mids\n7,Rain,/m/2\n")
    found = read_sources(tmp_path)
    assert [s.label for s in found] == ["bark", "bark", "meow", None, "dog", "rain"]
    assert found[3].reason == "several labels"
    assert found[0].path == tmp_path / "FSD50K.dev_audio" / "1.wav"
    assert [s.path.name for s in read_sources(tmp_path, only=["val"])] == ["2.wav"]
    assert [(s.path.name, s.label) for s in read_sources(tmp_path, split="eval")] == [("7.wav", "rain")]
    with pytest.raises(SourceError, match="dev and eval"):
        read_sources(tmp_path, split="train")


def test_fsd50k_list_order_decides_between_labels_that_always_co_occur(tmp_path: Path) -> None:
    lists = tmp_path / "FSD50K.ground_truth"
    lists.mkdir()
    (lists / "dev.csv").write_text('fname,labels,mids,split\n1,"Guitar,Plucked_string_instrument,Music",/m,train\n')
    assert [s.label for s in read_sources(tmp_path)] == ["guitar"]
    (lists / "dev.csv").write_text("fname,labels\n1,\n")
    with pytest.raises(SourceError, match="dev.csv, line 2"):
        read_sources(tmp_path)


def test_plain_label() -> None:
    assert plain_label("Chirp_and  tweet") == "chirp and tweet"
