"""The commands that need no server: detect and embed on this machine, through the same engine as the service.

Knows files, decoders and engine; no HTTP. Numbers are the service's: same decoding, same windows, same rounding. A
recording is heard while it is decoded, so hours of it need no more memory than minutes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from app.audio.errors import MediaError
from app.audio.peaks import Envelope
from app.cli.upload import as_text, find_sources
from app.client.types import DetectionMessage, detection_message
from app.decoding.pool import DecoderPool
from app.inference.engine import Engine, load_model
from app.services.audio_source import FileEmbeddingStream
from app.services.detection import DetectionRequest, DetectionResult, Detector, EventReporter, plot
from app.settings import Settings
from model.finelap import FineLAP

R = TypeVar("R")
Embedded = tuple[str, float, np.ndarray, np.ndarray | None]  # name, seconds, clip (D,), frames (T, D) if wanted

_TOGETHER = 8  # files heard at once
_QUEUE = 1 << 20  # windows; the queue is our own, so nothing is refused
_ENDLESS = float("inf")  # seconds a recording may have


def detect_file(
    settings: Settings,
    file: Path,
    request: DetectionRequest,
    take: Callable[[DetectionMessage], None],
    plot_file: Path | None,
) -> None:
    """Hands `take` the messages that `POST /detect` would stream, and writes the plot to `plot_file` if that is given.

    Raises MediaError, CheckpointError, OSError.
    """
    name = as_text(file.name)
    file.open("rb").close()  # a wrong name fails now, not after the model is loaded
    model = load_model(settings)
    envelope = None if plot_file is None else Envelope()

    def report(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            message = detection_message(line)
            if message is not None:
                take(message)

    async def detect(engine: Engine, decoders: DecoderPool) -> DetectionResult:
        texts = await engine.embed_texts(request.phrases)
        async with (
            decoders.open(file, name, _ENDLESS) as audio,
            FileEmbeddingStream(engine, audio, name, sink=envelope) as stream,
        ):
            detector, reporter = Detector(engine, request, texts), EventReporter(request, stream)
            report([reporter.start()])
            async for frames in stream:
                report(reporter.push(detector.push(frames)))
            report(reporter.finish())
            result = detector.finish(stream, reporter.events)
            report(reporter.end(result))
            return result

    result = with_engine(model, detect)
    if plot_file is not None and envelope is not None:
        plot_file.write_bytes(plot(result, envelope.levels(), request))


def embed_files(settings: Settings, files: list[Path], output: Path, frames: bool) -> int:
    """Writes embeddings of all files that can be read to an .npz; names the others. Returns the exit code.

    Arrays, N files: `filenames` (N,), `durations` (N,) in seconds, `clips` (N, D); with `frames` also `frames`
    (sum of T, D), file i's from `frame_offsets[i]` to `frame_offsets[i + 1]`, and `frame_hop` in seconds; `model` and
    `stamp` name the embedding space. No pickles inside.
    """
    failed: list[str] = []
    sources = [
        source.path
        for source in find_sources(
            files, {}, lambda error: failed.append(f"{as_text(str(error.filename))}: {error.strerror}")
        )
    ]
    model = load_model(settings)

    async def embed(engine: Engine, decoders: DecoderPool) -> list[Embedded | None]:
        places = asyncio.Semaphore(_TOGETHER)
        with tqdm(total=len(sources), desc="embedding", unit="file", miniters=0) as bar:
            heard = 0.0

            def count(seconds: float) -> None:
                nonlocal heard
                heard += seconds
                bar.set_postfix_str(f"{heard:.0f} s of sound", refresh=False)
                bar.update(0)  # a long file shows that it goes on

            async def one(path: Path) -> Embedded | None:
                async with places:
                    try:
                        return await _embed(engine, decoders, path, frames, count)
                    except MediaError as error:
                        failed.append(f"{as_text(str(path))}: {error.why}")
                    except OSError as error:
                        failed.append(f"{as_text(str(path))}: {error.strerror}")
                    finally:
                        bar.update()
                    return None

            return await asyncio.gather(*(one(path) for path in sources))

    done = [result for result in with_engine(model, embed) if result is not None]
    for line in failed:
        print(line, file=sys.stderr)
    if not done:
        print("nothing to write", file=sys.stderr)
        return 1
    arrays: dict[str, Any] = {
        "filenames": np.array([name for name, _, _, _ in done]),
        "durations": np.array([duration for _, duration, _, _ in done]),
        "clips": np.stack([clip for _, _, clip, _ in done]),
        "model": np.array(model.name),
        "stamp": np.array(model.stamp),
    }
    if frames:
        tracks = [track for _, _, _, track in done if track is not None]
        arrays["frames"] = np.concatenate(tracks)
        arrays["frame_offsets"] = np.cumsum([0] + [len(track) for track in tracks])
        arrays["frame_hop"] = np.array(model.frame_hop)
    with output.open("wb") as out:  # a name without .npz stays as it is
        np.savez(out, **arrays)
    print(f"{len(done)} files, {model.dim} dimensions → {output}")
    return 1 if failed else 0


async def _embed(
    engine: Engine, decoders: DecoderPool, path: Path, keep: bool, count: Callable[[float], None]
) -> Embedded:
    """One file; its frames are kept only if that is wanted."""
    name = as_text(path.name)
    parts: list[np.ndarray] = []
    async with decoders.open(path, name, _ENDLESS) as audio, FileEmbeddingStream(engine, audio, name) as stream:
        async for part in stream:
            count(len(part) * stream.frame_hop)
            if keep:
                parts.append(part)
        return name, stream.duration, stream.embedding, np.concatenate(parts) if keep else None


def with_engine(model: FineLAP, work: Callable[[Engine, DecoderPool], Coroutine[Any, Any, R]]) -> R:
    """What `work` returns, in an event loop with an engine around the model and decoders, started and closed."""

    async def run() -> R:
        engine, decoders = Engine(model, max_queue_windows=_QUEUE), DecoderPool()
        await decoders.start()
        try:
            await engine.start()
            try:
                return await work(engine, decoders)
            finally:
                await engine.close()
        finally:
            await decoders.close()

    return asyncio.run(run())
