"""What the service asks of a library of clips, whichever store keeps it.

`index.sqlite.library.SqliteLibrary` (SQLite and FAISS, one process) and `index.milvus.library.MilvusLibrary` (Milvus, any number of
processes) fulfil it; tests/index/test_library_contract.py runs the same tests over both. Knows no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index.quantization import FrameCodes
from index.records import Clip, Filter, Hit, NewClip


class Library(Protocol):
    """An open library; every method blocks and may be called from any thread. Raises LibraryError and its kin."""

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        """Adds a clip: (clip, True), or (the clip that is there, False) when its audio already is.

        When this returns the clip is kept (the store's documentation says against what) and found by search.
        """

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """`add` for several clips at once, all or none of them; one result for each, in order."""

    def delete(self, clip_id: str) -> None:
        """Removes a clip with all that belongs to it. Raises ClipNotFound."""

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """Applies a JSON merge patch to a clip's metadata. Raises ClipNotFound, InvalidMetadata."""

    def __len__(self) -> int:
        """How many clips can be found."""

    def get(self, clip_id: str) -> Clip:
        """The clip with this id. Raises ClipNotFound."""

    def find(self, sha256: str) -> Clip | None:
        """The clip whose uploaded file has this SHA-256 (hex), if there is one."""

    def search(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips most similar to `vector` (D,) of those that pass the filter, best first."""

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips of which some stretch (index.segments) is most similar to `vector` (D,), best first.

        The hits' similarity is that of the stretch.
        """

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips with words of `query`, best first; their similarity is theirs to `vector` (D,)."""

    def clip_vector(self, clip_id: str) -> np.ndarray:
        """The clip's embedding (D,) float32, unit length. Raises ClipNotFound."""

    def frames(self, clip_id: str) -> tuple[np.ndarray, float]:
        """The clip's frame embeddings (T, D) float32 and their hop in seconds. Raises ClipNotFound."""

    def frame_codes(self, clip_id: str) -> tuple[FrameCodes, float]:
        """`frames`, not decoded yet. Raises ClipNotFound."""

    def frame_codes_of(self, clip_ids: Sequence[str]) -> dict[str, tuple[FrameCodes, float]]:
        """`frame_codes` of several clips, by id, of those that are there: in fewer steps than one by one."""

    def audio_path(self, clip_id: str) -> Path:
        """A local file with the uploaded bytes, to be opened soon. Raises ClipNotFound, AudioMissing."""

    def check(self) -> None:
        """Raises LibraryError unless the library answers."""

    def list(
        self, limit: int, cursor: str | None = None, filter: Filter | None = None, sort: str = "-created"
    ) -> tuple[list[Clip], str | None]:
        """A page of at most `limit` clips, and the cursor of the next (None on the last)."""

    def close(self) -> None:
        """Ends the library's use. Closing twice is fine."""
