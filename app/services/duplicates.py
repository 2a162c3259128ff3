"""Near-duplicates of the library: clips that are one recording in another format, at another level, or trimmed.

What counts as one is in index.duplicates; here the library's vectors, frames and outlines come to it. Knows no request.
"""

from __future__ import annotations

import asyncio

import numpy as np

from app.audio.errors import MediaError
from app.state import Services
from index import AudioMissing, Clip, ClipNotFound, FrameCodes, near_duplicates

_PAGE = 1000  # clips


async def find_duplicates(services: Services) -> list[list[Clip]]:
    """Groups of near-duplicates, oldest first, in order of their oldest clip.

    Candidates are decoded, for their outlines, which tell one recording from another take of the same sound.
    """
    catalog, loop = services.catalog, asyncio.get_running_loop()

    def collect() -> tuple[list[Clip], np.ndarray]:
        clips: list[Clip] = []
        vectors: list[np.ndarray] = []
        cursor: str | None = None
        while True:
            page, cursor = catalog.list(_PAGE, cursor, sort="created")
            for clip in page:
                try:
                    vectors.append(catalog.clip_vector(clip.id))
                except ClipNotFound:  # deleted meanwhile
                    continue
                clips.append(clip)
            if cursor is None:
                return clips, np.array(vectors, dtype=np.float32).reshape(len(clips), services.engine.dim)

    def compare(clips: list[Clip], vectors: np.ndarray) -> list[list[int]]:
        def frames_of(place: int) -> FrameCodes | np.ndarray:
            try:
                return catalog.frame_codes(clips[place].id)[0]
            except ClipNotFound:
                return np.zeros((1, services.engine.dim), dtype=np.float32)  # agrees with nothing

        def outline_of(place: int) -> np.ndarray:
            drawing = asyncio.run_coroutine_threadsafe(services.outline(clips[place].id), loop)
            try:
                return drawing.result()
            except (ClipNotFound, AudioMissing, MediaError):
                return np.stack([np.zeros(2), np.arange(2)])  # two steps: too short to be like another

        durations = np.array([clip.duration for clip in clips])
        return near_duplicates(vectors, durations, frames_of, outline_of)

    clips, vectors = await services.read(collect)
    groups = await services.read(compare, clips, vectors)
    return [[clips[place] for place in group] for group in groups]
