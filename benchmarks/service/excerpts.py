"""Excerpts a second of a ten-hour recording: random seconds, cut by the service's decoder processes.

    python -m benchmarks.service.excerpts [--excerpts 200] [--hours 10] [--at-once 4]

The recording is a 24-bit stereo WAV file at 96 kHz that takes no space on the disk: a header and a hole.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from app.decoding.pool import DecoderPool

RATE, CHANNELS, BYTES = 96_000, 2, 3


def write_recording(path: Path, hours: float) -> int:
    """Writes the recording and returns its number of frames."""
    frames = int(hours * 3600 * RATE)
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, "PCM_24", format="RF64") as file:
        file.write(np.zeros((100, CHANNELS)))
    short, size = 100 * CHANNELS * BYTES, frames * CHANNELS * BYTES
    head = path.read_bytes()[:-short].replace(short.to_bytes(8, "little"), size.to_bytes(8, "little"))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return frames


async def cut(pool: DecoderPool, path: Path, options: dict[str, Any]) -> int:
    """Cuts one excerpt and returns its bytes."""
    async with pool.open_excerpt(path, path.name, options, 1e6) as stream:
        return sum([len(piece) async for piece in stream])


async def measure(path: Path, frames: int, format: str, count: int, at_once: int) -> float:
    """Excerpts of a second per second."""
    pool = DecoderPool(workers=at_once)
    await pool.start()
    permits, places = asyncio.Semaphore(at_once), random.Random(1)

    async def one() -> None:
        start = places.randrange(frames - RATE)
        async with permits:
            options = {"start": start, "stop": start + RATE, "total": frames, "format": format, "fade": 0.005}
            assert await cut(pool, path, options) > 0

    await asyncio.gather(*(one() for _ in range(at_once)))  # starts the processes
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.perf_counter() - began
    await pool.close()
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--excerpts", type=int, default=200)
    parser.add_argument("--hours", type=float, default=10)
    parser.add_argument("--at-once", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.wav"
        frames = write_recording(path, args.hours)
        print(f"{args.hours:g} h, {path.stat().st_size / 1e9:.1f} GB")
        for format in ("wav", "flac", "ogg"):
            rate = asyncio.run(measure(path, frames, format, args.excerpts, args.at_once))
            print(f"{format:5}{rate:8.0f} excerpts/s")


if __name__ == "__main__":
    main()
