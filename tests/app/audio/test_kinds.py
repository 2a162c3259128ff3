"""Kinds of real files on which audio tools go wrong, several of each: docs/reference/formats.md has the table.

Most are made by hand or by FFmpeg's libraries; those that need the program `ffmpeg` skip without it. The sound is faint
noise of 4 s with a loud beep at 3 s, so that a file tells whether all of it was heard, and when.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from app.audio.decode import DecodedAudio, TruncatedAudio, decode, open_live
from app.audio.errors import EmptyAudio, TrackMissing
from app.audio.live import PcmDecoder
from tests.support import hostile

RATE, SECONDS, BEEP = 48_000, 4.0, 3.0


@cache
def sound(rate: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    """(n,) float32."""
    rng = np.random.default_rng(22)
    samples = rng.normal(0, 0.002, int(rate * seconds)).astype(np.float32)
    at = int(BEEP * rate)
    beep = 0.6 * np.sin(2 * np.pi * 1000 * np.arange(int(0.5 * rate)) / rate)
    samples[at : at + len(beep)] += beep[: max(0, len(samples) - at)].astype(np.float32)
    return samples


@cache
def wav(rate: int = RATE, seconds: float = SECONDS) -> bytes:
    return hostile.encode(sound(rate, seconds), "WAV", rate, "PCM_16")


@cache
def ffmpeg(*arguments: str, rate: int = RATE, seconds: float = SECONDS, piped: bool = False) -> bytes:
    """The sound as ffmpeg writes it with these output options; `piped`: to a pipe, in which it cannot seek."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("ffmpeg is not installed")
    command = [program, "-v", "error", "-nostdin", "-y"]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.wav"), Path(folder, "out")
        source.write_bytes(wav(rate, seconds))
        before = [argument.replace("IN.wav", str(source)) for argument in arguments]
        given = before if "-i" in arguments else ["-i", str(source), *before]
        done = subprocess.run([*command, *given, "pipe:1" if piped else str(target)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"this ffmpeg cannot write it: {done.stderr.decode(errors='replace')[-200:]}")
        return done.stdout if piped else target.read_bytes()


def beep_at(audio: DecodedAudio) -> float:
    """The second at which the beep begins."""
    loud = np.abs(audio.samples)
    return float(np.argmax(loud > loud.max() / 2)) / 16_000


def assert_heard(data: bytes, seconds: float = SECONDS, *, beep: float = BEEP, within: float = 0.06) -> DecodedAudio:
    audio = decode(data, "a")
    assert audio.duration == pytest.approx(seconds, abs=within)
    assert len(audio.samples) == pytest.approx(audio.duration * 16_000, abs=2)
    assert beep_at(audio) == pytest.approx(beep, abs=within)
    return audio


def codes(audio: DecodedAudio) -> list[str]:
    return [note.code for note in audio.notes]


# MPEG audio: the frames are heard, whatever a header counts

CBR, VBR = ("-c:a", "libmp3lame", "-b:a", "96k"), ("-c:a", "libmp3lame", "-q:a", "6")


def mp3(*options: str, piped: bool = False) -> bytes:
    return ffmpeg(*options, "-f", "mp3", piped=piped)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<4I", 2000, 72, 1, 0) + bytes(8)
LYRICS = b"LYRICSBEGIN" + b"x" * 500 + b"000511LYRICS200"
ID3V2 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
MP3_FILES: dict[str, Callable[[], bytes]] = {
    "vbr, piped": lambda: mp3(*VBR, piped=True),
    "no header": lambda: mp3(*CBR, "-write_xing", "0"),
    "ID3v1 behind": lambda: mp3(*CBR, "-write_xing", "0") + ID3V1,
    "APE tag behind": lambda: mp3(*CBR) + APE + b"x" * 40 + APE,
    "Lyrics3 behind": lambda: mp3(*CBR, "-write_xing", "0") + LYRICS + ID3V1,
    "zeros behind": lambda: mp3(*CBR) + bytes(20_000),
    "two ID3v2 tags": lambda: ID3V2 + ID3V2 + mp3(*CBR),
    "zeros before": lambda: bytes(5000) + mp3(*CBR),
    "count of a part": lambda: (d := mp3(*VBR)) and patched(d, d.index(b"Xing") + 8, struct.pack(">2I", 40, 8000)),
    "count of 0": lambda: (d := mp3(*VBR)) and patched(d, d.index(b"Xing") + 8, bytes(8)),
    "count of too many, bytes right": lambda: (
        (d := mp3(*VBR)) and patched(d, d.index(b"Xing") + 8, struct.pack(">I", 100_000))
    ),
    "layer 2": lambda: ffmpeg("-c:a", "mp2", "-f", "mp2"),
    "in a WAV": lambda: ffmpeg(*CBR, "-f", "wav"),
    "layer 2 in a WAV": lambda: ffmpeg("-c:a", "mp2", "-f", "wav"),
}


@pytest.mark.parametrize("name", MP3_FILES)
def test_every_frame_of_mpeg_audio_is_heard(name: str) -> None:
    assert_heard(MP3_FILES[name]())


@pytest.mark.parametrize("second", ["44100", "22050"])
def test_joined_mp3_files_are_heard_to_the_end(second: str) -> None:
    """The header of the first counts its own frames; the second may have another sample rate and be stereo."""
    audio = decode(mp3(*VBR) + mp3(*CBR, "-ar", second, "-ac", "2"), "a")
    assert audio.duration == pytest.approx(2 * SECONDS, abs=0.2) and audio.channels == 1
    assert beep_at(audio) == pytest.approx(BEEP, abs=0.05)
    assert np.abs(audio.samples[int((SECONDS + 2.9) * 16_000) : int((SECONDS + 3.6) * 16_000)]).max() > 0.3


@pytest.mark.parametrize("part", [0.4, 0.8])
def test_a_cut_mp3_whose_header_counts_more_is_refused(part: float) -> None:
    data = mp3(*VBR)
    with pytest.raises(TruncatedAudio, match="of 4.0"):
        decode(data[: int(part * len(data))], "a")


def test_a_cover_is_no_sound() -> None:
    picture = b"\xff\xd8\xff\xe0" + bytes(20_000)
    frame = b"\0image/jpeg\0\x03\0" + picture
    body = b"APIC" + struct.pack(">I", len(frame)) + b"\0\0" + frame
    size = bytes(len(body) >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    assert_heard(b"ID3\x03\0\0" + size + body + mp3(*CBR, "-write_xing", "0"))


RAW_FILES: dict[str, Callable[[], bytes]] = {
    "aac, ID3v1 behind": lambda: ffmpeg("-c:a", "aac", "-f", "adts") + ID3V1,
    "aac, zeros behind": lambda: ffmpeg("-c:a", "aac", "-f", "adts") + bytes(3000),
    "ac3": lambda: ffmpeg("-c:a", "ac3", "-f", "ac3"),
    "flac, ID3v1 behind": lambda: ffmpeg("-c:a", "flac", "-f", "flac") + ID3V1,
    "flac, ID3v2 before": lambda: ID3V2 + ffmpeg("-c:a", "flac", "-f", "flac"),
    "flac, piped": lambda: ffmpeg("-c:a", "flac", "-f", "flac", piped=True),
}


@pytest.mark.parametrize("name", RAW_FILES)
def test_tags_around_raw_streams(name: str) -> None:
    assert_heard(RAW_FILES[name]())


# Ogg: all links


def ogg(codec: str, rate: int = RATE, seconds: float = SECONDS) -> bytes:
    return hostile.encode(sound(rate, seconds), "OGG", rate, codec)


CHAINS: dict[str, tuple[Callable[[], bytes], float]] = {
    "vorbis": (lambda: ogg("VORBIS") + ogg("VORBIS", seconds=2), 6),
    "opus": (lambda: ogg("OPUS") + ogg("OPUS", seconds=2), 6),
    "vorbis, three": (lambda: ogg("VORBIS") * 3, 12),
    "another sample rate": (lambda: ogg("VORBIS") + ogg("VORBIS", 16_000, 2), 6),
    "stereo behind mono": (
        lambda: ogg("VORBIS") + hostile.encode(np.stack([sound(), sound()], 1), "OGG", RATE, "VORBIS"),
        8,
    ),
    "opus behind vorbis": (lambda: ogg("VORBIS") + ogg("OPUS"), 8),
    "flac": (lambda: ffmpeg("-c:a", "flac", "-f", "ogg") * 2, 8),
    "speex": (lambda: ffmpeg("-c:a", "libspeex", "-ar", "16000", "-f", "ogg") * 2, 8),
    "junk between": (lambda: ogg("VORBIS") + b"junk" * 500 + ogg("VORBIS"), 8),
}


@pytest.mark.parametrize("name", CHAINS)
def test_all_links_of_a_chained_ogg_are_heard(name: str) -> None:
    make, seconds = CHAINS[name]
    audio = assert_heard(make(), seconds, within=0.1)
    assert "silent" not in codes(audio)


def test_a_link_that_breaks_off_is_noted() -> None:
    first = ogg("VORBIS")
    audio = decode(first[: len(first) * 2 // 3] + ogg("VORBIS"), "a")
    assert "link-breaks-off" in codes(audio) and audio.duration > SECONDS


def test_a_capture_that_begins_in_the_middle_of_a_stream() -> None:
    """Its pages' positions count from the beginning of the broadcast, an hour before."""
    pages, data = [], ogg("VORBIS")
    while data:
        segments = data[26]
        end = 27 + segments + sum(data[27 : 27 + segments])
        (granule,) = struct.unpack_from("<q", data, 6)
        moved = granule + 3600 * RATE if granule > 0 else granule
        page = data[:6] + struct.pack("<q", moved) + data[14:22] + bytes(4) + data[26:end]
        pages.append(page[:22] + hostile._crc(page, 32, 0x04C1_1DB7).to_bytes(4, "little") + page[26:])
        data = data[end:]
    assert_heard(b"".join(pages), within=0.1)


# Channels that cancel


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def mixtures() -> dict[str, np.ndarray]:
    """Files (n, channels) at 16 kHz in which the mean is not the sound."""
    rng = np.random.default_rng(3)
    s, other = rng.normal(0, 0.1, 48_000), rng.normal(0, 0.1, 48_000)
    noise = rng.normal(0, 0.01, (48_000, 2))
    half = np.where(np.arange(48_000) < 24_000, 1, -1)
    return {
        "inverted": np.stack([s, -s], 1),
        "inverted, quieter": np.stack([s, -0.8 * s], 1),
        "inverted, noise of a cable": np.stack([s, -s], 1) + noise,
        "inverted in the second half": np.stack([s, s * half], 1),
        "inverted, with an offset": np.stack([s, -s], 1) + 0.2,
        "two of four inverted": np.stack([s, -s, s, -s], 1),
        "5.1, front inverted": np.stack([s, -s, 0 * s, 0 * s, 0 * s, 0 * s], 1),
        "first is the others' sum": np.stack([s + other, -s, -other], 1),
        "the first channel silent": np.stack([0 * s, s, -s], 1),
    }


@pytest.mark.parametrize("name", mixtures())
def test_channels_that_cancel_are_heard(name: str) -> None:
    channels = mixtures()[name]
    audio = decode(hostile.encode(channels, "WAV", 16_000, "FLOAT"), "a")
    heard = audio.samples - audio.samples.mean()
    loudness = np.sqrt(np.mean(heard**2))
    assert loudness > 0.2 * channels.std(axis=0).max()
    if name != "first is the others' sum":
        source = mixtures()["inverted"][:, 0].astype(np.float32)
        parts = [abs(cosine(heard[at : at + 8_000], source[at : at + 8_000])) for at in range(0, 48_000, 8_000)]
        assert min(parts) > 0.9, parts
    assert codes(audio) == ["channels-cancel"]


@pytest.mark.parametrize("piece", [160, 1_600, 48_000])
@pytest.mark.parametrize("name", mixtures())
def test_channels_that_cancel_are_heard_live(name: str, piece: int) -> None:
    """As in a file, and at most a twentieth of a second late; a change of the channels takes half a second."""
    channels = mixtures()[name].astype("<f4")
    decoder, heard, late = PcmDecoder("pcm_f32le", 16_000, channels.shape[1]), [np.empty(0, np.float32)], 0
    for at in range(0, len(channels), piece):
        heard.append(decoder.push(channels[at : at + piece].tobytes()))
        late = max(late, min(at + piece, len(channels)) - sum(map(len, heard)))
    live = np.concatenate([*heard, decoder.finish()])
    assert len(live) == len(channels) and late <= 800
    of_file = decode(hostile.encode(channels, "WAV", 16_000, "FLOAT"), "a").samples
    changes = [24_000] if name == "inverted in the second half" else []
    for at in [at for at in range(0, 48_000, 8_000) if at not in changes]:
        part, other = live[at : at + 8_000], of_file[at : at + 8_000]
        assert abs(cosine(part - part.mean(), other - other.mean())) > 0.9, at


def test_compressed_live_sound_is_mixed_as_samples_are() -> None:
    channels = mixtures()["inverted"]
    with open_live(io.BytesIO(hostile.encode(channels, "FLAC", 16_000, "PCM_16"))) as stream:
        heard = np.concatenate(list(stream.pieces()))
    decoder = PcmDecoder("pcm_s16le", 16_000, 2)
    samples = decoder.push((np.round(channels * 32768)).astype("<i2").tobytes())
    np.testing.assert_allclose(heard, np.concatenate([samples, decoder.finish()]), atol=1e-4)
    assert np.abs(heard).std() > 0.03


def test_a_link_of_an_ogg_whose_channels_cancel_is_heard() -> None:
    """The second recording has two channels, the first has one."""
    both = [hostile.encode(one, "OGG", RATE, "VORBIS") for one in (sound(), np.stack([sound(), -sound()], 1))]
    first, second = np.array_split(decode(b"".join(both), "a").samples, 2)
    assert second.std() > 0.8 * first.std() > 0.05


@pytest.mark.parametrize("name", ["same", "unrelated", "one silent", "wide", "all silent"])
def test_other_channels_are_averaged(name: str) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 0.1, (2, 48_000))
    channels = {
        "same": np.stack([a, a], 1),
        "unrelated": np.stack([a, b], 1),
        "one silent": np.stack([a, 0 * a], 1),
        "wide": np.stack([a + 0.3 * b, a - 0.3 * b], 1),
        "all silent": np.zeros((48_000, 2)),
    }[name].astype(np.float32)
    audio = decode(hostile.encode(channels, "WAV", 16_000, "FLOAT"), "a")
    np.testing.assert_allclose(audio.samples, channels.mean(axis=1), atol=1e-6)
    assert "channels-cancel" not in codes(audio)


def test_mixing_does_not_depend_on_the_size_of_blocks() -> None:
    from app.audio.downmix import Downmix

    channels = np.stack([sound(16_000), -sound(16_000)], 1)
    results = []
    for size in (7, 576, 8_000, 64_000):
        mix = Downmix(2, 16_000)
        parts = [mix.push(channels[at : at + size]) for at in range(0, len(channels), size)]
        results.append(np.concatenate([*parts, mix.finish()]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert cosine(results[0], sound(16_000)) > 0.99


# The clock of the container


def late(container: str, video: str, audio: str, *more: str) -> bytes:
    """A film of which the sound begins 1.5 s after the picture."""
    return ffmpeg(
        *("-f", "lavfi", "-i", "color=black:s=64x48:r=25:d=6", "-itsoffset", "1.5", "-i", "IN.wav"),
        *("-map", "0:v", "-map", "1:a", "-c:v", video, "-c:a", audio, *more, "-f", container),
    )


FILMS = {
    "mp4": ("mp4", "mpeg4", "aac"),
    "mov": ("mov", "mpeg4", "pcm_s16le"),
    "matroska": ("matroska", "mpeg4", "aac"),
    "webm": ("webm", "libvpx", "libopus"),
    "mpegts": ("mpegts", "mpeg2video", "aac"),
    "flv": ("flv", "flv1", "aac", "-ar", "44100"),
    "fragmented mp4": ("mp4", "mpeg4", "aac", "-movflags", "frag_keyframe+empty_moov"),
}


@pytest.mark.parametrize("name", FILMS)
def test_late_sound_of_a_film(name: str) -> None:
    audio = assert_heard(late(*FILMS[name]), SECONDS + 1.5, beep=BEEP + 1.5)
    assert codes(audio) == ["timestamps-jump" if name == "fragmented mp4" else "sound-starts-late"]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("webm", "libopus")])
def test_a_track_alone_that_begins_late(container: str, codec: str) -> None:
    """A browser shows the beep 1.5 s later, too: tests/e2e/browser/test_clock.py."""
    data = ffmpeg("-itsoffset", "1.5", "-i", "IN.wav", "-c:a", codec, "-f", container)
    assert_heard(data, SECONDS + 1.5, beep=BEEP + 1.5)


def test_a_broadcast_begins_at_its_first_packet() -> None:
    """An MPEG transport stream's clock begins anywhere."""
    data = ffmpeg("-c:a", "aac", "-output_ts_offset", "5000", "-f", "mpegts")
    assert codes(assert_heard(data)) == []


def test_an_edit_list_that_cuts_the_beginning() -> None:
    whole = ffmpeg("-c:a", "aac", "-f", "mp4")
    with io.BytesIO(whole):
        cut = ffmpeg("-ss", "1.0", "-i", "IN.wav", "-c:a", "aac", "-f", "mp4")
    assert_heard(cut, SECONDS - 1, beep=BEEP - 1)


PAUSED = "aselect=lt(t\\,1)+gt(t\\,2.5)"


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("webm", "libopus"),
        ("matroska", "aac"),
        ("mp4", "aac"),
        ("mpegts", "aac"),
        ("flv", "aac"),
        ("ogg", "libopus"),
        ("matroska", "pcm_s16le"),
        ("nut", "pcm_s16le"),
    ],
)
def test_silence_stands_for_a_pause(container: str, codec: str) -> None:
    more = ("-ar", "44100") if container == "flv" else ()
    audio = assert_heard(ffmpeg("-af", PAUSED, "-c:a", codec, *more, "-copyts", "-f", container), within=0.1)
    assert codes(audio) == ["timestamps-jump"]
    assert np.abs(audio.samples[int(1.2 * 16_000) : int(2.3 * 16_000)]).max() == 0


def test_a_live_webm_with_a_pause() -> None:
    assert_heard(
        ffmpeg("-af", PAUSED, "-c:a", "libopus", "-copyts", "-live", "1", "-f", "webm", piped=True), within=0.1
    )


def test_a_new_clock_within_a_broadcast_adds_nothing() -> None:
    one = ffmpeg("-c:a", "aac", "-f", "mpegts")
    other = ffmpeg("-c:a", "aac", "-output_ts_offset", "50000", "-f", "mpegts")
    for data in (one + other, other + one):
        assert decode(data, "a").duration == pytest.approx(2 * SECONDS, abs=0.3)


# Placeholders and rounding

PIPED = [
    ("wav", "pcm_s16le"),
    ("wav", "pcm_f32le"),
    ("wav", "adpcm_ima_wav"),
    ("aiff", "pcm_s16be"),
    ("au", "pcm_s16be"),
    ("caf", "pcm_s16be"),
    ("w64", "pcm_s16le"),
    ("asf", "wmav2"),
    ("asf", "wmav1"),
    ("avi", "pcm_s16le"),
    ("flv", "aac"),
    ("matroska", "pcm_s16le"),
    ("webm", "libopus"),
    ("mpegts", "mp2"),
    ("tta", "tta"),
    ("wv", "wavpack"),
]


@pytest.mark.parametrize(("container", "codec"), PIPED)
def test_files_written_to_a_pipe_are_whole(container: str, codec: str) -> None:
    more = ("-ar", "44100") if container == "flv" else ()
    assert_heard(ffmpeg("-c:a", codec, *more, "-f", container, piped=True), within=0.1)


def wav_of(size: int | None = None, riff: int | None = None, behind: bytes = b"") -> bytes:
    data = wav()
    at = data.index(b"data") + 4
    if size is not None:
        data = patched(data, at, struct.pack("<I", size & 0xFFFF_FFFF))
    if riff is not None:
        data = patched(data, 4, struct.pack("<I", riff & 0xFFFF_FFFF))
    return data + behind


BYTES = int(2 * SECONDS * RATE)
SIZES = {
    "all 0": wav_of(0, 0),
    "data 0": wav_of(0),
    "data -1": wav_of(-1, -1),
    "data 0x7fffffff": wav_of(0x7FFF_FFFF),
    "data 0x80000000": wav_of(0x8000_0000),
    "RIFF 0": wav_of(riff=0),
    "header counted, too": wav_of(BYTES + 44),
    "a byte too many": wav_of(BYTES + 1),
    "INFO behind": wav_of(behind=b"LIST\x04\0\0\0INFO"),
    "zeros behind": wav_of(behind=bytes(4000)),
}


@pytest.mark.parametrize("name", SIZES)
def test_wav_sizes(name: str) -> None:
    audio = assert_heard(SIZES[name], within=0.03)
    assert codes(audio) == []


def zeroed(kind: str) -> bytes:
    data = hostile.encode(sound(), kind, RATE, "PCM_16")
    if kind == "AU":
        return patched(data, 8, bytes(4))
    if kind == "AIFF":
        for at in (4, data.index(b"COMM") + 10, data.index(b"SSND") + 4):
            data = patched(data, at, bytes(4))
        return data
    if kind == "RF64":
        return patched(data, 20, bytes(24))
    if kind == "W64":
        return patched(patched(data, 16, bytes(8)), data.index(b"data\xf3\xac") + 16, struct.pack("<Q", 24))
    return patched(data, data.index(b"data\0") + 4, bytes(8))


@pytest.mark.parametrize("kind", ["AU", "AIFF", "RF64", "W64", "CAF"])
def test_sizes_of_0(kind: str) -> None:
    assert_heard(zeroed(kind), within=0.03)


def test_an_empty_wav_is_empty() -> None:
    empty = hostile.encode(np.zeros(0, np.float32), subtype="PCM_16")
    for data in (empty, empty + b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"):
        with pytest.raises(EmptyAudio, match="no samples"):
            decode(data, "a")


def test_bytes_behind_the_declared_audio_are_noted() -> None:
    audio = decode(wav_of(BYTES // 2), "a")
    assert audio.duration == SECONDS / 2 and codes(audio) == ["more-follows"]


# Levels


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "CAF", "AU", "W64"])
@pytest.mark.parametrize("full", [2**15, 2**31])
def test_integers_as_floats_are_brought_to_full_scale(kind: str, full: int) -> None:
    audio = decode(hostile.encode(sound(16_000) * full, kind, 16_000, "FLOAT"), "a")
    np.testing.assert_allclose(audio.samples, sound(16_000), atol=1e-6)
    assert codes(audio) == ["samples-rescaled"]


def test_floats_over_full_scale_are_as_they_are() -> None:
    loud = sound(16_000) * 8
    audio = decode(hostile.encode(loud, "WAV", 16_000, "FLOAT"), "a")
    np.testing.assert_allclose(audio.samples, loud, rtol=1e-6)
    assert codes(audio) == []


def test_quiet_and_silent_files_are_noted() -> None:
    quiet = decode(hostile.encode(sound(16_000) * 1e-3, "WAV", 16_000, "PCM_24"), "a")
    assert [(note.code, note.detail) for note in quiet.notes] == [("very-quiet", "the highest peak is -64 dBFS")]
    assert codes(decode(hostile.encode(np.zeros(16_000)), "a")) == ["silent"]


# Tracks


def two_tracks(container: str, default: int | None, languages: tuple[str, str] = ("deu", "fra")) -> bytes:
    """Two audio tracks, of which only the second has the beep."""
    marks = [] if default is None else ["-disposition:a", "0", f"-disposition:a:{default}", "default"]
    tags = [part for n, code in enumerate(languages) for part in (f"-metadata:s:a:{n}", f"language={code}")]
    quiet = ["-f", "lavfi", "-i", "anoisesrc=a=0.002:r=48000:d=4"]
    maps = ["-map", "0:a", "-map", "1:a"]
    codec = {"mpegts": "mp2", "webm": "libopus"}.get(container, "aac")
    return ffmpeg(*quiet, "-i", "IN.wav", *maps, "-ac", "1", "-c:a", codec, *tags, *marks, "-f", container)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_track_is_chosen_by_number_or_language(container: str) -> None:
    data = two_tracks(container, None)
    first, second = decode(data, "a", track="0"), decode(data, "a", track="1")
    assert np.abs(first.samples).max() < 0.1 < np.abs(second.samples).max()
    assert (second.track.index, second.track.count, second.track.language) == (1, 2, "fra")
    for wish in ("fra", "fr", "FRE", "fr-CA"):
        assert decode(data, "a", track=wish).track.index == 1
    for wish in ("2", "rus", "x"):
        with pytest.raises(TrackMissing, match=r"there are 0 \(deu\), 1 \(fra\)"):
            decode(data, "a", track=wish)


def test_the_default_track_is_read() -> None:
    assert decode(two_tracks("matroska", 1), "a").track.index == 1
    assert decode(two_tracks("matroska", 0), "a").track.index == 0
    assert (
        decode(two_tracks("matroska", None, ("und", "und")), "a").track
        == decode(two_tracks("matroska", None, ("und", "und")), "a", track="0").track
    )


def test_a_file_with_one_track() -> None:
    audio = decode(wav(), "a", track="0")
    assert audio.track.count == 1
    assert decode(wav(), "a", track="en").duration == SECONDS  # it does not say its language
    with pytest.raises(TrackMissing):
        decode(wav(), "a", track="1")
