"""Near-duplicates in the library: clips of one recording in another format, at another level, or trimmed.

index.duplicates defines what counts as one; this module gives it the library's embeddings and waveform peaks.
"""

from __future__ import annotations

import asyncio

import numpy as np

from app.audio.errors import MediaError
from app.services.waveforms import decode_peaks
from app.state import AppState
from index import AudioMissing, Clip, ClipNotFound, FrameCodes, Library, near_duplicates

_PAGE = 1000  # clips


async def find_duplicates(state: AppState) -> list[list[Clip]]:
    """Groups of near-duplicates, each oldest first, in the order of their oldest clip.

    Candidates are decoded: their peaks distinguish a copy from another take of the same sound.
    """
    library, dim, loop = state.library, state.engine.dim, asyncio.get_running_loop()

    def compare(clips: list[Clip], vectors: np.ndarray) -> list[list[int]]:
        def load_frames(place: int) -> FrameCodes | np.ndarray:
            try:
                return library.frame_codes(clips[place].id)[0]
            except ClipNotFound:
                return np.zeros((1, dim), dtype=np.float32)  # similar to nothing

        def load_peaks(place: int) -> np.ndarray:
            decoding = asyncio.run_coroutine_threadsafe(decode_peaks(state, clips[place].id), loop)
            try:
                return decoding.result()
            except (ClipNotFound, AudioMissing, MediaError):
                return np.stack([np.zeros(2), np.arange(2)])  # two steps: too short to match another clip

        durations = np.array([clip.duration for clip in clips])
        return near_duplicates(vectors, durations, load_frames, load_peaks)

    clips, vectors = await state.read(_list_all, library, dim)
    groups = await state.read(compare, clips, vectors)
    return [[clips[place] for place in group] for group in groups]


def _list_all(library: Library, dim: int) -> tuple[list[Clip], np.ndarray]:
    """All clips, oldest first, and their embeddings (N, D)."""
    clips: list[Clip] = []
    vectors: list[np.ndarray] = []
    cursor: str | None = None
    while True:
        page, cursor = library.list(_PAGE, cursor, sort="created")
        for clip in page:
            try:
                vectors.append(library.clip_vector(clip.id))
            except ClipNotFound:  # deleted in the meantime
                continue
            clips.append(clip)
        if cursor is None:
            return clips, np.array(vectors, dtype=np.float32).reshape(len(clips), dim)
