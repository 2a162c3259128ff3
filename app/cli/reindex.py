"""`finelap reindex`: embeds a library's audio again with another checkpoint, beside the service that has it open.

A process of its own: it reads the library's database and audio folder, and writes a side database (index.sqlite.reindex) which
the service takes over when it starts with the new checkpoint. May be killed and run again; it goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

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

_TOGETHER = 8  # files heard at once
_POLL = 0.5  # seconds between two looks at what the service has changed
_ENDLESS = float("inf")  # seconds a recording may have


def reindex(settings: Settings, follow: bool) -> int:
    """Embeds every clip of the library in `settings.data_dir` with the settings' checkpoint. Returns the exit code.

    1 if a clip could not be embedded: the others are. With `follow` it goes on with clips that are added, until the
    service has taken the new vectors over. Raises LibraryError, CheckpointError.
    """
    folder = settings.data_dir
    with LibraryReader(folder) as library:
        if not library.clips():
            print("the library has no clips: start the service with any checkpoint", file=sys.stderr)
            return 0
        with exclusive_lock(folder / "reindex.lock", f"finelap reindex is at work on {folder} already"):
            model = load_model(settings)
            if library.stamp() == (model.stamp, model.dim):
                remove_side(folder, model.stamp)
                print(f"the library was made by {settings.checkpoint}: there is nothing to do", file=sys.stderr)
                return 0
            with SideDatabase(folder, model.stamp, model.dim) as side:

                async def work(engine: Engine, decoders: DecoderPool) -> int:
                    return await _Reindex(engine, decoders, library, side, settings.checkpoint).run(follow)

                code = with_engine(model, work)
            if library.stamp() == (model.stamp, model.dim):  # taken over: what a late clip left is of no use
                remove_side(folder, model.stamp)
            return code


class _Reindex:
    """One run: what is missing, what failed, how far it is."""

    def __init__(
        self, engine: Engine, decoders: DecoderPool, library: LibraryReader, side: SideDatabase, checkpoint: str
    ) -> None:
        self._engine, self._decoders = engine, decoders
        self._library, self._side = library, side
        self._checkpoint = checkpoint
        self._failed: dict[str, str] = {}  # by SHA-256: the reason
        self._lost: set[str] = set()  # of these, whose file was not there
        self._heard = 0.0  # seconds
        self._bar = tqdm(desc="embedding again", unit="clip", miniters=0, smoothing=0.02)

    async def run(self, follow: bool) -> int:
        with self._bar:
            await self._catch_up()
            if follow and not self._is_taken_over():
                self._bar.write(self._ready() + "; following until then (Ctrl-C stops)", file=sys.stderr)
                await self._follow()
        failed = [clip for clip in self._library.clips() if clip.sha256 in self._failed]
        for clip in failed:
            print(f"{as_text(clip.filename)} (clip {clip.id}): {self._failed[clip.sha256]}", file=sys.stderr)
        if self._is_taken_over():
            print(f"the service has taken over what {self._checkpoint} made")
        elif failed:
            print(
                f"{len(failed)} clips could not be embedded again: delete them or add their files again, then run this "
                "once more"
            )
        else:
            print(self._ready())
        return 1 if failed else 0

    def _ready(self) -> str:
        return f"ready: it is taken over when the service is started with --checkpoint {self._checkpoint}"

    def _is_taken_over(self) -> bool:
        return self._library.stamp() == (self._engine.stamp, self._engine.dim)

    async def _catch_up(self) -> None:
        """Embeds what is missing until there is nothing more: the library may change meanwhile."""
        while missing := self._missing():
            queue = iter(missing)
            await asyncio.gather(*(self._embed_all(queue) for _ in range(_TOGETHER)))

    def _missing(self) -> list[ClipFile]:
        """The clips still to be embedded; the bar is told how many there are."""
        clips = self._library.clips()
        done = self._side.known | self._failed.keys()
        missing = [clip for clip in clips if clip.sha256 not in done]
        self._bar.total, self._bar.n = len(clips), len(clips) - len(missing)
        if self._bar.initial == 0 and self._bar.n:
            self._bar.initial = self._bar.n  # of a run before: not part of the rate
        self._bar.refresh()
        return missing

    async def _follow(self) -> None:
        seen = self._library.changes()
        while not self._is_taken_over():
            await asyncio.sleep(_POLL)
            now = self._library.changes()
            back = {sha256 for sha256 in self._lost if self._library.audio_path(sha256).is_file()}  # added once more
            self._lost -= back
            for sha256 in back:
                del self._failed[sha256]
            if back or now != seen:
                seen = now
                await self._catch_up()

    async def _embed_all(self, clips: Iterator[ClipFile]) -> None:
        for clip in clips:
            await self._embed(clip)
            self._bar.update()

    async def _embed(self, clip: ClipFile) -> None:
        frames = FrameCodes(self._engine.dim)
        path, name = self._library.audio_path(clip.sha256), as_text(clip.filename)
        try:
            async with (
                self._decoders.open(path, name, _ENDLESS) as audio,
                FileEmbeddingStream(self._engine, audio, name, urgency=Urgency.BULK) as stream,
            ):
                async for part in stream:
                    frames.add(part)
                    self._show(len(part) * stream.frame_hop)
                self._side.add(clip.sha256, stream.embedding, frames, stream.frame_hop)
        except MediaError as error:
            self._failed[clip.sha256] = error.why
        except FileNotFoundError:  # the clip was deleted, or its audio is lost; which, is seen when all others are done
            self._failed[clip.sha256] = "its audio file is missing"
            self._lost.add(clip.sha256)
        except (OSError, NotFinite) as error:
            self._failed[clip.sha256] = getattr(error, "strerror", None) or str(error)

    def _show(self, seconds: float) -> None:
        self._heard += seconds
        self._bar.set_postfix_str(f"{self._heard:.0f} s of sound", refresh=False)
        self._bar.update(0)  # a long recording shows that it goes on
