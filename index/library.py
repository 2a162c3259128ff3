"""The interface of a library of clips, whichever store implements it.

`SqliteLibrary` (SQLite and FAISS, one process) and `MilvusLibrary` (Milvus, any number of processes) implement it;
tests/index/test_library_contract.py runs the same tests over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index.concepts import ConceptStore
from index.edits import ClipEdit, Facet
from index.jobs import Jobs
from index.quantization import FrameCodes
from index.records import Clip, Filter, Hit, NewClip


class Library(Protocol):
    """An open library. All methods block, may be called from any thread and raise LibraryError or its subclasses."""

    @property
    def jobs(self) -> Jobs | None:
        """The jobs over the library; None if the store has none."""

    @property
    def concepts(self) -> ConceptStore:
        """The concepts that users have taught."""

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        """Adds a clip: returns (clip, True), or (existing clip, False) if its audio is in the library already.

        When this returns, the clip is durable (as the store documents) and searches find it.
        """

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """`add` for several clips, all or none of them; one result each, in order."""

    def delete(self, clip_id: str) -> None:
        """Deletes a clip and everything that belongs to it. Raises ClipNotFound."""

    def edit(self, clip_ids: Sequence[str], edit: ClipEdit) -> dict[str, Clip]:
        """Applies the same change to several clips and returns the changed ones by id, without those that don't exist.

        Raises InvalidMetadata.
        """

    def facets(self, keys: Sequence[str], filter: Filter | None = None, limit: int = 100) -> dict[str, Facet]:
        """Returns index.edits.count_facets of the clips that pass; a store may count only its newest clips."""

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """Applies a JSON merge patch to a clip's metadata and returns the changed clip.

        Raises ClipNotFound, InvalidMetadata.
        """

    def __len__(self) -> int:
        """Returns the number of clips."""

    def get(self, clip_id: str) -> Clip:
        """Returns the clip with this id. Raises ClipNotFound."""

    def find(self, sha256: str) -> Clip | None:
        """Returns the clip whose uploaded file has this SHA-256 (hex), or None."""

    def find_many(self, hashes: Sequence[str]) -> dict[str, Clip]:
        """`find` for several hashes in one query: the existing clips by hash."""

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """Returns the k clips with the segment (index.segments) most similar to `vector` (D,), best first.

        A hit's similarity is that of its segment.
        """

    def nearest(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        """Returns the k clips most similar to `vector` (D,) among those that pass the filter, best first.

        Ids and similarities, those of at least `least`. Records are read with `clips`.
        """

    def nearest_segments(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        """Returns `nearest` by the most similar segment of each clip, of clips longer than LONG_SECONDS only."""

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """Returns the k clips that best match the words of `query`; their similarity is that to `vector` (D,)."""

    def word_counts(self, words: Sequence[str]) -> dict[str, int]:
        """Returns the number of clips with each word in file name, tags or other metadata, compared by stem.

        A store that cannot count returns 1 for every word that occurs.
        """

    def similar_words(self, word: str, distance: int) -> dict[str, int]:
        """Returns words of the clips within `distance` edits (Damerau, Levenshtein) of `word`, in lower case.

        With each its number of clips. A store without a list of its words returns nothing.
        """

    def clips(self, clip_ids: Sequence[str]) -> dict[str, Clip]:
        """Returns the existing clips by id."""

    def similarities(self, clip_ids: Sequence[str], vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the similarities (2, Q) of each existing clip to vectors (Q, D): the clip's, its best segment's.

        The latter is NaN for clips up to LONG_SECONDS.
        """

    def clip_vector(self, clip_id: str) -> np.ndarray:
        """Returns the clip's embedding (D,) float32, unit length. Raises ClipNotFound."""

    def frames(self, clip_id: str) -> tuple[np.ndarray, float]:
        """Returns the frame embeddings (T, D) float32 and their hop in seconds. Raises ClipNotFound."""

    def frame_codes(self, clip_id: str) -> tuple[FrameCodes, float]:
        """Returns the quantised frames and their hop in seconds. Raises ClipNotFound."""

    def frame_codes_of(self, clip_ids: Sequence[str]) -> dict[str, tuple[FrameCodes, float]]:
        """Returns `frame_codes` of the existing clips, by id, in fewer round trips than one by one."""

    def audio_path(self, clip_id: str) -> Path:
        """Returns a local file with the uploaded audio; open it soon. Raises ClipNotFound, AudioMissing."""

    def refer(self, clip_id: str, file: Path) -> None:
        """Makes the clip's audio the file at this path, which has its SHA-256, unless the library has a copy.

        Raises ClipNotFound, and LibraryError if the store cannot refer to files.
        """

    def check(self) -> None:
        """Raises LibraryError if the library does not respond."""

    def list(
        self, limit: int, cursor: str | None = None, filter: Filter | None = None, sort: str = "-created"
    ) -> tuple[list[Clip], str | None]:
        """Returns a page of at most `limit` clips and the cursor of the next page (None on the last)."""

    def close(self) -> None:
        """Closes the library. Idempotent."""
