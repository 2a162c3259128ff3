"""A library of clips in Milvus, shared by any number of processes; audio and frames are objects in separate storage.

Implements index.library.Library. Nothing is cached between calls, so processes see each other's changes. The order of
writes makes crashes harmless without locks between processes:

- add: audio and frame objects → segments → row. A crash leaves at most objects and segments without a row, which
  segment searches skip.
- delete: row → segments and objects → row again, in case another process had read the row and written it back. A crash
  leaves the same.
- An object's name contains its row's id, so no process removes what another has just written.
- If two processes add the same audio at the same time, there are two rows. Each process checks after its write; one
  that sees another's row removes its own and retries, so at most one of them reports the clip as added.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from index.edits import ClipEdit, Facet, check_patch, count_facets
from index.filters import Condition, parse_filter
from index.milvus.client import (
    concepts_of,
    connect,
    library_errors,
    open_collections,
    parse_milvus_url,
    segments_of,
)
from index.milvus.collection import MAX_HITS, WINDOW, Collection, page, read_cursor, write_cursor
from index.milvus.concepts import MilvusConcepts
from index.milvus.filters import expression, query_stems
from index.milvus.schema import (
    RECORD,
    SORT_FIELDS,
    NewRows,
    audio_object,
    frames_object,
    read_clip,
    read_vector,
    record_fields,
    segment_ids,
    to_rows,
)
from index.new_clip import check_vector
from index.objects import Objects, open_objects
from index.quantization import FrameCodes
from index.records import (
    AudioMissing,
    Clip,
    ClipNotFound,
    Filter,
    Hit,
    LibraryError,
    NewClip,
)
from index.segments import LONG_SECONDS

_ATTEMPTS = 8  # to add audio that other processes add at the same time
_COUNTED = 10_000  # clips whose values facets count
_MAX_EF = 32_768
_MAX_LISTED = 2000  # clips that the expression of a segment search can list
_SEGMENTS_PER_CLIP = 4  # in the first search round


class MilvusLibrary:
    """An open library in Milvus. Create one with `MilvusLibrary.open`; `close` it. See Library for the methods."""

    window = WINDOW
    jobs = None  # a job belongs to one process and its clips to many
    concepts: MilvusConcepts

    def __init__(self, rows: Collection, segments: Collection, objects: Objects, dim: int, index: str) -> None:
        self._rows, self._segments = rows, segments
        self._index = index
        self._objects = objects
        self._dim = dim
        self._locks = KeyLocks()
        self._clock = MonotonicClock()

    @classmethod
    def open(cls, url: str, data_dir: Path, *, dim: int, checkpoint: str) -> MilvusLibrary:
        """Opens or creates the library at a milvus:// address (see index.milvus.client).

        Audio and frames are stored in `data_dir`, which must be the same folder for all processes, unless the address
        names other storage; `data_dir` then caches what is fetched from it. Raises CheckpointMismatch if another
        checkpoint made the library, even an empty one, LibraryError, ValueError for an invalid address.
        """
        if dim < 1 or not checkpoint:
            raise ValueError("a library needs a positive dim and a checkpoint")
        parts = parse_milvus_url(url)
        client = connect(parts)
        try:
            with library_errors():
                objects = open_objects(parts.files or str(data_dir), Path(data_dir) / "fetched")
            open_collections(client, parts, dim, checkpoint)
        except BaseException:
            client.close()
            raise
        rows = Collection(client, parts.collection, parts.consistency)
        segments = Collection(client, segments_of(parts.collection), parts.consistency)
        library = cls(rows, segments, objects, dim, parts.index)
        concepts = Collection(client, concepts_of(parts.collection), parts.consistency)
        library.concepts = MilvusConcepts(concepts, rows, segments, objects, library._locks, library._clock.now)
        return library

    def close(self) -> None:
        self._segments.close()
        self._rows.close()

    # Changes

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        return self.add_many([new])[0]

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """See Library. `new` must fit into one request to Milvus: 64 MB, a few thousand clips."""
        items = [to_rows(item, self._dim, self._clock.now()) for item in new]
        unique: dict[str, NewRows] = {}
        for item in items:
            unique.setdefault(item.clip.sha256, item)
        with library_errors(), self._locks.hold(unique):
            for attempt in range(_ATTEMPTS):
                found = self._try_to_add(unique)
                if found is not None:
                    return [(found[i.clip.sha256], found[i.clip.sha256] is i.clip) for i in items]
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise LibraryError("other processes keep adding the same audio; try again")

    def _try_to_add(self, items: dict[str, NewRows]) -> dict[str, Clip] | None:
        """Returns all clips by hash; None if another process added one of them at the same time."""
        existing = self._rows.by_sha256(items)
        fresh = {sha256: item for sha256, item in items.items() if sha256 not in existing}
        try:
            for sha256, item in items.items():
                self._put_objects(item, existing.get(sha256, item.clip))
            if fresh:
                self._segments.write([part for item in fresh.values() for part in item.segments])
                self._rows.write([item.row for item in fresh.values()])
            ours = {item.clip.id for item in fresh.values()}
            others = [row for row in self._rows.rows_of(fresh) if row["id"] not in ours]
        except BaseException:
            self._undo_add(fresh)
            raise
        if others:
            self._undo_add(fresh)
            return None
        return existing | {sha256: item.clip for sha256, item in fresh.items()}

    def _put_objects(self, item: NewRows, clip: Clip) -> None:
        """Writes those objects of a clip that do not exist."""
        audio, frames = audio_object(clip), frames_object(clip)
        if not self._objects.has(audio) and self._objects.put(audio, item.audio) != clip.sha256:
            self._objects.remove(audio)
            raise ValueError(f"the audio does not have the SHA-256 {clip.sha256!r}")
        if not self._objects.has(frames):
            self._objects.put(frames, item.frames)

    def _undo_add(self, items: dict[str, NewRows]) -> None:
        """Undoes an addition as far as possible. It may leave a complete row, or objects."""
        with suppress(LibraryError, OSError), library_errors():
            self._rows.delete([item.clip.id for item in items.values()])
            for item in items.values():
                self._delete_parts(item.clip, len(item.segments))

    def _delete_parts(self, clip: Clip, segments: int) -> None:
        self._segments.delete(segment_ids(clip.id, segments))
        self._objects.remove(frames_object(clip))
        self._objects.remove(audio_object(clip))

    def delete(self, clip_id: str) -> None:
        with library_errors(), self._locks.hold([clip_id]):
            row = self._rows.row(clip_id, [*RECORD, "segments"])
            self._rows.delete([clip_id])
            self._delete_parts(read_clip(row), int(row["segments"]))
            self._rows.delete([clip_id])

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """See Library. If two processes change a clip at the same time, the last write wins."""
        return self._edit(clip_id, ClipEdit(check_patch(changes)))

    def edit(self, clip_ids: Sequence[str], edit: ClipEdit) -> dict[str, Clip]:
        """See Library. Clips are changed one by one: after an error, those before it are changed."""
        changed: dict[str, Clip] = {}
        for clip_id in dict.fromkeys(clip_ids):
            with suppress(ClipNotFound):
                changed[clip_id] = self._edit(clip_id, edit)
        return changed

    def _edit(self, clip_id: str, edit: ClipEdit) -> Clip:
        with library_errors(), self._locks.hold([clip_id]):
            row = self._rows.row(clip_id, ["*"])
            clip = read_clip(row)
            had_frames = self._objects.has(frames_object(clip))
            changed, _ = edit.apply(clip)
            row.pop("terms", None)  # Milvus computes it from the words
            self._rows.write([{**row, **record_fields(changed)}])
            if had_frames and not self._objects.has(frames_object(clip)):  # deleted in the meantime
                self._rows.delete([clip_id])
                raise ClipNotFound(clip_id)
            return changed

    # Reads

    def __len__(self) -> int:
        return self._rows.count()

    def get(self, clip_id: str) -> Clip:
        return read_clip(self._rows.row(clip_id, RECORD))

    def find(self, sha256: str) -> Clip | None:
        return self.find_many([sha256]).get(sha256)

    def find_many(self, hashes: Sequence[str]) -> dict[str, Clip]:
        return self._rows.by_sha256(hashes)

    def nearest(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        """See Library. At most 16,384 clips, as exact as the index: HNSW with an `ef` that grows with k."""
        _check_count(k, "k")
        query = check_vector(vector, self._dim, "query", unit=False)
        where = expression(parse_filter(filter))
        hits = self._rows.search("vector", query.tolist(), k, where, ["id"], self._search_parameters(k))
        return [(hit["entity"]["id"], float(hit["distance"])) for hit in hits if hit["distance"] >= least]

    def _search_parameters(self, k: int) -> dict[str, Any]:
        ef = {"ef": min(max(2 * k, 128), _MAX_EF)} if self._index == "HNSW" else {}
        return {"metric_type": "IP", "params": ef}

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """See Library. If more than 2,000 clips pass the filter, only the best 16,384 segments are considered."""
        found = self._search_segments(vector, k, parse_filter(filter), RECORD)
        return [Hit(read_clip(row), similarity) for row, similarity in found]

    def nearest_segments(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        conditions = [*parse_filter(filter), *parse_filter({"duration": {"gt": LONG_SECONDS}})]
        found = self._search_segments(vector, k, conditions, ["id"])
        return [(row["id"], similarity) for row, similarity in found if similarity >= least]

    def _search_segments(
        self, vector: np.ndarray, k: int, conditions: list[Condition], fields: Sequence[str]
    ) -> list[tuple[dict[str, Any], float]]:
        """Returns the rows, with `fields` and the id, of the k clips with the best segments, and the similarities."""
        _check_count(k, "k")
        query = check_vector(vector, self._dim, "query", unit=False).tolist()
        where, within = expression(conditions), ""
        if where:
            passing = [row["id"] for row in self._rows.query(where, ["id"], _MAX_LISTED + 1)]
            if not passing:
                return []
            if len(passing) <= _MAX_LISTED:
                within = _of_clips(passing)
        wanted = _SEGMENTS_PER_CLIP * k
        while True:
            wanted = min(wanted, MAX_HITS)
            best, found = self._best_segments(query, wanted, within)
            rows = {row["id"]: row for row in self._rows.rows(best, fields, where)}
            if len(rows) >= k or found < wanted or wanted == MAX_HITS:
                return [(rows[clip_id], nearest) for clip_id, nearest in best.items() if clip_id in rows][:k]
            wanted *= 4  # one long recording may own many of the segments

    def _best_segments(self, query: list[float], wanted: int, within: str) -> tuple[dict[str, float], int]:
        """Returns clip id → best similarity among the `wanted` best segments, best first, and how many there were."""
        found = self._segments.search("vector", query, wanted, within, ["clip"], self._search_parameters(wanted))
        best: dict[str, float] = {}
        for hit in found:
            best.setdefault(hit["entity"]["clip"], float(hit["distance"]))
        return best, len(found)

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """See Library. Uses Milvus' BM25 over the stems that SQLite's FTS5 produces."""
        _check_count(k, "k")
        target = check_vector(vector, self._dim, "query", unit=False)
        where, wanted = expression(parse_filter(filter)), query_stems(query)
        if wanted is None:
            return []
        found = self._rows.search("terms", wanted, k, where, [*RECORD, "vector"], {"metric_type": "BM25"})
        return [Hit(read_clip(hit["entity"]), float(read_vector(hit["entity"]) @ target)) for hit in found]

    def word_counts(self, words: Sequence[str]) -> dict[str, int]:
        """See Library. Milvus doesn't count, so the count is 1 or 0."""
        asked = [query_stems(word) or word for word in words]
        found = self._rows.any_hits("terms", asked, {"metric_type": "BM25"}) if asked else []
        return {word: int(occurs) for word, occurs in zip(words, found, strict=True)}

    def similar_words(self, word: str, distance: int) -> dict[str, int]:
        """See Library. Milvus has no list of words."""
        return {}

    def facets(self, keys: Sequence[str], filter: Filter | None = None, limit: int = 100) -> dict[str, Facet]:
        """See Library. Milvus doesn't count values, so the newest 10,000 clips that pass are read and counted."""
        _check_count(limit, "limit")
        clips, cursor = self.list(self.window // 2, None, filter)
        while cursor is not None and len(clips) < _COUNTED:
            more, cursor = self.list(self.window // 2, cursor, filter)
            clips += more
        return count_facets(clips, keys, limit)

    def clips(self, clip_ids: Sequence[str]) -> dict[str, Clip]:
        return self._rows.by_id(clip_ids)

    def similarities(self, clip_ids: Sequence[str], vectors: np.ndarray) -> dict[str, np.ndarray]:
        """See Library. Of clips with more than 16,384 segments in total, some segments may be left out."""
        vectors = np.asarray(vectors, dtype=np.float32)
        rows = self._rows.rows(clip_ids, ["vector", "duration"])
        long = [row["id"] for row in rows if row["duration"] > LONG_SECONDS]
        best = [self._best_segments(x, MAX_HITS, _of_clips(long))[0] if long else {} for x in vectors.tolist()]
        return {
            row["id"]: np.stack([vectors @ read_vector(row), [own.get(row["id"], np.nan) for own in best]])
            for row in rows
        }

    def clip_vector(self, clip_id: str) -> np.ndarray:
        return read_vector(self._rows.row(clip_id, ["vector"]))

    def frames(self, clip_id: str) -> tuple[np.ndarray, float]:
        codes, hop = self.frame_codes(clip_id)
        return codes.decode(), hop

    def frame_codes(self, clip_id: str) -> tuple[FrameCodes, float]:
        return self._frame_codes(self._rows.row(clip_id, [*RECORD, "hop"]))

    def frame_codes_of(self, clip_ids: Sequence[str]) -> dict[str, tuple[FrameCodes, float]]:
        found = {}
        for row in self._rows.rows(clip_ids, [*RECORD, "hop"]):
            with suppress(ClipNotFound):  # deleted in the meantime
                found[row["id"]] = self._frame_codes(row)
        return found

    def _frame_codes(self, row: dict[str, Any]) -> tuple[FrameCodes, float]:
        clip = read_clip(row)
        with library_errors():
            try:
                blob = self._objects.local(frames_object(clip)).read_bytes()
            except FileNotFoundError as error:
                self.get(clip.id)  # raises ClipNotFound if the clip was deleted
                raise LibraryError(
                    f"the frames of clip {clip.id} are missing; add the same file again to restore them"
                ) from error
        return FrameCodes.from_bytes(blob, self._dim), float(row["hop"])

    def refer(self, clip_id: str, file: Path) -> None:
        """Raises LibraryError: several services share the audio, so it has to be where all of them reach it."""
        raise LibraryError("a library in Milvus cannot refer to files: add them instead")

    def audio_path(self, clip_id: str) -> Path:
        clip = self.get(clip_id)
        with library_errors():
            try:
                return self._objects.local(audio_object(clip))
            except FileNotFoundError:
                raise AudioMissing(clip_id) from None

    def check(self) -> None:
        with library_errors():
            self._rows.query("", ["id"], 1)
            self._objects.check()

    def list(
        self, limit: int, cursor: str | None = None, filter: Filter | None = None, sort: str = "-created"
    ) -> tuple[list[Clip], str | None]:
        """See Library. A page is limited to half of Milvus' query limit. The order by creation uses the clocks of the
        adding processes, so if these differ, a clip added meanwhile may sort before the cursor.
        """
        _check_count(limit, "limit")
        if sort.removeprefix("-") not in SORT_FIELDS:
            raise ValueError(f"clips are sorted by {', '.join(SORT_FIELDS)}, not by {sort!r}")
        limit = min(limit, self.window // 2)
        after = None if cursor is None else read_cursor(cursor, sort)
        where = expression(parse_filter(filter))
        with library_errors():
            found = page(self._rows.query, limit + 1, where, sort, after, self.window)
            positions = found[:limit]
            clips = self._rows.by_id([clip_id for _, _, clip_id in positions])
        more = write_cursor(positions[-1], sort) if len(found) > limit else None
        return [clips[clip_id] for _, _, clip_id in positions if clip_id in clips], more


def _of_clips(clip_ids: Iterable[str]) -> str:
    """The expression for the segments of these clips."""
    return "clip in [{}]".format(", ".join(f'"{clip_id}"' for clip_id in clip_ids))


class KeyLocks:
    """Per-key locks for threads. Taking several keys cannot deadlock, because all are taken at once."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, keys: Iterable[str]) -> Iterator[None]:
        """Waits until all keys are free and holds them for the block. Not re-entrant."""
        wanted = set(keys)
        with self._changed:
            self._changed.wait_for(lambda: not wanted & self._held)
            self._held |= wanted
        try:
            yield
        finally:
            with self._changed:
                self._held -= wanted
                self._changed.notify_all()


class MonotonicClock:
    """A strictly increasing clock, in microseconds since 1970."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def now(self) -> int:
        """Returns the time, later than all values returned before."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last


def _check_count(count: int, name: str) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
