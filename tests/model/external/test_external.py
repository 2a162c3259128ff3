"""Models of transformers behind our contract give transformers' own embeddings, frames and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import cosine_similarity

from model.external.contract import external_family, load_external, read_licence
from model.weight_files import CheckpointError
from tests.support.external import RATE, save_clap, tokenise

TEXTS = ["a dog barking", "the sound of rain", "loud bell"]


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.1 * noise * np.sin(2 * np.pi * (seed + 1) * time) + 0.05).astype(np.float32)


@pytest.mark.parametrize("fused", [False, True])
def test_clap_gives_the_embeddings_of_transformers(tmp_path: Path, clap: tuple[Path, Any], fused: bool) -> None:
    from transformers import ClapFeatureExtractor

    folder, theirs = clap if not fused else (tmp_path, save_clap(tmp_path, enable_fusion=True))
    ours = load_external(folder)
    assert ours is not None and ours.traits.family == "clap" and ours.traits.frames is None
    assert (ours.traits.sample_rate, ours.traits.window, ours.traits.licence) == (RATE, 2.0, "apache-2.0")
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    windows = [sound(2.0), sound(0.7, 1), sound(1.5, 2)]
    with torch.no_grad():
        texts = theirs.get_text_features(**tokenise(folder, TEXTS)).pooler_output
        clips = torch.cat(
            [
                theirs.get_audio_features(**extractor(w, sampling_rate=RATE, return_tensors="pt")).pooler_output
                for w in windows
            ]
        )
        scale = theirs.logit_scale_a.exp()
    found = torch.stack([clip for clip, _ in ours.encode_windows(windows)])
    assert cosine_similarity(found, clips).min() > 0.9999 and cosine_similarity(clips[:1], clips[1:]).max() < 0.999
    assert cosine_similarity(ours.encode_text(TEXTS), texts).min() > 0.9999
    scores = torch.sigmoid(clips @ texts.T * scale)
    torch.testing.assert_close(ours.clip_score(found, ours.encode_text(TEXTS)), scores, atol=1e-4, rtol=1e-4)


def test_pe_audio_gives_the_frames_and_scores_of_transformers(pe_audio: tuple[Path, Any]) -> None:
    from transformers import PeAudioFeatureExtractor, PeAudioModel

    folder, theirs = pe_audio
    ours = load_external(folder)
    assert ours is not None and ours.traits.frames == "native" and ours.frame_hop == pytest.approx(0.04)
    whole = PeAudioModel.from_pretrained(folder).eval()
    extractor, ids = PeAudioFeatureExtractor.from_pretrained(folder), tokenise(folder, TEXTS)
    windows = [sound(1.0), sound(0.33, 1), sound(1.0, 2)]
    texts = ours.encode_text(TEXTS)
    for window, (clip, frames) in zip(windows, ours.encode_windows(windows), strict=True):
        inputs = extractor(window, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            output = theirs(**ids, input_values=inputs["input_values"])
            clips = whole.get_audio_embeds(inputs["input_values"])
        assert len(frames) == -(-len(window) // 1920) == output.audio_embeds.shape[1]
        assert cosine_similarity(frames, output.audio_embeds[0]).min() > 0.9999
        assert cosine_similarity(texts, output.text_audio_embeds).min() > 0.9999
        assert cosine_similarity(clip, clips[0], dim=0) > 0.9999 and clip.norm() == pytest.approx(1, abs=1e-5)
        expected = output.logits_audio_text[0].sigmoid()
        torch.testing.assert_close(ours.frame_score(frames, texts), expected, atol=1e-5, rtol=1e-4)
        assert expected.std() > 0.01


def test_frames_of_whole_clips_only_slide_on_request(clap: tuple[Path, Any]) -> None:
    folder, _ = clap
    plain, sliding = load_external(folder), load_external(folder, sliding=True)
    assert plain is not None and sliding is not None and sliding.traits.frames == "sliding"
    assert plain.stamp != sliding.stamp, "libraries of one must not open with the other"
    recording = np.concatenate([sound(2.0, 1), sound(2.0, 5)])
    (embedded,) = sliding.encode_audio([recording], RATE)  # type: ignore[attr-defined]
    assert len(embedded.frames) == 4 and embedded.frame_hop == 1.0
    ((middle, _),) = plain.encode_windows([recording[RATE : 3 * RATE]])
    assert any(cosine_similarity(frame, middle, dim=0) > 0.9999 for frame in embedded.frames)
    (whole,) = plain.encode_audio([recording], RATE)  # type: ignore[attr-defined]
    assert cosine_similarity(whole.clip, embedded.clip, dim=0) < 0.99999


def test_stamps_are_of_the_weights(tmp_path: Path, clap: tuple[Path, Any]) -> None:
    folder, theirs = clap
    again = load_external(folder)
    (tmp_path / "same").mkdir()
    save_clap(tmp_path / "same")
    (tmp_path / "other").mkdir()
    save_clap(tmp_path / "other", seed=1)
    same, other = load_external(tmp_path / "same"), load_external(tmp_path / "other")
    assert again is not None and same is not None and other is not None
    assert again.stamp == same.stamp != other.stamp


def test_other_checkpoints_are_not_external(small_checkpoint: Path, tmp_path: Path, clap: tuple[Path, Any]) -> None:
    assert external_family(small_checkpoint) is None and load_external(small_checkpoint) is None
    assert external_family(tmp_path / "absent") is None and external_family(tmp_path) is None
    asked = []

    def download(repo: str, revision: str | None, patterns: list[str]) -> str:
        asked.append((repo, patterns[0]))
        return str(clap[0])

    model = load_external("laion/clap", download=download)
    assert model is not None and model.traits.family == "clap" and asked[0] == ("laion/clap", "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(CheckpointError, match="not a clap checkpoint that can be loaded"):
        load_external(tmp_path)


def test_licences_are_read_from_the_front_matter(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for text, licence in (
        ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("---\ntags: [a]\nlicense: 'mit'\n---\ntext", "mit"),
        ("# license: mit\n", None),
        ("", None),
    ):
        readme.write_text(text)
        assert read_licence(tmp_path) == licence
    readme.unlink()
    assert read_licence(tmp_path) is None


def test_a_calibration_is_stored_beside_the_model(tmp_path: Path, clap: tuple[Path, Any]) -> None:
    from app.cli.main import main

    sounds = tmp_path / "sounds"
    for number in range(6):
        for take in range(2):
            path = sounds / f"label {'abcdef'[number]}" / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound(1.0, 3 * number + take), RATE)
    out = tmp_path / "out"
    assert main(["calibrate", str(clap[0]), "--sounds", str(sounds), "--out", str(out)]) == 0
    before, after = load_external(clap[0]), load_external(out)
    assert before is not None and after is not None and after.stamp == before.stamp
    assert not before.traits.calibrated and after.traits.calibrated
    assert 0 < after.config.matching.cutoff < 1 and after.temp_global != before.temp_global
    (out / "finelap.json").write_text('{"clip": [1]}')
    with pytest.raises(CheckpointError, match=r"finelap\.json"):
        load_external(out)


def test_evaluation_takes_other_families_at_their_own_rate(
    tmp_path: Path, clap: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from app.cli.main import main

    rows = []
    for number, name in enumerate(("a", "b")):
        soundfile.write(tmp_path / f"{name}.wav", sound(1.0, number), RATE)
        row = {"audio_id": name, "audio_path": f"{name}.wav", "caption": f"{name} dog"}
        rows.append(row | {"phrases": [{"phrase": "dog", "segments": [[0, 0.5]]}]})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert main(["evaluate", str(clap[0]), "--manifest", str(tmp_path / "m.jsonl"), "--out", str(out)]) == 0
    assert "detection: left out, because the model has no frames" in capsys.readouterr().out
    (row,) = json.loads((out / "table.json").read_text())["checkpoints"]
    assert [r["task"] for r in row["results"]] == ["retrieval"] and row["audio_seconds"] == 2.0
