"""Decodes some 300 made files of every codec, container, sample rate, layout and odd header, and compares with FFmpeg.

    python -m benchmarks.service.corpus            prints each file that differs, and a summary
    python -m benchmarks.service.corpus --check    fails if a file loses more than 50 ms without a note, or is refused

The reference is the program `ffmpeg`, which plays each file to its end; files that libsndfile reads are decoded by it,
too, and the levels compared. A made file is 2 s of noise with a tone. What this ffmpeg cannot write is left out.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from app.audio.decode import DecodedAudio, MediaError, decode

SECONDS = 2.0
ALLOWED = 0.05  # seconds that may be lost without a note
LOSSLESS = 0.999  # correlation of libsndfile's samples with ours

_PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw")
_PCM_BE = ("pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be", "pcm_alaw", "pcm_mulaw")
# container → codecs
_CODECS: dict[str, tuple[str, ...]] = {
    "wav": (
        *_PCM,
        "adpcm_ms",
        "adpcm_ima_wav",
        "adpcm_yamaha",
        "libmp3lame",
        "mp2",
        "ac3",
        "aac",
        "wmav2",
        "flac",
        "dca",
    ),
    "rf64": ("pcm_s16le", "pcm_s24le"),
    "w64": ("pcm_s16le", "pcm_s24le", "pcm_f32le"),
    "aiff": _PCM_BE,
    "caf": (*_PCM_BE[1:], "alac", "aac", "pcm_s16le", "libopus", "flac"),
    "au": ("pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_mulaw"),
    "voc": ("pcm_u8", "pcm_s16le"),
    "flac": ("flac",),
    "ogg": ("libvorbis", "libopus", "flac", "libspeex"),
    "mp3": ("libmp3lame",),
    "mp2": ("mp2",),
    "adts": ("aac",),
    "latm": ("aac",),
    "ac3": ("ac3",),
    "eac3": ("eac3",),
    "dts": ("dca",),
    "truehd": ("truehd",),
    "mlp": ("mlp",),
    "mp4": ("aac", "alac", "libmp3lame", "mp2", "ac3", "eac3", "libopus", "flac"),
    "mov": ("aac", "alac", "pcm_s16le", "pcm_s24be", "pcm_f32le", "pcm_mulaw", "adpcm_ima_qt", "libmp3lame"),
    "ipod": ("aac", "alac"),
    "3gp": ("aac", "libopencore_amrnb"),
    "matroska": (
        "aac",
        "libvorbis",
        "libopus",
        "flac",
        "libmp3lame",
        "ac3",
        "pcm_s16le",
        "pcm_f32le",
        "wavpack",
        "tta",
        "dca",
    ),
    "webm": ("libopus", "libvorbis"),
    "avi": ("pcm_s16le", "libmp3lame", "mp2", "ac3", "aac", "adpcm_ms", "flac"),
    "asf": ("wmav1", "wmav2", "libmp3lame", "pcm_s16le"),
    "flv": ("libmp3lame", "aac", "pcm_s16le", "nellymoser"),
    "mpegts": ("aac", "mp2", "libmp3lame", "ac3", "eac3", "libopus"),
    "mpeg": ("mp2", "libmp3lame", "ac3"),
    "dvd": ("mp2", "ac3"),
    "nut": ("pcm_s16le", "libvorbis", "flac"),
    "mxf": ("pcm_s16le", "pcm_s24le"),
    "gxf": ("pcm_s16le",),
    "wv": ("wavpack",),
    "tta": ("tta",),
    "rm": ("real_144", "ac3"),
    "oma": ("pcm_s16be",),
    "sox": ("pcm_s32le",),
    "ircam": ("pcm_s16le", "pcm_f32le"),
    "ast": ("pcm_s16be_planar", "pcm_s16be"),
    "adx": ("adpcm_adx",),
    "amr": ("libopencore_amrnb",),
    "wtv": ("mp2", "ac3"),
}
_RATES = ("8000", "11025", "22050", "32000", "44100", "48000", "96000")
_LAYOUTS = ("mono", "stereo", "2.1", "quad", "5.1", "7.1")
_WIDE = ("wav pcm_s16le", "flac flac", "ogg libvorbis", "ogg libopus", "mp4 aac", "matroska flac", "caf pcm_s24be")
_PIPED = (
    "wav",
    "aiff",
    "caf",
    "au",
    "w64",
    "flac",
    "ogg",
    "mp3",
    "asf",
    "avi",
    "flv",
    "matroska",
    "webm",
    "mpegts",
    "tta",
    "wv",
)


@dataclass(frozen=True)
class Recipe:
    """A file: ffmpeg's muxer and options. `piped`: written to a pipe; `odd`: changed by `_changed` afterwards."""

    container: str
    codec: str
    options: tuple[str, ...] = ()
    piped: bool = False
    odd: str = ""

    @property
    def name(self) -> str:
        return " ".join(
            [self.container, self.codec, *self.options, *(["piped"] if self.piped else []), self.odd]
        ).strip()


