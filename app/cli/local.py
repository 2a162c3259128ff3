"""The commands that need no server: detect and embed, through the same engine as the service.

Decoding, windows and rounding are the service's, so results are equal. A recording is analysed while it is decoded,
so memory does not grow with its length.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from app.audio.errors import MediaError
from app.audio.peaks import WaveformPeaks
from app.cli.upload import as_text, find_sources
from app.client.types import DetectionMessage, detection_message
from app.decoding.pool import DecoderPool
from app.inference.engine import Engine, load_model
from app.services.audio_source import FileEmbeddingStream, require_frames
from app.services.detection import DetectionRequest, DetectionResult, Detector, EventReporter, plot
from app.services.phrases import embed_phrases
from app.settings import Settings
from model.external.contract import Model
from model.segments import unit_rows

R = TypeVar("R")

_PARALLEL_FILES = 8
_QUEUE = 1 << 20  # windows; this process is the only caller, so the queue never rejects
_UNLIMITED = float("inf")  # seconds a recording may have


@dataclass(frozen=True)
class _Embedding:
    """The embedding of one file: `duration` in seconds, `clip` (D,), and `frames` (T, D) if requested."""

    filename: str
    duration: float
    clip: np.ndarray
    frames: np.ndarray | None


def detect_file(
    settings: Settings,
    file: Path,
    request: DetectionRequest,
    write: Callable[[DetectionMessage], None],
    plot_file: Path | None,
    track: str | None = None,
) -> None:
    """Passes the messages that `POST /detect` would stream to `write`, and saves a plot to `plot_file` if given.

    Raises MediaError, CheckpointError, OSError.
    """
    name = as_text(file.name)
    file.open("rb").close()  # report an unreadable file before loading the model
    model = load_model(settings)
    envelope = None if plot_file is None else WaveformPeaks()

    def report(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            message = detection_message(line)
            if message is not None:
                write(message)

    async def detect(engine: Engine, decoders: DecoderPool) -> DetectionResult:
        require_frames(engine, "Detection")
        phrases = await embed_phrases(engine, request.phrases)
        async with (
            decoders.open(file, name, _UNLIMITED, track, engine.sample_rate) as audio,
            FileEmbeddingStream(engine, audio, name, sink=envelope) as stream,
        ):
            detector, reporter = Detector(request, phrases), EventReporter(request, stream)
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


def embed_files(settings: Settings, files: list[Path], output: Path, frames: bool, track: str | None = None) -> int:
    """Writes the embeddings of all readable files to an .npz and prints the errors of the others.

    Arrays, for N files: `filenames` (N,), `durations` (N,) in seconds, `clips` (N, D); with `frames` also `frames`
    (sum of T, D), where file i has the rows from `frame_offsets[i]` to `frame_offsets[i + 1]`, and `frame_hop` in
    seconds. `model` and `stamp` name the embedding space. The file contains no pickles. Returns the exit code.
    """
    failed: list[str] = []

    def report(error: OSError) -> None:
        failed.append(f"{as_text(str(error.filename))}: {error.strerror}")

    paths = [source.path for source in find_sources(files, {}, report)]
    model = load_model(settings)

    async def embed(engine: Engine, decoders: DecoderPool) -> list[_Embedding]:
        if frames:
            require_frames(engine, "--frames")
        return await _Embedder(engine, decoders, frames, failed, track).run(paths)

    embeddings = with_engine(model, embed)
    for line in failed:
        print(line, file=sys.stderr)
    if not embeddings:
        print("nothing to write", file=sys.stderr)
        return 1
    with output.open("wb") as out:  # an open file, because savez appends .npz to a path
        np.savez(out, **_arrays(model, embeddings, frames))
    print(f"{len(embeddings)} files, {model.dim} dimensions → {output}")
    return 1 if failed else 0


class _Embedder:
    """Embeds several files at a time behind one progress bar; adds a line to `failed` for each that fails."""

    def __init__(
        self, engine: Engine, decoders: DecoderPool, frames: bool, failed: list[str], track: str | None = None
    ) -> None:
        self._engine, self._decoders, self._frames, self._failed = engine, decoders, frames, failed
        self._track = track
        self._slots = asyncio.Semaphore(_PARALLEL_FILES)
        self._seconds = 0.0

    async def run(self, paths: list[Path]) -> list[_Embedding]:
        """The embeddings of the files that succeed, in order."""
        with tqdm(total=len(paths), desc="embedding", unit="file", miniters=0) as bar:
            results = await asyncio.gather(*(self._try(path, bar) for path in paths))
        return [result for result in results if result is not None]

    async def _try(self, path: Path, bar: tqdm[Any]) -> _Embedding | None:
        async with self._slots:
            try:
                return await self._embed(path, bar)
            except MediaError as error:
                self._failed.append(f"{as_text(str(path))}: {error.why}")
            except OSError as error:
                self._failed.append(f"{as_text(str(path))}: {error.strerror}")
            finally:
                bar.update()
            return None

    async def _embed(self, path: Path, bar: tqdm[Any]) -> _Embedding:
        name = as_text(path.name)
        parts: list[np.ndarray] = []
        async with (
            self._decoders.open(path, name, _UNLIMITED, self._track, self._engine.sample_rate) as audio,
            FileEmbeddingStream(self._engine, audio, name) as stream,
        ):
            async for part in stream:
                self._seconds += len(part) * stream.frame_hop
                bar.set_postfix_str(f"{self._seconds:.0f} s of audio", refresh=False)
                bar.update(0)  # refreshes the bar during a long file
                if self._frames:
                    parts.append(part)
            return _Embedding(
                name, stream.duration, stream.embedding, unit_rows(np.concatenate(parts)) if self._frames else None
            )


def _arrays(model: Model, embeddings: list[_Embedding], frames: bool) -> dict[str, Any]:
    """The arrays that embed_files documents."""
    arrays: dict[str, Any] = {
        "filenames": np.array([embedding.filename for embedding in embeddings]),
        "durations": np.array([embedding.duration for embedding in embeddings]),
        "clips": np.stack([embedding.clip for embedding in embeddings]),
        "model": np.array(model.name),
        "stamp": np.array(model.stamp),
    }
    if frames:
        tracks = [embedding.frames for embedding in embeddings if embedding.frames is not None]
        arrays["frames"] = np.concatenate(tracks)
        arrays["frame_offsets"] = np.cumsum([0] + [len(track) for track in tracks])
        arrays["frame_hop"] = np.array(model.frame_hop)
    return arrays


def with_engine(model: Model, work: Callable[[Engine, DecoderPool], Coroutine[Any, Any, R]]) -> R:
    """Runs `work` in an event loop with an engine and decoders, which it starts and closes. Returns its result."""

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
