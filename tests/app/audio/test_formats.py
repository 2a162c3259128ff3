"""A demo sound in every common format has the same embedding."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from app.audio.decode import decode
from model.config import SAMPLE_RATE
from model.finelap import FineLAP
from tests.support import hostile

LOSSLESS, LOSSY = 0.9999, 0.98  # minimum cosine similarity to the WAV's clip embedding


@pytest.fixture(scope="module")
def sound(repo_dir: Path) -> np.ndarray:
    """10 s at 48 kHz."""
    samples, rate = soundfile.read(repo_dir / "demo" / "sounds" / "rain-9a5405.ogg", dtype="float32")
    return np.clip(soxr.resample(samples, rate, 48_000), -1, 1)


@pytest.fixture(scope="module")
def embed(repo_dir: Path) -> Callable[[bytes], np.ndarray]:
    """Returns a file's clip embedding."""
    model = FineLAP.from_pretrained(repo_dir / "checkpoints" / "finelap-small")
    return lambda data: model.encode_audio([decode(data, "a").samples], SAMPLE_RATE)[0].clip.numpy()


@pytest.fixture(scope="module")
def reference(sound: np.ndarray, embed: Callable[[bytes], np.ndarray]) -> np.ndarray:
    return embed(hostile.encode(sound, "WAV", 48_000, "PCM_16"))


@pytest.mark.parametrize(
    ("kind", "subtype", "bound"),
    [
        ("WAV", "PCM_24", LOSSLESS),
        ("WAV", "FLOAT", LOSSLESS),
        ("AIFF", "PCM_16", LOSSLESS),
        ("FLAC", "PCM_16", LOSSLESS),
        ("OGG", "VORBIS", LOSSY),
        ("OGG", "OPUS", LOSSY),
        ("MP3", None, LOSSY),
    ],
)
def test_libsndfile_formats(
    sound: np.ndarray,
    embed: Callable[[bytes], np.ndarray],
    reference: np.ndarray,
    kind: str,
    subtype: str | None,
    bound: float,
) -> None:
    assert embed(hostile.encode(sound, kind, 48_000, subtype)) @ reference >= bound


@pytest.mark.parametrize(
    ("container", "codec", "bound"),
    [
        ("wav", "pcm_s16le", LOSSLESS),
        ("aiff", "pcm_s16be", LOSSLESS),
        ("flac", "flac", LOSSLESS),
        ("ogg", "libvorbis", LOSSY),
        ("ogg", "libopus", LOSSY),
        ("mp3", "libmp3lame", LOSSY),
        ("mp4", "aac", LOSSY),
        ("mp4", "alac", LOSSLESS),
        ("webm", "libopus", LOSSY),
        ("asf", "wmav2", LOSSY),
    ],
)
def test_ffmpeg_formats(
    sound: np.ndarray,
    embed: Callable[[bytes], np.ndarray],
    reference: np.ndarray,
    container: str,
    codec: str,
    bound: float,
) -> None:
    _need(codec)
    assert embed(hostile.encode_av(sound, 48_000, container, codec)) @ reference >= bound


def test_audio_track_of_a_video(sound: np.ndarray, embed: Callable[[bytes], np.ndarray], reference: np.ndarray) -> None:
    _need("mpeg4")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as film:
        picture, track = film.add_stream("mpeg4", rate=5), film.add_stream("aac", rate=48_000, layout="mono")
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track.bit_rate = 128_000
        for shade in range(50):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * shade, np.uint8), "rgb24")
            film.mux(picture.encode(image))
        film.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
        frame.sample_rate = 48_000
        film.mux(track.encode(frame))
        film.mux(track.encode(None))
    data = out.getvalue()
    assert decode(data, "film.mp4").duration == pytest.approx(10, abs=0.1)
    assert embed(data) @ reference >= LOSSY


def _need(codec: str) -> None:
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg cannot write {codec}")
