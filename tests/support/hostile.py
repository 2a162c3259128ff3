"""Files as a hostile or unlucky world sends them, the same ones for the same seed, and what may become of each.

Everything is made here: whole files by libsndfile and FFmpeg, then cut, damaged and rewritten by hand.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
import soundfile

from model.config import SAMPLE_RATE

Expect = Literal["ok", "error", "either"]
SECONDS = 2.0
LIMIT = 14_400.0  # seconds, the service's default limit on duration

UNREADABLE = frozenset({415, 422})
ANY = frozenset({413, 415, 422})

# name → (container, codec) of files that FFmpeg makes
BY_FFMPEG = {
    "m4a": ("mp4", "aac"),
    "alac.m4a": ("mp4", "alac"),
    "webm": ("webm", "libopus"),
    "wma": ("asf", "wmav2"),
    "aac": ("adts", "aac"),
    "mka": ("matroska", "libmp3lame"),
}
BY_LIBSNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}


@dataclass(frozen=True)
class HostileFile:
    """A file. `expect`: "ok" must be decoded, "error" must not, "either" may be any of both.

    statuses: the HTTP statuses that an error may have.
    """

    name: str
    data: bytes
    expect: Expect
    statuses: frozenset[int] = UNREADABLE


def hostile_files(rng: np.random.Generator) -> list[HostileFile]:
    """All of them, more than 200; no name twice."""
    whole = _whole_files(rng)
    files = [
        *(HostileFile(f"whole.{kind}", data, "ok") for kind, data in whole.items()),
        *_not_sound(rng),
        *_cut(whole, rng),
        *_damaged(whole, rng),
        *_lying_headers(whole),
        *_odd_sound(rng),
        *_odd_names(whole["wav"]),
    ]
    assert len({file.name for file in files}) == len(files) >= 200
    return files


def encode(samples: np.ndarray, kind: str = "WAV", rate: int = SAMPLE_RATE, subtype: str | None = None) -> bytes:
    """Samples (n,) or (n, channels) as a file, by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    data = file.getvalue()
    if kind == "OGG":
        return _renumbered(data)
    if (peak := data.find(b"PEAK", 0, 100)) > 0:  # a chunk of float WAVs, with the time of writing
        return data[: peak + 12] + bytes(4) + data[peak + 16 :]
    return data


def encode_av(samples: np.ndarray, rate: int, container: str, codec: str, bit_rate: int = 128_000) -> bytes:
    """Samples (n,) as a stereo file, by FFmpeg."""
    out = io.BytesIO()
    with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate = rate
        stream.bit_rate = bit_rate
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def silent_flac(seconds: float, rate: int, declared: int | None = None) -> bytes:
    """A FLAC of silence in the fewest bytes: 15 for each 65,535 samples.

    declared: the number of samples in its header; by default what there is, 0 for "not known".
    """
    size = 65_535
    count = int(np.ceil(seconds * rate / size))
    total = count * size if declared is None else declared
    info = struct.pack(">HH6xQ16x", size, size, rate << 44 | 15 << 36 | total)
    parts = [b"fLaC\x80" + len(info).to_bytes(3, "big") + info]
    for number in range(count):
        header = b"\xff\xf8\x70\x00" + _coded(number) + (size - 1).to_bytes(2, "big")
        frame = header + bytes([_crc(header, 8, 0x07)]) + b"\0\0\0"  # one constant subframe
        parts.append(frame + _crc(frame, 16, 0x8005).to_bytes(2, "big"))
    return b"".join(parts)


def balloon(megabytes: int) -> bytes:
    """A QuickTime file of a thousandth of the size that its compressed header unfolds to."""
    packed = struct.pack(">I", megabytes << 20) + zlib.compress(bytes(megabytes << 20), 6)
    header = _atom(b"moov", _atom(b"cmov", _atom(b"dcom", b"zlib") + _atom(b"cmvd", packed)))
    return _atom(b"ftyp", b"qt  \0\0\0\0qt  ") + header + _atom(b"mdat", bytes(100))


def _whole_files(rng: np.random.Generator) -> dict[str, bytes]:
    noise = rng.uniform(-0.3, 0.3, int(SECONDS * SAMPLE_RATE)).astype(np.float32)
    whole = {
        kind: encode(noise, container, SAMPLE_RATE, subtype) for kind, (container, subtype) in BY_LIBSNDFILE.items()
    }
    dense = rng.uniform(-0.3, 0.3, int(SECONDS * 48_000)).astype(np.float32)
    for kind, (container, codec) in BY_FFMPEG.items():
        if codec in av.codecs_available:
            whole[kind] = encode_av(dense, 48_000, container, codec)
    return whole