def recipes() -> Iterator[Recipe]:
    """All of them."""
    for container, codecs in _CODECS.items():
        for codec in codecs:
            yield Recipe(container, codec, _usual(container, codec))
    for pair, rate in itertools.product(_WIDE, _RATES):
        yield Recipe(*pair.split(), ("-ar", rate, "-ac", "1"))
    for pair, layout in itertools.product(_WIDE, _LAYOUTS):
        yield Recipe(*pair.split(), ("-channel_layout", layout, "-ac", str(_channels(layout))))
    for container in _PIPED:
        yield Recipe(container, _CODECS[container][0], _usual(container, _CODECS[container][0]), piped=True)
    for codec, bits in (
        ("libmp3lame", ("32k", "64k", "128k", "320k")),
        ("libopus", ("8k", "24k", "128k")),
        ("aac", ("32k", "192k")),
    ):
        for rate in bits:
            yield Recipe(
                {"libmp3lame": "mp3", "libopus": "ogg", "aac": "ipod"}[codec], codec, ("-b:a", rate, "-ac", "1")
            )
    for quality in ("0", "4", "9"):
        yield Recipe("mp3", "libmp3lame", ("-q:a", quality))
        yield Recipe("mp3", "libmp3lame", ("-q:a", quality, "-write_xing", "0"))
    for odd in ("id3 before", "id3v1 behind", "zeros behind", "twice"):
        for container, codec in (
            ("mp3", "libmp3lame"),
            ("adts", "aac"),
            ("flac", "flac"),
            ("ac3", "ac3"),
            ("mp2", "mp2"),
        ):
            if odd != "twice" or container != "flac":
                yield Recipe(container, codec, odd=odd)
    for codec in ("libvorbis", "libopus", "flac", "libspeex"):
        yield Recipe("ogg", codec, _usual("ogg", codec), odd="twice")
    for odd in ("size 0", "size -1", "size huge", "riff 0", "header counted", "list behind"):
        yield Recipe("wav", "pcm_s16le", odd=odd)
    for container in ("mp4", "mov"):
        yield Recipe(container, "aac", ("-movflags", "frag_keyframe+empty_moov"))
        yield Recipe(container, "aac", ("-movflags", "faststart"))
    for container, codec in (
        ("mp4", "aac"),
        ("matroska", "aac"),
        ("webm", "libopus"),
        ("mpegts", "aac"),
        ("flv", "aac"),
    ):
        yield Recipe(container, codec, (*_usual(container, codec), "-af", "aselect=lt(t\\,0.5)+gt(t\\,1)", "-copyts"))


def _usual(container: str, codec: str) -> tuple[str, ...]:
    if "amr" in codec or codec == "real_144":
        return ("-ar", "8000", "-ac", "1")
    if container in ("flv", "wtv"):
        return ("-ar", "44100", *(("-ac", "1") if codec == "nellymoser" else ()))
    if codec == "libspeex":
        return ("-ar", "16000", "-ac", "1")
    return ("-ar", "48000") if container in ("mxf", "gxf", "dvd", "mpeg") else ()


def _channels(layout: str) -> int:
    return {"mono": 1, "stereo": 2, "2.1": 3, "quad": 4, "5.1": 6, "7.1": 8}[layout]


def _changed(data: bytes, odd: str) -> bytes:
    at = data.find(b"data") + 4
    size = int.from_bytes(data[at : at + 4], "little")

    def sized(value: int) -> bytes:
        return data[:at] + (value & 0xFFFF_FFFF).to_bytes(4, "little") + data[at + 4 :]

    match odd:
        case "id3 before":
            return b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + data
        case "id3v1 behind":
            return data + b"TAG" + bytes(125)
        case "zeros behind":
            return data + bytes(6000)
        case "twice":
            return data + data
        case "size 0":
            return sized(0)
        case "size -1":
            return sized(-1)
        case "size huge":
            return sized(0x7FFF_FFF0)
        case "riff 0":
            return data[:4] + bytes(4) + data[8:]
        case "header counted":
            return sized(size + 44)
        case "list behind":
            return data + b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"
    return data


