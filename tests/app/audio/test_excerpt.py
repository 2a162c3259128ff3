"""Excerpts: the samples are those of the file in every format, edges, metadata, and byte ranges of the result."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from app.audio.excerpt import PEAK, ExcerptOptions, open_excerpt
from app.audio.excerpt_files import WavFile
from app.audio.sample_reader import move_bext, move_ixml
from app.audio.wav_chunks import walk_chunks

RATE, SECONDS = 48_000, 3


def noise(rate: int, channels: int, kind: str = "float64") -> np.ndarray:
    """(n, channels) noise at half scale."""
    values = np.random.default_rng(3).uniform(-0.5, 0.5, (rate * SECONDS, channels))
    return values.astype(kind)


def encoded(samples: np.ndarray, rate: int, **how: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **how)
    return file.getvalue()


def cut(data: bytes, start: int, stop: int, **options: Any) -> bytes:
    total = options.pop("total", RATE * SECONDS)
    opened = open_excerpt(io.BytesIO(data), ExcerptOptions(start, stop, total, **options))
    result = b"".join(opened.pieces)
    assert opened.length is None or opened.first is not None or len(result) == opened.length
    return result


def decoded(data: bytes, dtype: str) -> tuple[np.ndarray, soundfile.SoundFile]:
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        return sound.read(dtype=dtype, always_2d=True), sound


EXACT = [
    ("WAV", "PCM_U8", 22_050, 1, "int32"),
    ("WAV", "PCM_16", 44_100, 2, "int32"),
    ("WAV", "PCM_24", 96_000, 2, "int32"),
    ("WAVEX", "PCM_24", 48_000, 6, "int32"),
    ("WAV", "PCM_32", 48_000, 1, "int32"),
    ("WAV", "FLOAT", 192_000, 2, "float32"),
    ("WAV", "DOUBLE", 48_000, 1, "float64"),
    ("RF64", "PCM_24", 48_000, 1, "int32"),
    ("W64", "PCM_24", 48_000, 2, "int32"),
    ("AIFF", "PCM_24", 96_000, 2, "int32"),
    ("FLAC", "PCM_24", 96_000, 2, "int32"),
    ("CAF", "PCM_16", 48_000, 1, "int32"),
]


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels", "dtype"), EXACT)
def test_an_excerpt_has_the_samples_of_the_file(kind: str, subtype: str, rate: int, channels: int, dtype: str) -> None:
    data = encoded(noise(rate, channels), rate, format=kind, subtype=subtype)
    whole, _ = decoded(data, dtype)
    start, stop = rate // 3, 2 * rate + 7
    samples, sound = decoded(cut(data, start, stop, total=rate * SECONDS), dtype)
    assert (sound.samplerate, sound.channels, sound.subtype) == (rate, channels, subtype)
    np.testing.assert_array_equal(samples, whole[start:stop])


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_keeps_the_samples_and_knows_its_length(subtype: str) -> None:
    data = encoded(noise(RATE, 2), RATE, format="AIFF", subtype=subtype)
    whole, _ = decoded(data, "int32")
    samples, sound = decoded(cut(data, 1000, 60_000, format="flac"), "int32")
    assert sound.subtype == subtype and sound.frames == 59_000
    np.testing.assert_array_equal(samples, whole[1000:60_000])


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_lossy_file_is_cut_as_if_it_had_been_decoded_whole(tmp_path: Path, kind: str, subtype: str | None) -> None:
    with soundfile.SoundFile(tmp_path / "a", "w", RATE, 2, subtype, format=kind) as file:
        for block in np.split(noise(RATE, 2), 36):
            file.write(block)
    data = (tmp_path / "a").read_bytes()
    whole, _ = decoded(data, "float32")
    samples, sound = decoded(cut(data, 2 * RATE, 2 * RATE + 5000), "float32")
    assert sound.subtype == "PCM_24"
    np.testing.assert_allclose(samples, whole[2 * RATE : 2 * RATE + 5000], atol=2**-23)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "aac"), ("mp4", "alac"), ("asf", "wmav2"), ("matroska", "aac")]
)
def test_files_that_ffmpeg_decodes(container: str, codec: str) -> None:
    """A cut far into the file, where FFmpeg seeks, has the samples of the whole decoded file at that position."""
    rate, seconds = 44_100, 90
    time = np.arange(rate * seconds) / rate
    sweep = (0.4 * np.sin(2 * np.pi * (200 + 20 * time) * time)).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 128_000
        size = 4096
        for at in range(0, len(sweep), size):
            frame = av.AudioFrame.from_ndarray(sweep[None, at : at + size], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data, total = file.getvalue(), rate * seconds
    for start in (rate, 70 * rate):
        samples, _ = decoded(cut(data, start, start + rate, total=total), "float64")
        whole, _ = decoded(cut(data, 0, total, total=total), "float64")
        shifts = [
            np.abs(samples[50:-50, 0] - whole[start + 50 + d : start + rate - 50 + d, 0]).max() for d in range(-48, 49)
        ]
        # containers with times in milliseconds know a position to half of one
        best = int(np.argmin(shifts)) - 48
        assert min(shifts) < 2e-3 and (best == 0 if start == rate or container == "mp4" else abs(best) <= 23)


def test_fades_only_where_the_excerpt_cuts_into_the_sound() -> None:
    data = encoded(np.full((RATE * SECONDS, 2), 0.5), RATE, format="WAV", subtype="PCM_24")
    samples, _ = decoded(cut(data, 0, RATE, fade=0.01), "float64")
    assert (samples[: RATE - 480] == 0.5).all() and samples[-1, 0] == 0 and (np.diff(samples[-480:, 0]) <= 0).all()
    samples, _ = decoded(cut(data, RATE, SECONDS * RATE, fade=0.01), "float64")
    assert samples[0, 0] == 0 and (samples[480:] == 0.5).all() and (np.diff(samples[:480, 0]) >= 0).all()
    short, _ = decoded(cut(data, RATE, RATE + 100, fade=1.0), "float64")
    assert len(short) == 100 and short[0, 0] == short[-1, 0] == 0 and short.max() < 0.5 + 1e-6


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_normalize_scales_the_peak(subtype: str) -> None:
    samples = noise(RATE, 2) * 0.1
    data = encoded(samples, RATE, format="WAV", subtype=subtype)
    scaled, sound = decoded(cut(data, 1000, 50_000, normalize=True), "float64")
    assert sound.subtype == subtype and abs(np.abs(scaled).max() - PEAK) < 1e-4
    whole, _ = decoded(data, "float64")
    wanted = whole[1000:50_000]
    np.testing.assert_allclose(scaled, wanted * PEAK / np.abs(wanted).max(), atol=2**-15)
    silence = encoded(np.zeros((RATE * SECONDS, 1)), RATE, format="WAV")
    assert not decoded(cut(silence, 0, RATE, normalize=True), "float64")[0].any()


def with_chunks(data: bytes, **chunks: bytes) -> bytes:
    """A WAV file with more chunks before its audio."""
    at = data.index(b"data")
    extra = b"".join(
        struct.pack("<4sI", name.encode(), len(content)) + content + bytes(len(content) % 2)
        for name, content in chunks.items()
    )
    return data[:4] + struct.pack("<I", len(data) - 8 + len(extra)) + data[8:at] + extra + data[at:]


def chunks_of(data: bytes) -> dict[bytes, bytes]:
    return {kind: data[at : at + size] for kind, at, size in walk_chunks(io.BytesIO(data), "little")}


BEXT = b"a door".ljust(256, b"\0") + bytes(82) + struct.pack("<Q", 2**32 - 10) + bytes(256) + b"A=PCM,F=48000\r\n"
IXML = (
    b"<BWFXML><SCENE>12A</SCENE><BEXT><BWF_TIME_REFERENCE_LOW>4294967286</BWF_TIME_REFERENCE_LOW>"
    b"<BWF_TIME_REFERENCE_HIGH>0</BWF_TIME_REFERENCE_HIGH></BEXT></BWFXML>"
)


def test_bext_and_ixml_are_kept_and_the_time_reference_moves() -> None:
    data = with_chunks(encoded(noise(RATE, 1), RATE, format="WAV"), bext=BEXT, iXML=IXML, junk=b"abc")
    kept = chunks_of(cut(data, 1000, 2000))
    assert kept[b"bext"] == BEXT[:338] + struct.pack("<Q", 2**32 + 990) + BEXT[346:]
    assert b"<SCENE>12A</SCENE>" in kept[b"iXML"] and b"LOW>990</" in kept[b"iXML"] and b"HIGH>1</" in kept[b"iXML"]
    assert kept[b"fmt "] == chunks_of(data)[b"fmt "] and b"junk" not in kept
    assert move_bext(b"short", 5) == b"short" and move_ixml(b"<x/>", 5) == b"<x/>"


def test_flac_keeps_bext_as_the_flac_tools_do() -> None:
    data = with_chunks(encoded(noise(RATE, 1), RATE, format="WAV"), bext=BEXT)
    flac = cut(data, 1000, 2000, format="flac")
    at, blocks = 4, []
    while True:
        kind, size = flac[at], int.from_bytes(flac[at + 1 : at + 4], "big")
        blocks.append((kind & 0x7F, flac[at + 4 : at + 4 + size]))
        at += 4 + size
        if kind & 0x80:
            break
    riff = [content[4:] for kind, content in blocks if kind == 2 and content[:4] == b"riff"]
    assert [block[:4] for block in riff] == [b"RIFF", b"fmt ", b"bext", b"data"]
    assert struct.unpack("<Q", riff[2][8 + 338 : 8 + 346]) == (2**32 + 990,)
    assert sum(map(len, riff)) + 2000 - 8 == struct.unpack("<I", riff[0][4:8])[0]
    np.testing.assert_array_equal(decoded(flac, "int32")[0], decoded(cut(data, 1000, 2000), "int32")[0])


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("channels", [1, 6])
def test_every_range_has_the_bytes_of_the_whole(preview: bool, channels: int) -> None:
    rate = 96_000
    data = encoded(noise(rate, channels)[: rate + 1], rate, format="WAV", subtype="PCM_24")
    options = {"preview": preview, "total": rate + 1, "fade": 0.01}
    start, stop = (0, rate + 1) if preview else (100, rate - 1)
    whole = cut(data, start, stop, **options)
    if preview:
        sound = decoded(whole, "float32")[1]
        assert (sound.samplerate, sound.channels, sound.subtype) == (48_000, min(2, channels), "PCM_16")
    length = len(whole)
    for first, last in ((0, 3), (10, 500), (43, 44), (44, 45), (1001, 90_000), (length - 5, length - 1), (0, None)):
        piece = cut(data, start, stop, range=(first, last), **options)
        expected = whole[first : None if last is None else last + 1]
        assert len(piece) == len(expected)
        if not preview:
            assert piece == expected
        elif first == 1001:  # resampling begins in the middle
            a, b = (
                np.frombuffer(x[1:-1], "<i2").astype(int)
                for x in (piece[: len(piece) // 2 * 2], expected[: len(piece) // 2 * 2])
            )
            assert np.abs(a - b).max() <= 4
    assert cut(data, start, stop, range=(None, 7), **options) == whole[-7:]
    opened = open_excerpt(
        io.BytesIO(data), ExcerptOptions(start, stop, rate + 1, range=(length, None), preview=preview)
    )
    assert opened.first is not None and opened.last is not None and opened.first > opened.last
    assert list(opened.pieces) == []


def test_a_preview_of_5_1_has_the_centre_on_both_sides() -> None:
    samples = np.zeros((RATE, 6))
    samples[:, 2] = 0.9
    data = encoded(samples, RATE, format="WAVEX", subtype="PCM_24")
    mixed, _ = decoded(cut(data, 0, RATE, total=RATE, preview=True), "float64")
    assert mixed.shape == (RATE, 2) and np.ptp(mixed) < 1e-4 and 0.2 < mixed[0, 0] < 0.9


def test_a_wav_file_beyond_four_gigabytes_is_rf64() -> None:
    wav = WavFile(192_000, 8, ("float32", 32), 2**30)
    assert wav.header[:4] == b"RF64" and wav.data_bytes == 2**35 and wav.length == len(wav.header) + 2**35
    assert struct.unpack("<QQQ", wav.header[20:44]) == (wav.length - 8, 2**35, 2**30)


def test_silence_where_a_file_ends_early() -> None:
    data = encoded(noise(RATE, 1)[:RATE], RATE, format="WAV")
    samples, _ = decoded(cut(data, RATE - 10, RATE + 10), "float64")
    assert len(samples) == 20 and samples[:10].all() and not samples[10:].any()