def _not_sound(rng: np.random.Generator) -> Iterator[HostileFile]:
    yield HostileFile("empty.wav", b"", "error", frozenset({422}))
    junk = {
        "letter.wav": b"Dear listener, this is a letter and not a sound.\n" * 50,
        "words.zip": b"PK\x03\x04\x14\0\0\0\x08\0" + rng.bytes(900),
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + rng.bytes(900),
        "paper.pdf": b"%PDF-1.7\n" + rng.bytes(900),
        "program": b"\x7fELF\x02\x01\x01" + rng.bytes(900),
        "zeros.flac": bytes(10_000),
        "ones.mp3": b"\xff" * 10_000,
        "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "list.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
        "list.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
        "captions.srt": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
        "page.html": b"<!doctype html><title>404</title>" * 20,
        "object.json": b'{"audio": null}',
        "one-byte.wav": b"R",
        "unfolds.mov": balloon(16),
    }
    for name, data in junk.items():
        yield HostileFile(name, data, "error")
    for name, magic in {
        "riff.wav": b"RIFF",
        "wave.wav": b"RIFF\x24\0\0\0WAVE",
        "fmt.wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0",
        "form.aiff": b"FORM\0\0\0\x2eAIFF",
        "only.flac": b"fLaC",
        "only.ogg": b"OggS\0\x02" + bytes(20),
        "only.mp3": b"ID3\x04\0\0\0\0\0\0",
        "only.m4a": b"\0\0\0\x20ftypM4A \0\0\0\0",
        "only.webm": b"\x1a\x45\xdf\xa3",
        "only.wma": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
        "only.caf": b"caff\0\1\0\0",
        "only.au": b".snd\0\0\0\x18",
        "only.amr": b"#!AMR\n",
    }.items():
        yield HostileFile(f"magic-{name}", magic, "error")
        yield HostileFile(f"magic-and-noise-{name}", magic + rng.bytes(5000), "either", ANY)


