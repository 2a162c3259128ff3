"""Measures the decoding speed and the embedding error of each sound format, for the table in docs/reference/formats.md.

    python -m benchmarks.service.formats [--check]

Converts one demo sound with ffmpeg and sox (both must be installed), decodes the files in this process and through the
isolated decoders, and compares their embeddings with that of the WAV. Times are processor times, which other load
affects little. With `--check` the exit code is 1 if a cosine is below its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import soundfile

from app.audio.decode import decode, open_stream
from app.decoding.pool import DecoderPool
from model.config import SAMPLE_RATE
from model.finelap import FineLAP

_LONG = 300.0  # seconds, of the timed files, which repeat the sound
_RUNS = 2  # the fastest counts
LOSSLESS, LOSSY = 0.9999, 0.98  # lowest acceptable cosine to the WAV's clip embedding


@dataclass(frozen=True)
class Format:
    """A format: the ffmpeg options that produce it, and the lowest acceptable cosine of its embedding."""

    name: str
    suffix: str
    options: tuple[str, ...]
    bound: float
    film: bool = False


FORMATS = (
    Format("WAV, 16 bit", "wav", ("-c:a", "pcm_s16le"), LOSSLESS),
    Format("WAV, 24 bit, by sox", "wav", ("sox", "-b", "24"), LOSSLESS),
    Format("AIFF", "aiff", ("-c:a", "pcm_s16be"), LOSSLESS),
    Format("FLAC", "flac", ("-c:a", "flac"), LOSSLESS),
    Format("ALAC (m4a)", "m4a", ("-c:a", "alac"), LOSSLESS),
    Format("Ogg Vorbis, q 4", "ogg", ("-c:a", "libvorbis", "-q:a", "4"), LOSSY),
    Format("Opus, 64 kbit/s", "opus", ("-c:a", "libopus", "-b:a", "64k"), LOSSY),
    Format("MP3, 128 kbit/s", "mp3", ("-c:a", "libmp3lame", "-b:a", "128k"), LOSSY),
    Format("AAC (m4a), 128 kbit/s", "m4a", ("-c:a", "aac", "-b:a", "128k"), LOSSY),
    Format("WebM (Opus), 64 kbit/s", "webm", ("-c:a", "libopus", "-b:a", "64k"), LOSSY),
    Format("WMA 2, 128 kbit/s", "wma", ("-c:a", "wmav2", "-b:a", "128k"), LOSSY),
    Format("MP4 film (H.264, AAC)", "mp4", ("-c:v", "libx264", "-c:a", "aac", "-b:a", "128k"), LOSSY, film=True),
)


def make(form: Format, wav: Path, out: Path) -> None:
    """Converts `wav` to another format. Raises CalledProcessError."""
    if form.options[0] == "sox":
        command = ["sox", str(wav), *form.options[1:], str(out)]
    else:
        film = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=5", "-shortest") if form.film else ()
        command = ["ffmpeg", "-v", "error", "-y", "-i", str(wav), *film, *form.options, str(out)]
    subprocess.run(command, check=True)


def decoder_of(path: Path) -> str:
    """The library that decodes the file."""
    try:
        soundfile.info(path)
    except soundfile.LibsndfileError:
        return "FFmpeg"
    return "libsndfile"


def seconds_here(path: Path) -> float:
    """Processor seconds to decode a file in this process."""
    began = time.thread_time()
    with path.open("rb") as file, open_stream(file, path.name) as stream:
        for _ in stream:
            pass
    return time.thread_time() - began


async def seconds_isolated(pool: DecoderPool, path: Path) -> float:
    """Processor seconds of all processes to decode a file through the isolated decoders."""
    began = _cpu_seconds()
    async with pool.open(path, path.name) as stream:
        async for _ in stream:
            pass
    return _cpu_seconds() - began


def _cpu_seconds() -> float:
    workers = (process.cpu_times() for process in psutil.Process().children(recursive=True))
    return time.process_time() + sum(times.user + times.system for times in workers)


async def measure(sound: Path, checkpoint: str, folder: Path) -> list[tuple[Format, str, float, float, float]]:
    """A row per format: the format, decoder, cosine, × real time in this process and isolated."""
    samples, rate = soundfile.read(sound, dtype="float32")
    short, long = folder / "short.wav", folder / "long.wav"
    soundfile.write(short, samples, rate, subtype="PCM_16")
    times = int(np.ceil(_LONG * rate / len(samples)))
    soundfile.write(long, np.concatenate([samples] * times)[: int(_LONG * rate)], rate, subtype="PCM_16")
    model = FineLAP.from_pretrained(checkpoint)

    def embed(path: Path) -> np.ndarray:
        samples = decode(io.BytesIO(path.read_bytes()), path.name).samples
        return model.encode_audio([samples], SAMPLE_RATE)[0].clip.numpy()

    reference = embed(short)
    rows = []
    pool = DecoderPool(workers=1)
    await pool.start()
    for number, form in enumerate(FORMATS):
        file, timed = (folder / f"{kind}{number}.{form.suffix}" for kind in ("short", "long"))
        make(form, short, file)
        make(form, long, timed)
        cosine = float(reference @ embed(file))
        here, isolated = [], []
        for _ in range(_RUNS):  # alternating, so that other load affects both equally
            here.append(await asyncio.to_thread(seconds_here, timed))
            isolated.append(await seconds_isolated(pool, timed))
        rows.append((form, decoder_of(file), cosine, _LONG / min(here), _LONG / min(isolated)))
        timed.unlink()
    await pool.close()
    return rows


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=Path, default=Path("demo/sounds/rain-9a5405.ogg"))
    parser.add_argument("--checkpoint", default="checkpoints/finelap-small")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a cosine is below its bound")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(arguments.sound, arguments.checkpoint, Path(folder)))
    print("| format | decoded by | cosine to the WAV | × real time | isolated |\n|---|---|---|---|---|")
    for form, decoder, cosine, here, isolated in rows:
        print(f"| {form.name} | {decoder} | {cosine:.4f} | {here:,.0f} | {isolated:,.0f} ({here / isolated:.2f}) |")
    failed = [form.name for form, _, cosine, _, _ in rows if cosine < form.bound]
    if failed:
        print("below the bound:", ", ".join(failed), file=sys.stderr)
    return 1 if failed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
