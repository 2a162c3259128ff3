"""FineLAP end to end on a small model: lengths, windows, batches, texts, scores, precision."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.audio import samples_for
from model.config import FineLAPConfig, WindowConfig
from model.finelap import FineLAP, TokenizerMissing
from model.windows import frame_count, plan_windows, window_samples

WHOLE = 256 * 160 + 240  # samples of the small model's window


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """A tone in noise that changes over time, so that no two frames are equal."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16_000
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * t) * t) + 0.1 * rng.standard_normal(samples)).astype(np.float32)


class CountingEncoder(torch.nn.Module):
    """Wraps an encoder and records the input shapes."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.shapes = inner, []

    def forward(self, mel: Tensor) -> Tensor:
        self.shapes.append(tuple(mel.shape))
        return self.inner(mel)


# Audio


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 2560, 10_240, 10_241, 40_959, 40_960, 40_961, WHOLE, 100_000])
def test_every_length_gives_unit_vectors_and_a_frame_per_hop(tiny: FineLAP, samples: int) -> None:
    (item,) = tiny.encode_audio([noise(samples)], 16_000)
    assert item.frames.shape == (max(1, math.ceil(samples / 2560)), 24)
    assert item.clip.shape == (24,) and item.frame_hop == 0.16
    for tensor in (item.clip, item.frames):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad and tensor.device.type == "cpu"
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))


def test_a_batch_equals_one_by_one(tiny: FineLAP) -> None:
    waveforms = [noise(n, seed=n) for n in (300, 5_000, 15_000, 40_000, 90_000, 30_000, 160_000)]
    together = tiny.encode_audio(waveforms, 16_000)
    for waveform, item in zip(waveforms, together, strict=True):
        (alone,) = tiny.encode_audio([waveform], 16_000)
        torch.testing.assert_close(item.clip, alone.clip, atol=1e-5, rtol=0)
        torch.testing.assert_close(item.frames, alone.frames, atol=1e-5, rtol=0)


def test_one_pass_per_padded_length(make_tiny: Callable[..., FineLAP], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny()
    monkeypatch.setattr("model.cpu.threads.torch.get_num_threads", lambda: 1)  # with more threads each pass is split
    model.audio_encoder = CountingEncoder(model.audio_encoder)
    results = model.encode_windows([noise(n) for n in (40_000, 9_000, 39_000, 20_000, 300, WHOLE)])
    assert sorted(model.audio_encoder.shapes) == [(1, 128, 32), (2, 64, 32), (3, 256, 32)]
    assert [len(frames) for _, frames in results] == [16, 4, 16, 8, 4, 16]


def test_without_buckets_windows_are_padded_to_full_length(
    make_tiny: Callable[..., FineLAP], tiny_config: Callable
) -> None:
    model = make_tiny(tiny_config(windows=WindowConfig(mel_frames=256, frames=16, overlap_frames=4)))
    model.audio_encoder = CountingEncoder(model.audio_encoder)
    ((_, frames),) = model.encode_windows([noise(300)])
    assert model.audio_encoder.shapes == [(1, 256, 32)] and len(frames) == 16


def test_mel_of_a_batch_equals_padding_each_log_mel(tiny: FineLAP) -> None:
    waveforms = [noise(n) for n in (200, 400, 5_001, samples_for(64), 30_000)]
    got = tiny.mel(waveforms, 64)
    for row, waveform in zip(got, waveforms, strict=True):
        heard = np.pad(waveform, (0, max(0, 400 - len(waveform))))
        raw = tiny.log_mel(torch.from_numpy(heard)[None])
        torch.testing.assert_close(row, tiny.log_mel.normalise(tiny.log_mel.pad(raw, 64))[0])


def test_padding_has_the_configured_value(make_tiny: Callable[..., FineLAP], tiny_config: Callable) -> None:
    config = tiny_config()
    model = make_tiny(replace(config, mel=replace(config.mel, pad_value=-7.0)))
    padding = model.mel([noise(400)], 64)[0, 1:]
    torch.testing.assert_close(padding, torch.full_like(padding, (-7.0 + 4.268) / (2 * 4.569)))


def test_long_audio_equals_its_joined_windows(tiny: FineLAP) -> None:
    waveform = noise(150_000)
    (item,) = tiny.encode_audio([waveform], 16_000)
    centred = waveform - waveform.mean()
    plan = plan_windows(len(centred), tiny.config.windows)
    assert len(plan) > 3
    encoded = [tiny.encode_windows([centred[w.start : w.stop]])[0] for w in plan]
    at, clip = 0, torch.zeros(24)
    for window, (window_clip, frames) in zip(plan, encoded, strict=True):
        kept = frames[window.keep]
        assert window.first_frame + window.keep.start == at
        torch.testing.assert_close(item.frames[at : at + len(kept)], kept, atol=1e-5, rtol=0)
        at, clip = at + len(kept), clip + len(kept) * window_clip
    assert at == len(item.frames) == frame_count(150_000, tiny.config.windows)
    torch.testing.assert_close(item.clip, clip / clip.norm(), atol=1e-5, rtol=0)


def test_many_more_windows_than_a_batch_keep_their_order(tiny: FineLAP) -> None:
    waveforms = [noise(n, seed=n) for n in (700_000, 9_000, 300_000)]
    for waveform, item in zip(waveforms, tiny.encode_audio(waveforms, 16_000), strict=True):
        (alone,) = tiny.encode_audio([waveform], 16_000)
        torch.testing.assert_close(item.frames, alone.frames, atol=1e-5, rtol=0)


def test_a_constant_offset_does_not_change_the_embedding(tiny: FineLAP) -> None:
    plain, offset = tiny.encode_audio([noise(30_000), noise(30_000) + 0.2], 16_000)
    torch.testing.assert_close(plain.frames, offset.frames, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_sample_rates_give_similar_embeddings(tiny: FineLAP, rate: int) -> None:
    def tone(at: int) -> np.ndarray:
        t = np.arange(2 * at) / at
        return (0.5 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)

    (here,), (there,) = tiny.encode_audio([tone(16_000)], 16_000), tiny.encode_audio([tone(rate)], rate)
    assert len(here.frames) == len(there.frames) == 13
    if rate > 16_000:  # at 8 kHz the upper half of the spectrum is missing
        assert float(here.clip @ there.clip) > 0.99
    assert len(tiny.encode_audio([tone(rate)[:2]], rate)[0].frames) == 1


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "waveform 1 is empty"),
        (np.zeros((2, 800), np.float32), r"waveform 1: expected one dimension .* \(2, 800\)"),
        (np.zeros(800, np.int16), "waveform 1: expected floats"),
        (np.array([0.0, np.nan] * 400, np.float32), "waveform 1 has samples that are not finite"),
        (np.full(800, np.inf), "waveform 1 has samples that are not finite"),
    ],
)
def test_invalid_waveforms_are_named(tiny: FineLAP, waveform: np.ndarray, message: str) -> None:
    for encode in (lambda w: tiny.encode_audio(w, 16_000), tiny.encode_windows):
        with pytest.raises(ValueError, match=message):
            encode([noise(800), waveform])


def test_more_than_a_window_and_invalid_rates_are_rejected(tiny: FineLAP) -> None:
    assert window_samples(tiny.config.windows) == WHOLE
    with pytest.raises(ValueError, match="a window holds 41200"):
        tiny.encode_windows([noise(WHOLE + 1)])
    with pytest.raises(ValueError, match="sample rate 0"):
        tiny.encode_audio([noise(800)], 0)


def test_float64_and_empty_batches(tiny: FineLAP) -> None:
    (double,) = tiny.encode_audio([noise(8_000).astype(np.float64)], 16_000)
    (single,) = tiny.encode_audio([noise(8_000)], 16_000)
    assert torch.equal(double.clip, single.clip)
    assert tiny.encode_audio([], 16_000) == [] and tiny.encode_windows([]) == []
    assert tiny.encode_text([]).shape == (0, 24)


# Text


def test_text_embeddings_do_not_depend_on_the_batch(tiny: FineLAP) -> None:
    texts = ["a dog barks", "rain", "THE LOUD CAR passes", ""]
    together = tiny.encode_text(texts)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(tiny.encode_text([text])[0], row, atol=1e-5, rtol=0)
    ids = [[2, 4, 6, 11, 3], [2, 9, 3, 0, 0]]
    mask = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    for kind in (list, np.array, torch.tensor):
        torch.testing.assert_close(tiny.encode_tokens(kind(ids), kind(mask)), together[:2], atol=1e-5, rtol=0)


def test_texts_are_truncated_to_max_tokens(tiny: FineLAP) -> None:
    six = "dog bird car rain bark barks"  # with two special tokens, the small model's max_tokens
    assert torch.equal(tiny.encode_text([six]), tiny.encode_text([six + " barking sings"]))
    assert tiny.tokenise(["dog " * 50])[0].tolist() == [[2, *[6] * 6, 3]]


def test_more_texts_than_a_batch(tiny: FineLAP) -> None:
    texts = [f"{a} {b}" for a in ("dog", "bird", "car") for b in ("loud", "quiet")] * 30
    many = tiny.encode_text(texts)
    assert many.shape == (180, 24)
    torch.testing.assert_close(many[174:], tiny.encode_text(texts[:6]), atol=1e-5, rtol=0)


def test_without_a_tokenizer_only_texts_are_rejected(make_tiny: Callable[..., FineLAP]) -> None:
    model = make_tiny()
    model.tokenizer = None
    assert model.encode_tokens([[2, 6, 3]], [[1, 1, 1]]).shape == (1, 24)
    with pytest.raises(TokenizerMissing, match="tiny was loaded without a tokenizer"):
        model.encode_text(["dog"])
    with pytest.raises(TypeError, match="a list of texts"):
        model.encode_text("dog")


def test_threads_share_a_loaded_model(make_tiny: Callable[..., FineLAP], tmp_path: Path) -> None:
    make_tiny().save_pretrained(tmp_path)
    model = FineLAP.from_pretrained(tmp_path)
    texts = [["dog"], ["a loud car passes"], ["rain in the distance", "bird"]]
    expected = [model.encode_text(t) for t in texts]
    failures: list[str] = []

    def work(which: int) -> None:
        try:
            for _ in range(50):
                if not torch.allclose(model.encode_text(texts[which]), expected[which], atol=1e-5):
                    failures.append(f"{which} differs")
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Scores


def test_scores_are_sigmoids_of_scaled_cosines(tiny: FineLAP) -> None:
    (item,) = tiny.encode_audio([noise(20_000)], 16_000)
    texts = tiny.encode_text(["dog", "rain", "a car"])
    clips = torch.stack([item.clip, -item.clip])
    clip_scores, frame_scores = tiny.clip_score(clips, texts), tiny.frame_score(item.frames, texts)
    assert clip_scores.shape == (2, 3) and frame_scores.shape == (3, 8)
    for a in range(2):
        for b in range(3):
            logit = float(clips[a].double() @ texts[b].double()) / 0.2 - 1.0
            assert clip_scores[a, b].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    for b in range(3):
        for t in range(8):
            logit = float(item.frames[t].double() @ texts[b].double()) / 0.3 + 0.5
            assert frame_scores[b, t].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_scores_accept_arrays_single_vectors_and_half_precision(tiny: FineLAP) -> None:
    (item,) = tiny.encode_audio([noise(20_000)], 16_000)
    texts = tiny.encode_text(["dog", "rain"])
    expected = tiny.clip_score(item.clip[None], texts)
    assert not expected.requires_grad
    assert torch.equal(tiny.clip_score(item.clip.numpy(), texts.numpy()), expected)
    assert tiny.frame_score(item.frames, texts[0]).shape == (1, 8)
    stored = item.frames.numpy().astype(np.float16)
    torch.testing.assert_close(tiny.frame_score(stored, texts), tiny.frame_score(item.frames, texts), atol=1e-3, rtol=0)


# Training and precision


def test_inference_disables_dropout_and_restores_the_mode(make_tiny: Callable[..., FineLAP]) -> None:
    model = make_tiny()
    before = model.encode_audio([noise(20_000)], 16_000)[0].frames, model.encode_text(["dog"])
    model.train()
    torch.testing.assert_close(model.encode_audio([noise(20_000)], 16_000)[0].frames, before[0])
    torch.testing.assert_close(model.encode_text(["dog"]), before[1])
    assert model.training and model.text.training


def test_gradients_reach_every_weight(make_tiny: Callable[..., FineLAP]) -> None:
    model = make_tiny()
    clip, frames = model.forward_audio(model.mel([noise(40_000), noise(9_000, 1)], 256))
    text = model.forward_text(*model.tokenise(["dog", "a loud car"]))
    assert clip.shape == (2, 24) and frames.shape == (2, 16, 24) and text.shape == (2, 24)
    clips = torch.sigmoid(clip @ text.T / model.temp_global + model.b_global)
    tracks = torch.sigmoid(frames @ text.T / model.temp_local + model.b_local)
    (clips.sum() + tracks.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_half_precision_applies_to_the_network_only(make_tiny: Callable[..., FineLAP]) -> None:
    model = make_tiny()
    whole = model.encode_audio([noise(60_000)], 16_000)[0], model.encode_text(["a loud dog"])
    model.cast(torch.float16)
    assert model.dtype == torch.float16
    assert {model.log_mel.filters.dtype, model.temp_local.dtype, model.b_global.dtype} == {torch.float32}
    half = model.encode_audio([noise(60_000)], 16_000)[0], model.encode_text(["a loud dog"])
    for a, b in ((half[0].clip, whole[0].clip), (half[0].frames, whole[0].frames), (half[1], whole[1])):
        assert a.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.999


def test_model_properties(tiny: FineLAP, tiny_config: Callable[..., FineLAPConfig]) -> None:
    assert (tiny.name, tiny.dim, tiny.frame_hop) == ("tiny", 24, 0.16)
    assert tiny.device == torch.device("cpu") and tiny.dtype == torch.float32
    assert tiny.config == tiny_config()


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, model, model.config, model.windows, model.detection;"
        "assert not {'torch', 'transformers', 'soxr'} & set(sys.modules);"
        "from model import FineLAP; assert 'torch' in sys.modules;"
        "assert not {'transformers', 'soxr', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
