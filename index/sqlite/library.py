"""A library of clips in a local folder: records and vectors in SQLite, audio files, and search with FAISS.

SQLite is the source of truth; the vector index in memory is a cache of it, filled at start. All methods block and may
be called from any thread: one writer at a time, any number of readers.

The order of writes makes crashes harmless and searches consistent:

- add: audio file on disk → row committed → searchable. A crash leaves at most an audio file without a row.
- delete: no longer searchable → row deleted and committed → audio file removed. A crash leaves the same.
- Everything that FAISS finds therefore has a committed row. A search blocks changes of the index while it reads the
  records, so its result is the library's state at one moment between the search's start and end.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from index.edits import ClipEdit, Facet, check_patch
from index.files import fsync_folder, in_use, lock_file
from index.filters import parse_filter
from index.new_clip import EncodedClip, check_vector, encode_clip
from index.objects import open_objects
from index.quantization import FrameCodes
from index.records import (
    AudioMissing,
    CheckpointMismatch,
    Clip,
    ClipNotFound,
    Filter,
    Hit,
    InvalidCursor,
    InvalidMetadata,
    LibraryError,
    NewClip,
    StorageFull,
    check_text,
)
from index.segments import LONG_SECONDS, SegmentIndexes
from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles, AudioObjects
from index.sqlite.concepts import SqliteConcepts
from index.sqlite.jobs import SqliteJobs
from index.sqlite.queries import SqliteVectors
from index.sqlite.recovery import recover
from index.sqlite.reindex import remove_side, side_path, take_over
from index.sqlite.store import AUDIO_FOLDER, DATABASE_FILE, RESTORING_FILE, Store, storage_errors
from index.text import fts_query, stem_words, words_of
from index.vectors.index import Limits, VectorIndex

log = logging.getLogger(__name__)

Page = tuple[list[Clip], str | None]  # clips, and the cursor of the next page

_SIMILAR_STEMS = 30  # stems whose words are compared with an unknown word
_TEXTS_PER_STEM = 5  # that are read for its words
_MAX_READING = 0.02  # share of the time that reading all terms may take
_RESERVE_BYTES = 1 << 20  # a delete writes some pages of 4 KiB; opening a library, a shared memory file of 32 KiB


class SqliteLibrary:
    """An open library. Create one with `SqliteLibrary.open`; `close` it, or use it as a context manager.

    `recovery_report` lists what opening it repaired or found missing; empty after a clean stop.
    """

    recovery_report: list[str]

    def __init__(self, *, folder: Path, lock: int, database: Store, audio: AudioFiles, index: VectorIndex) -> None:
        self.folder = folder
        self.recovery_report = []
        self._lock: int | None = lock
        self._store = database
        self._audio = audio
        self._index = index
        self._segments = SegmentIndexes(index.dim)
        self._filled = threading.Event()  # set once the segments of short clips are in memory, or lost
        self._reserve = DiskReserve(folder / "reserve")
        self._writing = threading.Lock()
        self.concepts = SqliteConcepts(database, index.dim, self._writing)
        self._broken: str | None = None
        self._changes = 0  # of clips' words
        self._terms = TermCache()
        self.jobs = SqliteJobs(database, self._writing, index.dim)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        dim: int,
        checkpoint: str,
        files: str = "",
        limits: Limits | None = None,
        gpu: bool = False,
    ) -> SqliteLibrary:
        """Opens or creates the library in `data_dir`: migrates it, recovers from a crash and fills the search index.

        `checkpoint` identifies the embedding space and `dim` its dimensions. An empty library adopts them, and a
        library that was re-embedded for them (index.sqlite.reindex) switches to them. `files`: an fsspec address such
        as s3://bucket/prefix where audio is stored instead of `data_dir`, which then caches what is fetched. `limits`
        overrides the measured limits of the vector index; `gpu` builds the index of a large library on a GPU.

        Raises CheckpointMismatch if another checkpoint made the library's clips, LibraryInUse if it is open already,
        GpuMissing, StorageFull, and LibraryError if it cannot be read or a newer release wrote it.
        """
        if dim < 1 or not checkpoint:
            raise ValueError("a library needs a positive dim and a checkpoint")
        folder = Path(data_dir)
        with storage_errors(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                fsync_folder(folder.parent)
            lock = lock_file(folder / "lock", in_use(folder))
        try:
            try:
                library = cls._open_locked(folder, lock, (dim, checkpoint), files, limits, gpu)
            except StorageFull:
                if not DiskReserve(folder / "reserve").release():
                    raise
                library = cls._open_locked(folder, lock, (dim, checkpoint), files, limits, gpu)
        except BaseException:
            os.close(lock)
            raise
        if not library._reserve.allocate():
            library.recovery_report.append("the disk is full: delete clips or free space")
        return library

    @classmethod
    def _open_locked(
        cls, folder: Path, lock: int, stamp: tuple[int, str], files: str, limits: Limits | None, gpu: bool
    ) -> SqliteLibrary:
        dim, checkpoint = stamp
        with storage_errors(folder):
            audio = AudioFiles(folder / AUDIO_FOLDER)
            if files:
                audio = AudioObjects(folder / AUDIO_FOLDER, open_objects(files, folder / "fetched"))
            _check_database_exists(folder, audio)
            database = Store(folder / DATABASE_FILE)
        index = None
        try:
            with storage_errors(folder):
                fsync_folder(folder)
                _match_checkpoint(database, folder, checkpoint, dim)
                stored = SqliteVectors(database, dim)
                index = VectorIndex(dim, stored, stamp=checkpoint, folder=folder / "index", limits=limits, gpu=gpu)
                library = cls(folder=folder, lock=lock, database=database, audio=audio, index=index)
                with ThreadPoolExecutor(1) as beside:  # files and codes of a million clips take about a second each
                    recovery = beside.submit(recover, database, audio)
                    last = library._fill_long()
                    found = index.fill()  # may start a background build
                library.recovery_report = recovery.result() + found
                threading.Thread(target=library._fill_short, args=(last + 1,), name="segments", daemon=True).start()
            return library
        except BaseException:
            if index is not None:
                index.close()
            database.close()
            raise

    def close(self) -> None:
        """Closes the library after the change in progress, if any. Idempotent."""
        with self._writing:
            if self._lock is None:
                return
            self._index.close()
            self._store.close()
            self._audio.close()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> SqliteLibrary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill_long(self) -> int:
        """Reads the segments of long clips, which every search needs. Returns the highest row."""
        with self._store.read() as view:
            for rows, vectors, seconds in queries.long_segments(view, self._index.dim, LONG_SECONDS):
                self._segments.add(rows, vectors, seconds)
            return queries.last_row(view)

    def _fill_short(self, stop: int) -> None:
        """Reads the segments of short clips in rows below `stop`, which only `search_segments` needs.

        It runs on a thread of its own; changes wait for a thousand clips at most.
        """
        first = 1
        try:
            while first < stop:
                with self._writing:  # so that no clip is deleted between reading and adding
                    if self._lock is None:
                        return
                    with self._index_change("the segments of short clips"), self._store.read() as view:
                        found, last = queries.short_segments(view, self._index.dim, LONG_SECONDS, range(first, stop))
                        if found is not None:
                            self._segments.add(*found)
                first = last + 1
        except LibraryError:
            log.exception("the segments of short clips cannot be read")
        finally:
            self._filled.set()

    # Changes

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        """Adds a clip: returns (clip, True), or (existing clip, False) if its audio is in the library already.

        When this returns, the clip survives a crash and searches find it. Raises InvalidMetadata, StorageFull,
        LibraryError (nothing is stored then), ValueError for vectors of the wrong shape or length.
        """
        return self.add_many([new])[0]

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """`add` for several clips, all or none of them; one result each, in order."""
        encoded = [encode_clip(clip, self._index.dim, datetime.now(UTC)) for clip in new]
        staged: dict[str, Path] = {}
        try:
            with storage_errors(self.folder):
                self._stage(new, staged)  # outside the lock: it is the slow part, and several callers may stage at once
                with self._writing:
                    self._stage(new, staged)  # what was deleted in the meantime
                    return self._commit(encoded, staged)
        finally:
            for file in staged.values():
                file.unlink(missing_ok=True)

    def _stage(self, new: Sequence[NewClip], staged: dict[str, Path]) -> None:
        """Writes audio that neither the library nor `staged` (hash → file) has to disk, and adds it to `staged`."""
        with self._store.read() as view:
            there = queries.by_hashes(view, [clip.sha256 for clip in new])
        missing = {
            clip.sha256: clip
            for clip in reversed(new)  # of several with the same audio the first
            if clip.sha256 not in staged and not (clip.sha256 in there and self._audio.has(clip.sha256))
        }

        def stage(clip: NewClip) -> None:
            if clip.reference is not None:
                staged[clip.sha256] = self._audio.stage_reference(clip.reference)
            else:
                staged[clip.sha256] = self._audio.stage(clip.audio, clip.sha256)

        self._audio.side_by_side(stage, missing.values())

    def _commit(self, encoded: list[EncodedClip], staged: dict[str, Path]) -> list[tuple[Clip, bool]]:
        """Renames the staged audio, inserts the clips in one transaction and adds them to the indexes."""
        self._changes += 1
        results: list[tuple[Clip, bool]] = []
        added: dict[int, EncodedClip] = {}
        placed: list[str] = []
        try:
            with self._store.write() as change:
                known = {item.clip.sha256 for item in encoded if queries.by_sha256(change, item.clip.sha256)}
                missing = {s: file for s, file in staged.items() if not self._audio.has(s)}
                placed = [sha256 for sha256 in missing if sha256 not in known]  # to be removed if the transaction fails
                self._audio.place(missing)
                for item in encoded:
                    found = queries.by_sha256(change, item.clip.sha256)
                    if found:
                        results.append((found[1], False))
                        continue
                    added[queries.insert(change, item)] = item
                    results.append((item.clip, True))
        except BaseException:
            for sha256 in placed:
                self._audio.remove(sha256)
            raise
        if added:
            with self._index_change("an added clip"):
                parts = [item.segments.decode() for item in added.values()]
                counts = [len(part) for part in parts]
                seconds = np.repeat([item.clip.duration for item in added.values()], counts)
                self._segments.add(np.repeat(list(added), counts), np.concatenate(parts), seconds)
                self._index.add(
                    np.fromiter(added, dtype=np.int64), np.stack([item.embedding for item in added.values()])
                )
        return results

    def delete(self, clip_id: str) -> None:
        """Deletes a clip and everything that belongs to it, durably when this returns. Raises ClipNotFound."""
        with self._writing:
            row, clip, vector = self._row_and_vector(clip_id)
            with self._store.read() as view:
                segments = FrameCodes.from_bytes(queries.segments(view, row), self._index.dim).decode()
            self._changes += 1
            self._index.remove(np.array([row]))
            self._segments.remove(row)
            try:
                self._delete_row(row)
            except BaseException:
                with self._index_change("a clip whose deletion failed"):
                    self._segments.add(np.full(len(segments), row), segments, np.full(len(segments), clip.duration))
                    self._index.add(np.array([row]), vector[None])
                raise
            with suppress(OSError):  # recovery removes the file at the next start
                self._audio.remove(clip.sha256)
            self._reserve.allocate()

    def _delete_row(self, row: int) -> None:
        """Deletes a clip's rows; on a full disk, with the space that the reserve frees."""
        try:
            with self._store.write() as change:
                queries.delete(change, row)
        except StorageFull:
            if not self._reserve.release():
                raise
            with self._store.write() as change:
                queries.delete(change, row)

    def _row_and_vector(self, clip_id: str) -> tuple[int, Clip, np.ndarray]:
        with self._store.read() as view:
            row, clip = _found(queries.by_id(view, clip_id), clip_id)
            return row, clip, queries.vector(view, row)

    @contextmanager
    def _index_change(self, what: str) -> Iterator[None]:
        """Guards a change of the index after its commit: after a failure, the two differ until a restart."""
        try:
            yield
        except BaseException as error:
            self._broken = f"the search index lost {what}; restart the service: {error}"
            raise LibraryError(self._broken) from error

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """Applies a JSON merge patch (RFC 7396: null removes a key) to a clip's metadata and returns the changed clip.

        Raises ClipNotFound, InvalidMetadata if `changes` is not a JSON object, StorageFull.
        """
        changed = self.edit([clip_id], ClipEdit(check_patch(changes)))
        if clip_id not in changed:
            raise ClipNotFound(clip_id)
        return changed[clip_id]

    def edit(self, clip_ids: Sequence[str], edit: ClipEdit) -> dict[str, Clip]:
        """Applies the same change to several clips, all or none of those that exist, and returns them by id.

        Raises InvalidMetadata, StorageFull.
        """
        changed: dict[str, Clip] = {}
        with self._writing, self._store.write() as change:
            self._changes += 1
            for clip_id in dict.fromkeys(clip_ids):
                found = queries.by_id(change, clip_id)
                if found is not None:
                    clip, metadata = edit.apply(found[1])
                    queries.replace_record(change, found[0], clip, metadata)
                    changed[clip_id] = clip
        return changed

    # Reads

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self._index)

    def get(self, clip_id: str) -> Clip:
        """Returns the clip with this id. Raises ClipNotFound."""
        with self._store.read() as view:
            return _found(queries.by_id(view, clip_id), clip_id)[1]

    def find(self, sha256: str) -> Clip | None:
        """Returns the clip whose uploaded file has this SHA-256 (hex), or None."""
        with self._store.read() as view:
            found = queries.by_sha256(view, sha256)
            return found[1] if found else None

    def find_many(self, hashes: Sequence[str]) -> dict[str, Clip]:
        """`find` for several hashes in one query: the existing clips by hash."""
        with self._store.read() as view:
            return queries.by_hashes(view, hashes)

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """Returns the k clips with the segment (index.segments) most similar to `vector` (D,), best first.

        A hit's similarity is that of its segment. Filter and errors as in `nearest`. Right after `open`, waits until
        all segments are in memory.
        """
        self._filled.wait()
        if self._broken:
            raise LibraryError(self._broken)
        with self._searching(self._segments, vector, k, filter) as (view, query, only):
            rows, similarities = self._segments.search(query, k, only)
            clips = queries.by_rows(view, rows)
        return [Hit(clips[row], float(s)) for row, s in zip(rows.tolist(), similarities, strict=True)]

    def nearest(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        """Returns the k clips most similar to `vector` (D,), best first: ids and similarities of at least `least`.

        Similarity is the inner product. The filter (index.filters) applies before ranking. The search is exact while
        the library is small or few clips pass, otherwise approximate: see index/vectors/index.py. Raises
        InvalidFilter, and ValueError for a vector of the wrong shape or not finite, or k < 1.
        """
        with self._searching(self._index, vector, k, filter) as (view, query, only):
            rows, similarities = self._index.search(query, k, only)
            enough = similarities >= least
            return _with_ids(view, rows[enough], similarities[enough])

    def nearest_segments(
        self, vector: np.ndarray, k: int, filter: Filter | None = None, least: float = -np.inf
    ) -> list[tuple[str, float]]:
        """Returns `nearest` by the most similar segment of each clip, of clips longer than LONG_SECONDS only."""
        with self._searching(self._segments, vector, k, filter) as (view, query, only):
            return _with_ids(view, *self._segments.search_long(query, k, only, least=least))

    @contextmanager
    def _searching(
        self, index: VectorIndex | SegmentIndexes, vector: np.ndarray, k: int, filter: Filter | None
    ) -> Iterator[tuple[sqlite3.Connection, np.ndarray, np.ndarray | None]]:
        """What a search of the index takes: the view to read in, the query (D,) and the rows that pass, if not all."""
        _check_count(k, "k")
        query = check_vector(vector, self._index.dim, "query", unit=False)
        conditions = parse_filter(filter)
        with index.reading(), self._store.read() as view:
            yield view, query, queries.rows_passing(view, conditions) if conditions else None

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """Returns the k clips whose file name, tags or other metadata contain words of `query`, best first by BM25.

        A hit's similarity is that of its clip to `vector` (D,) and does not affect the order. A query without words
        returns nothing. Errors as in `nearest`.
        """
        _check_count(k, "k")
        wanted = check_vector(vector, self._index.dim, "query", unit=False)
        conditions, match = parse_filter(filter), fts_query(query)
        if match is None:
            return []
        with self._store.read() as view:
            found = queries.rows_matching(view, match, k, conditions)
            rows = np.array([row for row, _ in found], dtype=np.int64)
            clips = queries.by_rows(view, rows)
        similarities = self._index.similarities(wanted, rows)
        return [Hit(clips[row], similarities[row]) for row, _ in found if row in similarities]

    def word_counts(self, words: Sequence[str]) -> dict[str, int]:
        """Returns the number of clips with each word in file name, tags or other metadata, compared by stem."""
        stems = stem_words(words)
        with self._store.read() as view:
            counts = queries.count_terms(view, stems)
        return {word: counts.get(stem, 0) for word, stem in zip(words, stems, strict=True)}

    def similar_words(self, word: str, distance: int) -> dict[str, int]:
        """Returns words of the clips within `distance` edits of `word` (lower case), with their numbers of clips.

        Stems are compared first, one edit more generously, and then the words that clips spell with these stems.
        """
        from rapidfuzz.distance import DamerauLevenshtein
        from rapidfuzz.process import extract

        (stem,) = stem_words([word])
        with self._store.read() as view:
            terms = self._terms.read(view, self._changes)
            near = extract(
                stem, list(terms), scorer=DamerauLevenshtein.distance, score_cutoff=distance + 1, limit=_SIMILAR_STEMS
            )
            texts = {term: queries.texts_with(view, term, _TEXTS_PER_STEM) for term, _, _ in near}
        found: dict[str, int] = {}
        for term, own in texts.items():
            spelled = list(dict.fromkeys(other for text in own for other in words_of(text)))
            for other, its_stem in zip(spelled, stem_words(spelled), strict=True):
                if its_stem == term and DamerauLevenshtein.distance(word, other, score_cutoff=distance) <= distance:
                    found[other] = terms[term]
        return found

    def facets(self, keys: Sequence[str], filter: Filter | None = None, limit: int = 100) -> dict[str, Facet]:
        """Returns the most frequent values of metadata keys and record fields among the clips that pass."""
        _check_count(limit, "limit")
        conditions = parse_filter(filter)
        with self._store.read() as view:
            return {key: queries.facet(view, key, conditions, limit) for key in keys}

    def clips(self, clip_ids: Sequence[str]) -> dict[str, Clip]:
        """Returns the existing clips by id."""
        with self._store.read() as view:
            return queries.by_ids(view, clip_ids)

    def similarities(self, clip_ids: Sequence[str], vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Returns for each existing clip its similarities (2, Q) to vectors (Q, D): the clip's, its best segment's.

        The latter is NaN for clips up to LONG_SECONDS.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        found = {}
        with self._store.read() as view:
            for clip_id, embedding, codes in queries.vectors_and_segments(view, clip_ids, LONG_SECONDS):
                best = np.full(len(vectors), np.nan, np.float32)
                if codes is not None:
                    best = (FrameCodes.from_bytes(codes, self._index.dim).decode() @ vectors.T).max(axis=0)
                found[clip_id] = np.stack([vectors @ embedding, best])
        return found

    def clip_vector(self, clip_id: str) -> np.ndarray:
        """Returns the clip's embedding (D,) float32, unit length. Raises ClipNotFound."""
        return self._row_and_vector(clip_id)[2]

    def frames(self, clip_id: str) -> tuple[np.ndarray, float]:
        """Returns the decoded frame embeddings (T, D) float32 and their hop in seconds. Raises ClipNotFound."""
        codes, hop = self.frame_codes(clip_id)
        return codes.decode(), hop

    def frame_codes(self, clip_id: str) -> tuple[FrameCodes, float]:
        """Returns the quantised frames and their hop in seconds; decode long clips in parts. Raises ClipNotFound."""
        with self._store.read() as view:
            row, _ = _found(queries.by_id(view, clip_id), clip_id)
            codes, hop = queries.frame_codes(view, row)
        return FrameCodes.from_bytes(codes, self._index.dim), hop

    def frame_codes_of(self, clip_ids: Sequence[str]) -> dict[str, tuple[FrameCodes, float]]:
        """Returns `frame_codes` of the existing clips, by id."""
        with self._store.read() as view:
            found = queries.frame_codes_of(view, clip_ids)
        return {clip_id: (FrameCodes.from_bytes(codes, self._index.dim), hop) for clip_id, codes, hop in found}

    def audio_path(self, clip_id: str) -> Path:
        """Returns the uploaded file's path, which a delete removes. Raises ClipNotFound, AudioMissing."""
        sha256 = self.get(clip_id).sha256
        with storage_errors(self.folder):
            path = self._audio.find(sha256)
        if path is None:
            raise AudioMissing(clip_id)
        return path

    def allow_references(self, roots: Sequence[Path]) -> None:
        """Lets clips' audio be in these folders; references to files elsewhere count as missing."""
        self._audio.roots = tuple(Path(os.path.realpath(root)) for root in roots)

    def refer(self, clip_id: str, file: Path) -> None:
        """Makes the clip's audio the file at this path, which has its SHA-256, unless the library has a copy.

        Raises ClipNotFound, LibraryError.
        """
        with self._writing, storage_errors(self.folder):
            sha256 = self.get(clip_id).sha256
            if not self._audio.is_copy(sha256):
                self._audio.place({sha256: self._audio.stage_reference(file)})

    def check(self) -> None:
        """Raises LibraryError if the database does not respond, was replaced, or the index cannot search."""
        self._store.check()
        if self._broken:
            raise LibraryError(self._broken)
        self._index.check()
        with storage_errors(self.folder):
            self._audio.check()

    def list(self, limit: int, cursor: str | None = None, filter: Filter | None = None, sort: str = "-created") -> Page:
        """Returns a page of clips and the cursor of the next page (None on the last).

        `sort`: created, filename or duration, with a leading minus for descending order; a cursor is valid for its own
        sort only. Following the cursors returns every clip that passes and is not deleted exactly once, whatever is
        added or deleted meanwhile; sorted by -created, clips added after the first page are not included. Raises
        InvalidCursor, InvalidFilter, and ValueError for a limit below 1 or an unknown sort.
        """
        _check_count(limit, "limit")
        by, descending = sort.removeprefix("-"), sort.startswith("-")
        after = None if cursor is None else _read_cursor(cursor, sort)
        conditions = parse_filter(filter)
        with self._store.read() as view:
            found = queries.page(view, limit + 1, conditions, by=by, descending=descending, after=after)
        page = found[:limit]
        return [clip for _, clip in page], _make_cursor(*page[-1], sort) if len(found) > limit else None


class TermCache:
    """The terms of the full-text index. After a change they are read again, but for at most 2 % of the time."""

    def __init__(self) -> None:
        self._terms: dict[str, int] = {}
        self._changes, self._until = -1, 0.0

    def read(self, view: sqlite3.Connection, changes: int) -> dict[str, int]:
        """The terms and their numbers of clips; `changes` counts the changes of the library."""
        began = time.monotonic()
        if changes != self._changes and began >= self._until:
            self._terms = queries.all_terms(view)
            ended = time.monotonic()
            self._changes, self._until = changes, ended + (ended - began) / _MAX_READING
        return self._terms


class DiskReserve:
    """A file that reserves disk space, so that a library on a full disk can still be opened and clips deleted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def allocate(self) -> bool:
        """Creates the file unless it exists. Returns False if there is no space for it."""
        if self._path.exists():
            return True
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:  # only a convenience: the caller's own writes report what is wrong with the disk
            self._path.unlink(missing_ok=True)
            return False
        return True

    def release(self) -> bool:
        """Removes the file. Returns False if it does not exist."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def _with_ids(view: sqlite3.Connection, rows: np.ndarray, similarities: np.ndarray) -> list[tuple[str, float]]:
    ids = queries.ids(view, rows)
    return [(ids[row], similarity) for row, similarity in zip(rows.tolist(), similarities.tolist(), strict=True)]


def _check_database_exists(folder: Path, audio: AudioFiles) -> None:
    """Raises LibraryError for audio files without a database, which is created first and so must have been lost."""
    path = folder / DATABASE_FILE
    if not path.exists() and (folder / RESTORING_FILE).exists():
        raise LibraryError(f"the restore to {folder} is incomplete: run finelap restore (or import) again")
    if (not path.exists() or not path.stat().st_size) and any(True for _ in audio.names()):
        raise LibraryError(
            f"{audio.root} has audio files, but {path.name} is missing or empty: put the database back, or move the "
            "files away"
        )


def _match_checkpoint(database: Store, folder: Path, checkpoint: str, dim: int) -> None:
    """Makes an empty or fully re-embedded library adopt the checkpoint, or raises CheckpointMismatch."""
    with database.read() as view:
        found, clips = queries.stamp(view), queries.count(view) + queries.count_sounds(view)
    if found == (checkpoint, dim):
        remove_side(folder, checkpoint)  # left by a crash right after the takeover
        return
    if found and clips:
        missing = take_over(database, folder, checkpoint, dim) if side_path(folder, checkpoint).is_file() else None
        if missing == 0:
            return
        raise CheckpointMismatch(
            library=found[0], library_dim=found[1], opened_with=checkpoint, dim=dim, clips=clips, missing=missing
        )
    with database.write() as change:
        queries.set_stamp(change, checkpoint, dim)


def _found(found: tuple[int, Clip] | None, clip_id: str) -> tuple[int, Clip]:
    if found is None:
        raise ClipNotFound(clip_id)
    return found


def _check_count(count: int, name: str) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")


def _make_cursor(row: int, clip: Clip, sort: str) -> str:
    value = {"created": row, "filename": clip.filename, "duration": clip.duration}[sort.removeprefix("-")]
    return base64.urlsafe_b64encode(json.dumps([sort, value, row]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, sort: str) -> tuple[object, int]:
    """Returns the (sort value, row) of the last clip of the cursor's page."""
    refused = InvalidCursor(f"invalid cursor for sort={sort}: {cursor[:200]!r}")
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        its_sort, value, row = json.loads(text, parse_constant=_reject_constant)
        check_text(str(value), "a cursor")
    except (ValueError, TypeError, RecursionError, InvalidMetadata) as error:
        raise refused from error
    kind = {"created": int, "filename": str, "duration": float}.get(sort.removeprefix("-"))
    if its_sort != sort or type(row) is not int or not 0 <= row < 2**63 or type(value) is not kind:
        raise refused
    if kind is int and value != row:
        raise refused
    return value, row


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")
