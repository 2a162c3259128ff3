"""Models of transformers behind our contract give transformers' own embeddings, frames and scores."""

from __future__ import annotations

import fnmatch
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import soxr
import torch
from torch.nn.functional import cosine_similarity

from model.external.contract import external_family, load_external, read_licence
from model.weight_files import CheckpointError
from tests.support.external import RATE, clap_clips, clap_texts, save_clap, save_pe_audio, sound, tokenise

TEXTS = ["a dog barking", "the sound of rain", "loud bell"]


@pytest.mark.parametrize("fused", [False, True])
def test_clap_gives_the_embeddings_of_transformers(tmp_path: Path, clap: tuple[Path, Any], fused: bool) -> None:
    folder, theirs = clap if not fused else (tmp_path, save_clap(tmp_path, enable_fusion=True))
    ours = load_external(folder)
    assert ours is not None and ours.traits.family == "clap" and ours.traits.frames is None
    assert (ours.traits.sample_rate, ours.traits.window, ours.traits.licence) == (RATE, 2.0, "apache-2.0")
    windows = [sound(2.0), sound(0.7, 1), sound(1.5, 2)]
    clips, texts = clap_clips(folder, theirs, windows), clap_texts(folder, theirs, TEXTS)
    found = torch.stack([clip for clip, _ in ours.encode_windows(windows)])
    assert cosine_similarity(found, clips).min() > 0.9999 and cosine_similarity(clips[:1], clips[1:]).max() < 0.999
    assert cosine_similarity(ours.encode_text(TEXTS), texts).min() > 0.9999
    scores = torch.sigmoid(clips @ texts.T * theirs.logit_scale_a.detach().exp())
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


# How weights may be stored, and what is refused


def _sharded(model: Any, folder: Path, form: str) -> None:
    """Replaces a folder's weights by two files with an index, as large models have them."""
    values = dict(model.state_dict())
    names = sorted(values)
    suffix, stem = {"safetensors": ("safetensors", "model"), "bin": ("bin", "pytorch_model")}[form]
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        tensors = {name: values[name].clone().contiguous() for name in part}
        if form == "safetensors":
            safetensors.torch.save_file(tensors, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMS: dict[str, Callable[[Any, Path], None]] = {
    "sharded safetensors": lambda model, folder: _sharded(model, folder, "safetensors"),
    "one pytorch_model.bin": lambda model, folder: torch.save(model.state_dict(), folder / "pytorch_model.bin"),
    "sharded pytorch_model.bin": lambda model, folder: _sharded(model, folder, "bin"),
}


def hub_of(repository: Path, cache: Path) -> Callable[[str, str | None, list[str]], str]:
    """A download function of a hub with one repository, which copies only what the patterns name."""

    def download(repo: str, revision: str | None, patterns: list[str]) -> str:
        cache.mkdir(exist_ok=True)
        for path in repository.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
                shutil.copy(path, cache)
        return str(cache)

    return download


@pytest.mark.parametrize("family", [save_clap, save_pe_audio])
@pytest.mark.parametrize("form", FORMS)
def test_weights_in_shards_and_in_bin_files_load_from_folders_and_the_hub(
    tmp_path: Path, family: Callable[[Path], Any], form: str
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    model = family(whole)
    shutil.copytree(whole, other, ignore=shutil.ignore_patterns("*.safetensors"))
    FORMS[form](model, other)
    expected, found = load_external(whole), load_external(other)
    assert expected is not None and found is not None and found.stamp == expected.stamp
    fetched = load_external("a/model", download=hub_of(other, tmp_path / "cache"))
    assert fetched is not None and fetched.stamp == expected.stamp
    assert torch.equal(fetched.encode_text(TEXTS), expected.encode_text(TEXTS))


class _Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_code_in_a_bin_file_is_not_run(tmp_path: Path, clap: tuple[Path, Any], how: str) -> None:
    folder, proof = tmp_path / "clap", tmp_path / "proof"
    shutil.copytree(clap[0], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    values = {**clap[1].state_dict(), "more": _Attack(proof)}
    with (folder / "pytorch_model.bin").open("wb") as file:
        torch.save(values, file) if how == "torch.save" else pickle.dump(values, file)
    with pytest.raises(CheckpointError, match="not a clap checkpoint that can be loaded"):
        load_external(folder)
    assert not proof.exists()


# What transformers' own tests state for released weights. The sounds they use are not part of this project.


def released(family: str) -> tuple[Any, np.ndarray]:
    """The released model and the sound of its test, from FINELAP_<FAMILY>_WEIGHTS and FINELAP_<FAMILY>_SOUND."""
    weights, path = (os.environ.get(f"FINELAP_{family}_{what}") for what in ("WEIGHTS", "SOUND"))
    if not weights or not path:
        pytest.skip(f"set FINELAP_{family}_WEIGHTS and FINELAP_{family}_SOUND")
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    model = load_external(weights)
    assert model is not None
    own = model.traits.sample_rate
    # CLAP's test passes 16 kHz samples on as if they were at the model's rate
    mono = samples.mean(1) if family == "CLAP" or rate == own else soxr.resample(samples.mean(1), rate, own)
    return model, np.asarray(mono, np.float32)


@pytest.mark.weights
def test_released_clap_has_the_means_that_transformers_states() -> None:
    """laion/clap-htsat-unfused or -fused, and the last recording of hf-internal-testing/librispeech_asr_dummy."""
    model, samples = released("CLAP")
    ((clip, _),) = model.encode_windows([samples[: model.config.windows.samples]])
    expected = 0.00069 if model.model.config.audio_config.enable_fusion else 0.0024
    assert clip.mean() == pytest.approx(expected, abs=1e-3, rel=1e-3)


@pytest.mark.weights
def test_released_pe_audio_hears_what_transformers_states() -> None:
    """pe-a-frame-small and glass_breaking.mp3 of eustlb/dummy-audio-samples-higgs; frames with a score above 0.3."""
    model, samples = released("PE_AUDIO")
    ((_, frames),) = model.encode_windows([samples])
    found = model.frame_score(frames, model.encode_text(["glass breaking", "somebody speaking"])) > 0.3
    expected = torch.zeros_like(found)
    for row, runs in enumerate((((105, None),), ((28, 32), (34, 35), (128, None)))):
        for start, stop in runs:
            expected[row, start:stop] = True
    assert (found == expected).float().mean() > 0.95