class Maker:
    """Makes files in `folder` with the program ffmpeg."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._source = folder, folder / "source.wav"
        rng = np.random.default_rng(300)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(SECONDS * 48_000)) / 48_000)
        soundfile.write(self._source, tone + rng.normal(0, 0.02, len(tone)), 48_000, subtype="PCM_24")

    def make(self, recipe: Recipe) -> bytes | None:
        """The file; None if this ffmpeg cannot write it."""
        muxer = {"rf64": "wav"}.get(recipe.container, recipe.container)
        extra = ("-rf64", "always") if recipe.container == "rf64" else ()
        target = self._folder / f"{abs(hash(recipe))}.file"
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", str(self._source), *recipe.options, *extra]
        command += ["-strict", "-2", "-c:a", recipe.codec, "-f", muxer, "pipe:1" if recipe.piped else str(target)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            return None
        data = done.stdout if recipe.piped else target.read_bytes()
        target.unlink(missing_ok=True)
        return _changed(data, recipe.odd)

    def played(self, data: bytes, recipe: Recipe) -> float:
        """Seconds that the program ffmpeg decodes; 0 if it cannot open the file."""
        path = self._folder / f"{abs(hash(recipe))}.played"
        path.write_bytes(data)
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", "0:a:0"]
        done = subprocess.run(
            [*command, "-f", "s16le", "-ac", "1", "-ar", "16000", "pipe:1"], capture_output=True, check=False
        )
        path.unlink()
        return len(done.stdout) / 32_000


@dataclass(frozen=True)
class Outcome:
    """What became of a file: seconds that ffmpeg plays and that are heard, and the problem if there is one."""

    recipe: Recipe
    played: float = 0.0
    heard: float = 0.0
    notes: tuple[str, ...] = ()
    problem: str = ""


def judge(maker: Maker, recipe: Recipe) -> Outcome | None:
    """Makes and decodes one file; None if it cannot be made."""
    data = maker.make(recipe)
    if not data:
        return None
    played = maker.played(data, recipe)
    try:
        audio = decode(data, "file")
    except MediaError as error:
        return Outcome(recipe, played, problem=f"refused: {error.why}" if played >= ALLOWED else "")
    notes = tuple(note.code for note in audio.notes)
    lost = played - audio.duration
    problem = f"lost {lost:.3f} s" if lost > ALLOWED and not notes else _differs(data, audio)
    return Outcome(recipe, played, audio.duration, notes, problem)


def _differs(data: bytes, audio: DecodedAudio) -> str:
    """How libsndfile's samples differ from ours, where it reads as much of the file."""
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, ValueError, MemoryError):  # also LibsndfileError; a FLAC from a pipe has no length for it
        return ""
    if rate != audio.sample_rate or rate % 16_000 or abs(len(samples) / rate - audio.duration) > 0.001:
        return ""
    mine, theirs = np.abs(audio.samples), samples.mean(axis=1)[:: rate // 16_000]
    n = min(len(mine), len(theirs))
    power = float(np.sqrt(np.mean(theirs[:n] ** 2))), float(np.sqrt(np.mean(mine[:n] ** 2)))
    return (
        f"libsndfile's level is {power[0]:.4f}, ours {power[1]:.4f}"
        if abs(power[0] - power[1]) > 0.05 * power[0]
        else ""
    )


def run(workers: int) -> list[Outcome]:
    """The outcomes of all files that can be made."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as threads:
        maker = Maker(Path(folder))
        found = threads.map(lambda recipe: judge(maker, recipe), dict.fromkeys(recipes()))
        return [outcome for outcome in found if outcome is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a file has a problem")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    options = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        print("the program ffmpeg is not installed", file=sys.stderr)
        return 2
    outcomes = run(options.workers)
    for outcome in outcomes:
        if outcome.problem:
            print(f"{outcome.recipe.name}: {outcome.problem} (ffmpeg plays {outcome.played:.3f} s)")
    heard = [outcome for outcome in outcomes if outcome.heard]
    shorter = [outcome.played - outcome.heard for outcome in heard if not outcome.notes]
    print(f"{len(outcomes)} files, {len(heard)} heard, {len(outcomes) - len(heard)} refused")
    print(f"shorter than ffmpeg plays them, without a note: {max(shorter) * 1000:.0f} ms at most")
    print("notes:", dict(Counter(code for outcome in heard for code in outcome.notes)))
    return 1 if options.check and any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
