"""Embeds the sounds of a folder with Ray Data, on as many machines as its cluster has, for `finelap import`.

    pip install 'finelap[ray]'
    python integrations/ray/embed.py /sounds /embedded --concurrency 4
    finelap import /embedded --data-dir data

Both folders are shared by all machines. Files are checksummed and divided into parts by their content; copies of a file
count once. Each part is embedded by an actor, which holds a model, and written as one Parquet file. A run that was
interrupted skips the parts that are there. A file that cannot be read is reported and left out, and the exit code is 1.
Clips get the metadata that an upload would give them, and the `path` within the folder.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from app.audio.errors import MediaError
from app.audio.tags import merge_metadata
from app.audio.tracks import audio_metadata
from app.cli.upload import as_text, find_sources
from app.decoding.pool import DecoderPool
from app.inference.engine import Engine, load_model
from app.services.audio_source import FileEmbeddingStream, require_frames
from app.settings import DEFAULT_CHECKPOINT, Settings
from index import FrameCodes, LibraryError, NewClip, finish_parts, write_part

PART = 256  # files
_PARALLEL = 8  # files that an actor decodes at a time
_QUEUE = 1 << 20  # windows; an actor is its engine's only caller

Batch = dict[str, np.ndarray]  # as Ray passes them: columns by name


def checksums(batch: Batch) -> Batch:
    """Adds the column `sha256` to the column `path`; empty for a file that cannot be read."""

    def checksum(path: str) -> str:
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    return batch | {"sha256": np.array([checksum(path) for path in batch["path"]], dtype=object)}


def parts_of(files: Iterable[tuple[str, str]], size: int = PART) -> list[dict[str, Any]]:
    """Divides (path, SHA-256) into parts {"name", "paths", "hashes"}, the same for the same contents.

    Of files with equal content, the first path by name stands for all.
    """
    first: dict[str, str] = {}
    for path, sha256 in sorted(files):
        first.setdefault(sha256, path)
    order = sorted(first)
    parts = []
    for at in range(0, len(order), size):
        hashes = order[at : at + size]
        name = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        parts.append({"name": name, "hashes": hashes, "paths": [first[sha256] for sha256 in hashes]})
    return parts


class Embed:
    """An actor of Ray: embeds and writes parts. It also works without Ray."""

    def __init__(self, folder: str, out: str, checkpoint: str, dtype: str = "auto") -> None:
        self._folder, self._out = Path(folder), Path(out)
        self._model = load_model(Settings(checkpoint=checkpoint, dtype=dtype))
        self._engine, self._decoders = Engine(self._model, max_queue_windows=_QUEUE), DecoderPool()
        require_frames(self._engine, "A library")
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        await self._decoders.start()
        await self._engine.start()

    def __del__(self) -> None:  # how Ray ends an actor's work
        self.close()

    def close(self) -> None:
        """Ends the decoders and the model's threads. Idempotent."""
        if not hasattr(self, "_loop") or self._loop.is_closed():  # a failed start, or closed already
            return
        self._loop.run_until_complete(self._engine.close())
        self._loop.run_until_complete(self._decoders.close())
        self._loop.close()

    def __call__(self, batch: Batch) -> Batch:
        """Parts in, a row {"clips", "failed"} for each out."""
        made = [
            self._write(name, list(map(str, paths)), list(map(str, hashes)))
            for name, paths, hashes in zip(batch["name"], batch["paths"], batch["hashes"], strict=True)
        ]
        failed = np.array(["\n".join(lines) for _, lines in made], dtype=object)
        return {"clips": np.array([clips for clips, _ in made]), "failed": failed}

    def _write(self, name: str, paths: list[str], hashes: list[str]) -> tuple[int, list[str]]:
        failed: list[str] = []
        clips = self._loop.run_until_complete(self._embed_all(paths, hashes, failed))
        if clips:
            write_part(self._out, name, clips, self._model.stamp, self._model.dim)
        return len(clips), failed

    async def _embed_all(self, paths: list[str], hashes: list[str], failed: list[str]) -> list[NewClip]:
        permits = asyncio.Semaphore(_PARALLEL)

        async def embed(path: str, sha256: str) -> NewClip | None:
            async with permits:
                try:
                    return await self._embed(Path(path), sha256)
                except MediaError as error:
                    failed.append(f"{as_text(path)}: {error.why}")
                except OSError as error:
                    failed.append(f"{as_text(path)}: {error.strerror}")
                return None

        clips = await asyncio.gather(*(embed(path, sha256) for path, sha256 in zip(paths, hashes, strict=True)))
        return [clip for clip in clips if clip is not None]

    async def _embed(self, path: Path, sha256: str) -> NewClip:
        name, frames = as_text(path.name), FrameCodes(self._engine.dim)
        given = {"path": as_text(path.relative_to(self._folder).as_posix())}
        async with (
            self._decoders.open(path, name, float("inf"), None, self._engine.sample_rate) as audio,
            FileEmbeddingStream(self._engine, audio, name) as stream,
        ):
            async for part in stream:
                frames.add(part)
        return NewClip(
            filename=name,
            sha256=sha256,
            duration=stream.duration,
            sample_rate=stream.sample_rate,
            channels=stream.channels,
            metadata=merge_metadata(stream.tags, name, given) | audio_metadata(stream.track, stream.notes),
            embedding=stream.embedding,
            frames=frames,
            frame_hop=stream.frame_hop,
            audio=b"",
        )


def unwritten(parts: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The parts without a file: those that an earlier run did not finish."""
    return [part for part in parts if not (out / "data" / f"train-{part['name']}.parquet").exists()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--dtype", default="auto", help="float32 for the same vectors on different processors")
    parser.add_argument("--concurrency", type=int, default=1, help="actors, each with a model")
    parser.add_argument("--cpus", type=float, default=1, help="cores for each actor")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each actor")
    parser.add_argument("--part", type=int, default=PART, help="files in each Parquet file")
    args = parser.parse_args(arguments)
    import ray

    folder, out = args.folder.absolute(), args.out.absolute()
    files = ray.data.from_items([{"path": str(source.path)} for source in find_sources([folder], {})])
    summed = [(row["path"], row["sha256"]) for row in files.map_batches(checksums).take_all()]
    failed = [f"{as_text(path)}: it cannot be read" for path, sha256 in summed if not sha256]
    parts = parts_of(((path, sha256) for path, sha256 in summed if sha256), args.part)
    if todo := unwritten(parts, out):
        made = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Embed,
            fn_constructor_args=(str(folder), str(out), args.checkpoint, args.dtype),
            batch_size=1,
            concurrency=args.concurrency,
            num_cpus=args.cpus,
            num_gpus=args.gpus,
        )
        failed += [line for row in made.take_all() for line in row["failed"].splitlines()]
    for line in failed:
        print(line, file=sys.stderr)
    model = load_model(Settings(checkpoint=args.checkpoint))
    try:
        report = finish_parts(out, model.stamp, model.dim)
    except LibraryError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: {report.clips} clips of {report.checkpoint}; finelap import makes a library of them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