def _cut(whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[HostileFile]:
    """Files that break off. Which of them must be noticed: those whose headers say how long they are."""
    says = {"wav", "aiff", "flac", "mp3", "ogg", "opus", "m4a", "alac.m4a", "webm", "wma"}
    for kind, data in whole.items():
        for part in (0.02, 0.3, 0.5, 0.7):
            expect: Expect = "error" if kind in says else "either"
            yield HostileFile(f"cut-{part}.{kind}", data[: int(part * len(data))], expect)
        for _ in range(3):
            yield HostileFile(f"cut-at-{(at := int(rng.integers(1, len(data))))}.{kind}", data[:at], "either")
        yield HostileFile(f"cut-by-one.{kind}", data[:-1], "either")
        yield HostileFile(f"twice.{kind}", data + data, "either")
        yield HostileFile(f"and-noise.{kind}", data + rng.bytes(3000), "either")


def _damaged(whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[HostileFile]:
    for kind, data in whole.items():
        for number, (first, last, count) in enumerate(
            [(0, 64, 4), (0, 400, 20), (400, len(data), 30), (0, len(data), 200)]
        ):
            damaged = bytearray(data)
            for at in rng.integers(first, min(last, len(data)), count):
                damaged[at] ^= 1 << int(rng.integers(8))
            yield HostileFile(f"bits-{number}.{kind}", bytes(damaged), "either", ANY)
        middle = len(data) // 2
        yield HostileFile(f"hole.{kind}", data[: middle - 2000] + bytes(4000) + data[middle + 2000 :], "either")
        yield HostileFile(f"gap.{kind}", data[: middle - 2000] + data[middle + 2000 :], "either")


def _lying_headers(whole: dict[str, bytes]) -> Iterator[HostileFile]:
    wav, flac, aiff = whole["wav"], whole["flac"], whole["aiff"]

    def patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
        new = struct.pack(layout, *values)
        return data[:at] + new + data[at + len(new) :]

    size = wav.index(b"data") + 4
    bad = frozenset({422})
    yield HostileFile("wav-size-huge.wav", patched(wav, size, "<I", 0x7000_0000), "error", ANY)
    yield HostileFile("wav-size-double.wav", patched(wav, size, "<I", 2 * len(wav)), "error")
    yield HostileFile("wav-size-piped.wav", patched(wav, size, "<I", 0xFFFF_FFFF), "ok")
    yield HostileFile("wav-size-zero.wav", patched(wav, size, "<I", 0), "either")
    yield HostileFile("wav-riff-size-zero.wav", patched(wav, 4, "<I", 0), "either")
    for channels in (0, 3, 255, 65_535):
        yield HostileFile(f"wav-channels-{channels}.wav", patched(wav, 22, "<H", channels), "either", ANY)
    for rate in (0, 1, 999, 768_001, 0x7FFF_FFFF, 0xFFFF_FFFF):
        expect: Expect = "error"
        yield HostileFile(f"wav-rate-{rate}.wav", patched(wav, 24, "<I", rate), expect, ANY)
    for bits in (0, 1, 7, 64, 65_535):
        yield HostileFile(f"wav-bits-{bits}.wav", patched(wav, 34, "<H", bits), "either", ANY)
    for tag in (0, 2, 17, 85, 0x161, 0xFFFE):
        yield HostileFile(f"wav-codec-{tag}.wav", patched(wav, 20, "<H", tag), "either", ANY)
    chunks = b"junk\0\0\0\0" * 200_000
    yield HostileFile("wav-many-chunks.wav", wav[:12] + chunks + wav[12:], "either")
    loop = wav[:36] + b"LIST" + struct.pack("<I", 0xFFFF_FFF8) + wav[36:]
    yield HostileFile("wav-chunk-around-the-world.wav", loop, "either")
    frames = aiff.index(b"COMM") + 10
    yield HostileFile("aiff-frames-huge.aiff", patched(aiff, frames, ">I", 0xFFFF_FFFF), "either", ANY)
    yield HostileFile("aiff-channels-0.aiff", patched(aiff, frames - 2, ">H", 0), "either", ANY)

    def flac_with(rate: int, channels: int, total: int) -> bytes:
        return patched(flac, 18, ">Q", rate << 44 | (channels - 1) << 41 | 15 << 36 | total)

    there = int(SECONDS * SAMPLE_RATE)
    yield HostileFile("flac-total-unknown.flac", flac_with(SAMPLE_RATE, 1, 0), "ok")
    yield HostileFile("flac-total-double.flac", flac_with(SAMPLE_RATE, 1, 2 * there), "error")
    yield HostileFile(
        "flac-total-a-day.flac", flac_with(SAMPLE_RATE, 1, 86_400 * SAMPLE_RATE), "error", frozenset({413})
    )
    yield HostileFile("flac-total-less.flac", flac_with(SAMPLE_RATE, 1, there // 2), "either")
    yield HostileFile("flac-rate-0.flac", flac_with(0, 1, there), "either")
    yield HostileFile("flac-rate-other.flac", flac_with(48_000, 1, there), "either")
    yield HostileFile("flac-channels-8.flac", flac_with(SAMPLE_RATE, 8, there), "either")
    picture = b"\x06" + (0xFF_FFFF).to_bytes(3, "big")
    yield HostileFile("flac-picture-huge.flac", b"fLaC" + picture + flac[4:], "error")
    id3 = b"ID3\x04\0\0" + b"\x7f\x7f\x7f\x7f"
    yield HostileFile("mp3-tag-huge.mp3", id3 + whole["mp3"], "either")
    ogg = whole["ogg"]
    last = ogg.rfind(b"OggS") + 6
    yield HostileFile("ogg-granule-huge.ogg", patched(ogg, last, "<q", 2**62), "either", ANY)
    yield HostileFile("ogg-granule-negative.ogg", patched(ogg, last, "<q", -5), "either", ANY)
    comment = ogg.index(b"\x03vorbis") + 7
    yield HostileFile("ogg-comment-huge.ogg", patched(ogg, comment, "<I", 0xFFFF_FFFF), "either", ANY)
    if "m4a" in whole:
        m4a = whole["m4a"]
        for box in (b"stsz", b"stts", b"stsc", b"stco"):
            at = m4a.index(box) + (12 if box == b"stsz" else 8)
            yield HostileFile(f"m4a-{box.decode()}-huge.m4a", patched(m4a, at, ">I", 0xFFFF_FFF0), "either", ANY)
        duration = m4a.index(b"mdhd") + 20
        yield HostileFile("m4a-duration-huge.m4a", patched(m4a, duration, ">I", 0x7FFF_FFFF), "either", ANY)
    yield HostileFile("wrong-suffix.mp3", wav, "ok")
    yield HostileFile("rf64-in-name.wav", b"RF64" + wav[4:], "either", ANY)
    yield HostileFile("silent-day.flac", silent_flac(86_400, 1_000), "error", frozenset({413}))
    yield HostileFile("too-short-by-header.flac", flac_with(SAMPLE_RATE, 1, 1), "either", bad)


def _odd_sound(rng: np.random.Generator) -> Iterator[HostileFile]:
    bad = frozenset({422})
    for kind, (container, subtype) in BY_LIBSNDFILE.items():
        if kind != "mp3":
            yield HostileFile(f"no-samples.{kind}", encode(np.zeros(0), container, SAMPLE_RATE, subtype), "error")
        if kind not in ("mp3", "opus"):  # those pad
            yield HostileFile(f"one-sample.{kind}", encode(np.zeros(1), container, SAMPLE_RATE, subtype), "error", bad)
    noise = rng.uniform(-0.3, 0.3, SAMPLE_RATE).astype(np.float32)
    for name, value in {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 1e30}.items():
        spoiled = noise.copy()
        spoiled[SAMPLE_RATE // 2] = value
        yield HostileFile(f"{name}.wav", encode(spoiled, subtype="FLOAT"), "error", bad)
        yield HostileFile(f"{name}.w64", encode(spoiled, "W64", subtype="DOUBLE"), "error", bad)
    yield HostileFile("all-nan.wav", encode(np.full(SAMPLE_RATE, np.nan, np.float32), subtype="FLOAT"), "error", bad)
    yield HostileFile("loud.wav", encode(noise * 1e5, subtype="FLOAT"), "ok")
    yield HostileFile("denormal.wav", encode(noise * np.float32(1e-40), subtype="FLOAT"), "ok")
    yield HostileFile("silence.wav", encode(np.zeros(SAMPLE_RATE)), "ok")
    yield HostileFile("constant.wav", encode(np.full(SAMPLE_RATE, 0.999)), "ok")
    eight = rng.uniform(-0.3, 0.3, (192_000, 8)).astype(np.float32)
    yield HostileFile("eight-channels.wav", encode(eight, rate=192_000), "ok")
    yield HostileFile("eight-channels.flac", encode(eight, "FLAC", 192_000), "ok")
    yield HostileFile("many-channels.wav", encode(np.zeros((SAMPLE_RATE // 4, 255), np.float32)), "ok")
    yield HostileFile("slow.wav", encode(noise, rate=1_000), "ok")
    yield HostileFile("quick.wav", encode(noise, rate=192_000), "ok")
    yield HostileFile("too-slow.wav", encode(noise, rate=999), "error", bad)
    yield HostileFile("too-quick.wav", encode(noise, rate=768_001), "error", bad)
    yield HostileFile("silent-minute.flac", silent_flac(60, 8_000), "ok")


def _odd_names(wav: bytes) -> Iterator[HostileFile]:
    for name in (
        "狗叫声.wav",
        "صوت الكلب.wav",
        "a/b\\c.wav",
        "../../../etc/passwd",
        "say \"hi\" 'there'.wav",
        "two\nlines\r\n.wav",
        "tab\tand\x1b[31mred.wav",
        "x" * 300 + ".wav",
        "%00%0a%s%n.wav",
        "; rm -rf ~ #.wav",
        "<script>alert(1)</script>.wav",
        "-p.wav",
        "e\u0301\u202e🐕.wav",
        "CON",
        ".wav",
    ):
        yield HostileFile(name, wav, "ok")


def _renumbered(ogg: bytes) -> bytes:
    """The same Ogg file with a serial number that is not random."""
    pages = []
    while ogg:
        segments = ogg[26]
        end = 27 + segments + sum(ogg[27 : 27 + segments])
        page = ogg[:14] + b"\1\0\0\0" + ogg[18:22] + bytes(4) + ogg[26:end]
        pages.append(page[:22] + _crc(page, 32, 0x04C1_1DB7).to_bytes(4, "little") + page[26:])
        ogg = ogg[end:]
    return b"".join(pages)


def _atom(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """The checksums of FLAC and Ogg, bit by bit."""
    crc, top = 0, 1 << (bits - 1)
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & (2 * top - 1)
    return crc


def _coded(number: int) -> bytes:
    """A frame's number as FLAC writes it: like a character in UTF-8."""
    return chr(number).encode("utf-8", "surrogatepass")
