"""`finelap reindex`: embeds a library again with another checkpoint while a service has it open.

Reads the library's database and audio, examples of concepts included, from a separate process, and writes a side
database that the service adopts when it starts with the new checkpoint. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from app.audio.errors import MediaError
from app.cli.local import with_engine
from app.cli.upload import as_text
from app.decoding.pool import DecoderPool
from app.inference.batcher import Urgency
from app.inference.engine import Engine, NotFinite, load_model
from app.services.audio_source import FileEmbeddingStream
from app.settings import Settings
from index import ClipFile, FrameCodes, LibraryReader, SideDatabase, exclusive_lock, remove_side

_PARALLEL_FILES = 8
_POLL = 0.5  # seconds between checks for changes in the library
_UNLIMITED = float("inf")  # seconds a recording may have


def reindex(settings: Settings, follow: bool) -> int:
    """Embeds every clip of the library in `settings.data_dir` with the settings' checkpoint. Returns the exit code.

    Returns 1 if some clips could not be embedded. With `follow`, also embeds clips that are added, until the service
    has adopted the new vectors. Raises LibraryError, CheckpointError.
    """
    folder = settings.data_dir
    with LibraryReader(folder) as library:
        if not library.clips() and not library.sounds():
            print("the library is empty: start the service with any checkpoint", file=sys.stderr)
            return 0
        with exclusive_lock(folder / "reindex.lock", f"already running on {folder}"):
            model = load_model(settings)
            if library.stamp() == (model.stamp, model.dim):
                remove_side(folder, model.stamp)
                print(f"the library already uses {settings.checkpoint}: nothing to do", file=sys.stderr)
                return 0
            with SideDatabase(folder, model.stamp, model.dim) as side:

                async def work(engine: Engine, decoders: DecoderPool) -> int:
                    return await _Reindex(engine, decoders, library, side, settings.checkpoint).run(follow)

                code = with_engine(model, work)
            if library.stamp() == (
                model.stamp,
                model.dim,
            ):  # adopted: drop what a late clip added
                remove_side(folder, model.stamp)
            return code


class _Reindex:
    """One run: embeds missing clips, records failures, shows progress."""

    def __init__(
        self, engine: Engine, decoders: DecoderPool, library: LibraryReader, side: SideDatabase, checkpoint: str
    ) -> None:
        self._engine, self._decoders = engine, decoders
        self._library, self._side = library, side
        self._checkpoint = checkpoint
        self._failed: dict[str, str] = {}  # reason by SHA-256
        self._sounds: set[str] = set()  # which came as examples of concepts
        self._lost: set[str] = set()  # those of `_failed` whose audio file is missing
        self._seconds = 0.0  # of audio embedded
        self._bar = tqdm(desc="re-embedding", unit="clip", miniters=0, smoothing=0.02)

    async def run(self, follow: bool) -> int:
        with self._bar:
            await self._catch_up()
            if follow and not self._is_adopted():
                self._bar.write(self._ready() + "; watching for new clips until then (Ctrl-C stops)", file=sys.stderr)
                await self._follow()
        every = [("clip", clip) for clip in self._library.clips()]
        every += [("example", sound) for sound in self._library.sounds()]
        failed = [(kind, clip) for kind, clip in every if clip.sha256 in self._failed]
        for kind, clip in failed:
            print(f"{as_text(clip.filename)} ({kind} {clip.id}): {self._failed[clip.sha256]}", file=sys.stderr)
        if self._is_adopted():
            print(f"the service now uses {self._checkpoint}")
        elif failed:
            print(
                f"{len(failed)} clips could not be embedded: delete them or add their files again, then run this "
                "command again"
            )
        else:
            print(self._ready())
        return 1 if failed else 0

    def _ready(self) -> str:
        return f"ready: restart the service with --checkpoint {self._checkpoint} to switch"

    def _is_adopted(self) -> bool:
        return self._library.stamp() == (self._engine.stamp, self._engine.dim)

    async def _catch_up(self) -> None:
        """Embeds missing clips until none is left; the library may change meanwhile."""
        while missing := self._missing():
            queue = iter(missing)
            await asyncio.gather(*(self._embed_all(queue) for _ in range(_PARALLEL_FILES)))

    def _missing(self) -> list[ClipFile]:
        """The clips still to embed; also updates the progress bar's total."""
        sounds = self._library.sounds()
        self._sounds = {sound.sha256 for sound in sounds}
        clips = [*self._library.clips(), *sounds]
        done = self._side.known | self._failed.keys()
        missing = [clip for clip in clips if clip.sha256 not in done]
        self._bar.total, self._bar.n = len(clips), len(clips) - len(missing)
        if self._bar.initial == 0 and self._bar.n:
            self._bar.initial = self._bar.n  # from an earlier run: not part of the rate
        self._bar.refresh()
        return missing

    async def _follow(self) -> None:
        seen = self._library.changes()
        while not self._is_adopted():
            await asyncio.sleep(_POLL)
            now = self._library.changes()
            restored = {sha256 for sha256 in self._lost if self._library.audio_path(sha256).is_file()}
            self._lost -= restored
            for sha256 in restored:
                del self._failed[sha256]
            if restored or now != seen:
                seen = now
                await self._catch_up()

    async def _embed_all(self, clips: Iterator[ClipFile]) -> None:
        for clip in clips:
            await self._embed(clip)
            self._bar.update()

    async def _embed(self, clip: ClipFile) -> None:
        frames = FrameCodes(self._engine.dim)
        name = as_text(clip.filename)
        try:
            path = self._library.audio_path(clip.sha256)
            source: BinaryIO | Path = path
            if clip.sha256 in self._sounds and not path.is_file():
                source = io.BytesIO(self._library.sound_audio(clip.sha256))
            async with (
                self._decoders.open(source, name, _UNLIMITED, clip.track, self._engine.sample_rate) as audio,
                FileEmbeddingStream(self._engine, audio, name, urgency=Urgency.BULK) as stream,
            ):
                async for part in stream:
                    frames.add(part)
                    self._add_progress(len(part) * stream.frame_hop)
                self._side.add(clip.sha256, stream.embedding, frames, stream.frame_hop)
        except MediaError as error:
            self._failed[clip.sha256] = error.why
        except FileNotFoundError:  # the clip was deleted, or its audio is lost: decided at the end
            self._failed[clip.sha256] = "its audio file is missing"
            self._lost.add(clip.sha256)
        except (OSError, NotFinite) as error:
            self._failed[clip.sha256] = getattr(error, "strerror", None) or str(error)

    def _add_progress(self, seconds: float) -> None:
        self._seconds += seconds
        self._bar.set_postfix_str(f"{self._seconds:.0f} s of audio", refresh=False)
        self._bar.update(0)  # refreshes the bar during a long recording
