"""Decoding: formats, exactness and the error for each kind of fault."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from app.audio.decode import (
    DecoderFailed,
    EmptyAudio,
    InvalidSamples,
    MediaError,
    NotAudio,
    TooLong,
    TooShort,
    TruncatedAudio,
    decode,
    open_stream,
)
from app.errors import describe
from tests.support import hostile

encode_av = hostile.encode_av


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    n = min(len(a), len(b))
    return float(a[:n] @ b[:n] / np.linalg.norm(a[:n]) / np.linalg.norm(b[:n]))


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("AIFF", "PCM_24"), ("FLAC", "PCM_16"), ("AU", "PCM_16")],
)
def test_lossless_files_decode_exactly(sounds: SimpleNamespace, kind: str, subtype: str) -> None:
    samples = sounds.tone(440, 1.5)
    decoded = decode(sounds.encode(samples, kind, subtype=subtype), "a")
    assert (decoded.duration, decoded.sample_rate, decoded.channels) == (1.5, 16_000, 1)
    assert decoded.samples.dtype == np.float32 and decoded.samples.shape == samples.shape
    np.testing.assert_allclose(decoded.samples, samples, atol=0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_lossy_files_decode_with_libsndfile(sounds: SimpleNamespace, kind: str, subtype: str | None) -> None:
    samples = sounds.tone(440, 2, 48_000)
    decoded = decode(sounds.encode(samples, kind, 48_000, subtype), "a")
    assert decoded.duration == pytest.approx(2, abs=0.001)
    assert len(decoded.samples) == pytest.approx(32_000, abs=16)
    assert cosine(decoded.samples, sounds.tone(440, 2)) > 0.99


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "aac"),
        ("webm", "libopus"),
        ("mp4", "alac"),
        ("asf", "wmav2"),
        ("avi", "pcm_s16le"),
        ("matroska", "libmp3lame"),
        ("adts", "aac"),
    ],
)
def test_other_formats_decode_with_ffmpeg(sounds: SimpleNamespace, container: str, codec: str) -> None:
    decoded = decode(encode_av(sounds.tone(440, 2, 48_000), 48_000, container, codec), "a")
    assert decoded.channels == 2 and decoded.sample_rate == 48_000
    assert decoded.duration == pytest.approx(2, abs=0.15)  # encoders add priming and padding
    spectrum = np.abs(np.fft.rfft(decoded.samples[8_000:24_000]))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_preserves_length_and_content(sounds: SimpleNamespace, rate: int) -> None:
    decoded = decode(sounds.encode(sounds.tone(440, 3.3, rate), rate=rate, subtype="FLOAT"), "a")
    assert decoded.sample_rate == rate and decoded.duration == int(3.3 * rate) / rate
    assert abs(len(decoded.samples) - 3.3 * 16_000) <= 1
    middle = slice(8_000, 44_000)
    np.testing.assert_allclose(decoded.samples[middle], sounds.tone(440, 3.3)[middle], atol=2e-3)


def test_channels_are_averaged(sounds: SimpleNamespace) -> None:
    left, right = sounds.tone(440, 1), sounds.tone(1000, 1)
    decoded = decode(sounds.encode(np.stack([left, right], 1), subtype="FLOAT"), "a")
    assert decoded.channels == 2
    np.testing.assert_allclose(decoded.samples, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")]
)
def test_block_size_does_not_change_the_result(sounds: SimpleNamespace, kind: str, subtype: str | None) -> None:
    stereo = np.stack([sounds.tone(440, 8), sounds.tone(1000, 8)], 1)  # several blocks
    data = sounds.encode(stereo, kind, subtype=subtype)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(decode(data, "a").samples, whole.mean(axis=1), atol=1e-5)


def test_empty_file() -> None:
    with pytest.raises(EmptyAudio, match="leer.wav: the file is empty"):
        decode(b"", "leer.wav")


@pytest.mark.parametrize(
    "data",
    [
        b"This is a letter, not a sound.\n" * 20,
        b"PK\x03\x04" + bytes(200),
        b"\x00" * 5000,
        b"RIFF",
        b"%PDF-1.7\n" + bytes(range(256)) * 4,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        bytes(np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8)),
    ],
)
def test_files_that_are_not_audio(data: bytes) -> None:
    with pytest.raises((NotAudio, EmptyAudio, TruncatedAudio), match="letter.wav: "):
        decode(data, "letter.wav")
    if data[:4] in (b"This", b"PK\x03\x04", b"%PDF"):
        with pytest.raises(NotAudio):
            decode(data, "letter.wav")


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{}\n#EXT-X-ENDLIST\n",
        b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.wav\n",
        b"ffconcat version 1.0\nfile '{}'\n",
    ],
)
def test_playlists_do_not_open_other_files(sounds: SimpleNamespace, playlist: bytes, tmp_path: object) -> None:
    target = f"{tmp_path}/secret.wav"
    with open(target, "wb") as file:
        file.write(sounds.wav())
    with pytest.raises(NotAudio):
        decode(playlist.replace(b"{}", target.encode()), "list.m3u8")


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("FLAC", "PCM_16"), ("MP3", None), *((k, "PCM_16") for k in ("WAV", "AIFF", "AU", "W64", "RF64", "VOC"))],
)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_truncated_files_report_seconds_read(
    sounds: SimpleNamespace, kind: str, subtype: str | None, part: float
) -> None:
    noise = np.random.default_rng(0).standard_normal(5 * 44_100).astype(np.float32) * 0.1
    data = sounds.encode(noise, kind, 44_100, subtype)
    with pytest.raises(TruncatedAudio, match=r"half\.x: .*\d s.* (truncated|damaged)|truncated.*\d s"):
        decode(data[: int(part * len(data))], "half.x")


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("avi", "pcm_s16le"), ("asf", "wmav2")]
)
def test_truncated_containers_are_rejected(sounds: SimpleNamespace, container: str, codec: str) -> None:
    data = encode_av(sounds.tone(440, 5, 48_000), 48_000, container, codec)
    with pytest.raises(MediaError):
        decode(data[: len(data) // 2], "half")


def test_truncated_ogg(sounds: SimpleNamespace) -> None:
    data = sounds.encode(sounds.tone(440, 5, 44_100), "OGG", 44_100, "VORBIS")
    with pytest.raises(TruncatedAudio, match="truncated"):
        decode(data[: len(data) // 2], "half.ogg")


def test_wav_written_to_a_pipe_is_complete(sounds: SimpleNamespace) -> None:
    data = bytearray(sounds.encode(sounds.tone(440, 1), subtype="PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFF_FFFF)  # the writer could not seek back to set the size
    assert decode(bytes(data), "pipe.wav").duration == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("mp4", "aac"), ("avi", "pcm_s16le")])
@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_decode_or_raise_media_error(
    sounds: SimpleNamespace, container: str, codec: str, seed: int
) -> None:
    data = np.frombuffer(encode_av(sounds.tone(440, 1, 48_000), 48_000, container, codec), np.uint8).copy()
    rng = np.random.default_rng(seed)
    damaged = rng.integers(0, len(data) if seed % 2 else 300, 20)
    data[damaged] = rng.integers(0, 256, 20)
    try:
        assert len(decode(data.tobytes(), "x").samples)
    except MediaError as error:
        assert str(error).startswith("x: ")


def test_no_samples(sounds: SimpleNamespace) -> None:
    with pytest.raises(EmptyAudio, match="no samples"):
        decode(sounds.encode(np.zeros(0, np.float32)), "none.wav")


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.01, 0.049])
def test_too_short(sounds: SimpleNamespace, seconds: float) -> None:
    with pytest.raises(TooShort, match="minimum is 0.05 s"):
        decode(sounds.encode(sounds.tone(440, seconds + 1e-9)), "tick.wav")


def test_short_audio_is_accepted(sounds: SimpleNamespace) -> None:
    assert decode(sounds.encode(sounds.tone(440, 0.105)), "tick.wav").duration == pytest.approx(0.105)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_invalid_samples(sounds: SimpleNamespace, value: float) -> None:
    samples = sounds.tone(440, 1)
    samples[8_000] = value
    with pytest.raises(InvalidSamples, match="samples"):
        decode(sounds.encode(samples, subtype="FLOAT"), "nan.wav")


def test_nan_in_one_channel_is_detected_before_mixing(sounds: SimpleNamespace) -> None:
    samples = np.stack([sounds.tone(440, 1), np.full(16_000, np.nan, np.float32)], 1)
    with pytest.raises(InvalidSamples):
        decode(sounds.encode(samples, subtype="FLOAT"), "nan.wav")


def test_too_long_according_to_header(sounds: SimpleNamespace) -> None:
    with pytest.raises(TooLong, match="limit of 2 s"):
        decode(sounds.encode(sounds.tone(440, 3)), "long.wav", max_duration=2)


def test_too_long_while_decoding(sounds: SimpleNamespace) -> None:
    data = encode_av(sounds.tone(440, 5, 48_000), 48_000, "adts", "aac")  # a format without a declared length
    with pytest.raises(TooLong):
        decode(data, "long.aac", max_duration=2)


def test_small_file_with_a_day_of_silence(sounds: SimpleNamespace) -> None:
    data = bytearray(sounds.encode(np.zeros(8_000, np.float32), "FLAC", 8_000))
    total = 24 * 3600 * 8_000
    data[21] = data[21] & 0xF0 | total >> 32  # the 36 bits of STREAMINFO's total samples
    data[22:26] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    with pytest.raises(TooLong):
        decode(bytes(data), "night.flac")
    with pytest.raises(TruncatedAudio, match="1.000 s of 86400.000 s"):
        decode(bytes(data), "night.flac", max_duration=1e6)


def test_invalid_sample_rate(sounds: SimpleNamespace) -> None:
    with pytest.raises(InvalidSamples, match="sample rate of 10 Hz"):
        decode(sounds.encode(sounds.tone(440, 1), rate=10), "slow.wav")


def test_many_channels(sounds: SimpleNamespace) -> None:
    decoded = decode(sounds.encode(np.zeros((192_000, 8), np.float32) + 0.1, rate=192_000), "eight.wav")
    assert decoded.channels == 8 and len(decoded.samples) == 16_000


def test_stream_yields_blocks_of_a_second(sounds: SimpleNamespace) -> None:
    data = sounds.encode(np.stack([sounds.tone(440, 3.3, 44_100)] * 2, 1), "FLAC", 44_100)
    with open_stream(io.BytesIO(data), "a", 10) as stream:
        assert (stream.sample_rate, stream.channels) == (44_100, 2)
        blocks = list(stream)
    assert [len(block) for block in blocks] == [16_000, 16_000, 16_000, len(blocks[-1])]
    assert abs(len(blocks[-1]) - 4_800) <= 1 and all(block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), decode(data, "a").samples)
    assert stream.duration == int(3.3 * 44_100) / 44_100 and stream.decode_s > 0 and stream.resample_s > 0


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "m4a"])
def test_memory_does_not_grow_with_length(sounds: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    def peak(seconds: float) -> int:
        path = tmp_path / f"{seconds}"
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, int(seconds * 16_000)).astype(np.float32)
        path.write_bytes(encode_av(noise, 16_000, "mp4", "aac") if kind == "m4a" else sounds.encode(noise, kind))
        tracemalloc.start()
        with path.open("rb") as file, open_stream(file, "a", 1e6) as stream:
            for _ in stream:
                pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(5)
    assert peak(60) < 1.3 * peak(10) + 200_000  # 60 s are 3.8 MB


def test_seconds_read_are_in_the_error(sounds: SimpleNamespace) -> None:
    data = sounds.encode(sounds.tone(440, 4), subtype="PCM_16")
    with pytest.raises(TruncatedAudio) as truncated:
        decode(data[: 44 + 64_000], "a")
    assert truncated.value.read == pytest.approx(2.0, abs=1e-3)
    described = describe(truncated.value)
    assert (described["status"], described["readable_s"]) == (422, 2.0)
    assert "readable_s" not in describe(NotAudio("a", "no."))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 44_100)
    flac = sounds.encode(noise, "FLAC", 44_100)
    with pytest.raises(TruncatedAudio) as broken:
        decode(flac[: len(flac) // 2], "a")
    assert broken.value.read is not None and 1.5 < broken.value.read < 2.6


def test_decoder_failure_slug() -> None:
    described = describe(DecoderFailed("a.wav", "the decoder crashed."))
    assert (described["status"], described["type"]) == (415, "urn:finelap:problem:decoder-failed")


def test_day_of_silence_exceeds_the_limit_by_header_and_by_decoding() -> None:
    night = io.BytesIO(hostile.silent_flac(86_400, 8_000))
    with pytest.raises(TooLong, match="limit of 14400 s"), open_stream(night, "night.flac"):
        pass  # nothing was decoded
    with pytest.raises(TooLong, match="limit of 600 s"):
        decode(hostile.silent_flac(86_400, 8_000, declared=0), "night.flac", 600)


def test_flac_without_declared_length() -> None:
    decoded = decode(hostile.silent_flac(20, 8_000, declared=0), "piped.flac")
    assert decoded.duration == 3 * 65_535 / 8_000 and not decoded.samples.any()


def test_video_with_excessive_declared_duration_is_not_decoded(sounds: SimpleNamespace) -> None:
    data = encode_av(sounds.tone(440, 5, 48_000), 48_000, "mp4", "aac")
    with open_stream(io.BytesIO(data), "a", 10), pytest.raises(TooLong), open_stream(io.BytesIO(data), "a", 2):
        pass
