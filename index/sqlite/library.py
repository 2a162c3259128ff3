"""The library of clips: the only public door to records, vectors and audio files, and to search over them.

SQLite is the truth; the vector index in memory is a cache of it, filled at start. Knows no model, no audio format and
no HTTP. Every method is synchronous and may be called from any thread: one writer at a time, any number of readers.

The order of things is what keeps a crash harmless and a search consistent:

- add: audio on the disk → row committed → searchable. A crash leaves at most an audio file that no row names.
- delete: no longer searchable → row removed and committed → audio file removed. The same leftover at most.
- So whatever FAISS finds has a committed row, and a search, which keeps changes of FAISS out while it looks up the
  records, answers as the library stood at one moment between the search's start and its end.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from index import text as words
from index.filters import parse_filter
from index.new_clip import Prepared, checked_vector, prepare
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
    LibraryInUse,
    NewClip,
    StorageFull,
    check_text,
    dump_metadata,
    merge_patch,
    metadata_facts,
)
from index.segments import SegmentIndex
from index.sqlite import store
from index.sqlite.audio_files import AudioFiles, fsync_folder
from index.sqlite.reader import UNFINISHED
from index.sqlite.recovery import heal
from index.sqlite.reindex import remove_side, side_path, take_over
from index.sqlite.reserve import Reserve
from index.sqlite.store import Store, storage_errors
from index.sqlite.stored import StoredVectors
from index.vectors.index import Limits, VectorIndex

Page = tuple[list[Clip], str | None]  # clips, and the cursor of the next page


class SqliteLibrary:
    """An open library. Make one with `SqliteLibrary.open`; `close` it, or use it as a context manager.

    `healed` says what opening it had to put right, one sentence each; empty after a clean stop.
    """

    healed: list[str]

    def __init__(self, *, folder: Path, lock: int, database: Store, audio: AudioFiles, index: VectorIndex) -> None:
        self.folder = folder
        self.healed = []
        self._lock: int | None = lock
        self._store = database
        self._audio = audio
        self._index = index
        self._segments = SegmentIndex(index.dim)
        self._reserve = Reserve(folder / "reserve")
        self._writing = threading.Lock()
        self._broken: str | None = None

    @classmethod
    def open(
        cls, data_dir: Path, *, dim: int, checkpoint: str, limits: Limits | None = None, gpu: bool = False
    ) -> SqliteLibrary:
        """Opens the library in `data_dir`, or begins one; migrates, heals and makes it searchable.

        `checkpoint` identifies the embedding space and `dim` its dimensions; an empty library adopts them, and one that
        was embedded again for them (see index.sqlite.reindex) changes over. `limits`: when a search takes which way, if not as
        measured. `gpu`: make a large library's search index on a GPU.
        Raises CheckpointMismatch when a library with clips was made by another, LibraryInUse when it is open elsewhere,
        GpuMissing, LibraryError when a newer release wrote it or it cannot be read, StorageFull.
        """
        if dim < 1 or not checkpoint:
            raise ValueError("a library needs a positive dim and the checkpoint's name")
        folder = Path(data_dir)
        with storage_errors(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                fsync_folder(folder.parent)
            lock = _lock_folder(folder)
        try:
            try:
                catalog = cls._open_locked(folder, lock, dim, checkpoint, limits, gpu)
            except StorageFull:
                if not Reserve(folder / "reserve").release():
                    raise
                catalog = cls._open_locked(folder, lock, dim, checkpoint, limits, gpu)
        except BaseException:
            os.close(lock)
            raise
        if not catalog._reserve.restore():
            catalog.healed.append("the disk is full: delete clips or make room")
        return catalog

    @classmethod
    def _open_locked(
        cls, folder: Path, lock: int, dim: int, checkpoint: str, limits: Limits | None, gpu: bool
    ) -> SqliteLibrary:
        with storage_errors(folder):
            audio = AudioFiles(folder / "audio")
            _refuse_lost_database(folder / "catalog.sqlite3", audio)
            database = Store(folder / "catalog.sqlite3")
        try:
            with storage_errors(folder):
                fsync_folder(folder)
                _adopt(database, folder, checkpoint, dim)
                stored = StoredVectors(database, dim)
                index = VectorIndex(dim, stored, stamp=checkpoint, folder=folder / "index", limits=limits, gpu=gpu)
                catalog = cls(folder=folder, lock=lock, database=database, audio=audio, index=index)
                catalog.healed = heal(database, audio)
                catalog._fill_segments()
                catalog.healed += index.fill()  # last: it may go on in the background
            return catalog
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Ends the library's use; a change that is being made is finished first. Closing twice is fine."""
        with self._writing:
            if self._lock is None:
                return
            self._index.close()
            self._store.close()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> SqliteLibrary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill_segments(self) -> None:
        with self._store.read() as view:
            for rows, vectors in store.all_segments(view, self._index.dim):
                self._segments.add(rows, vectors)

    # Changes

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        """Adds a clip: (clip, True), or (the clip that is there, False) when its audio already is.

        When this returns the clip survives a crash and is found by search. Raises InvalidMetadata, StorageFull,
        LibraryError (nothing is kept then), ValueError for vectors of another shape or length.
        """
        return self.add_many([new])[0]

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """`add` for several clips at once, all or none of them; one result for each, in order."""
        prepared = [prepare(clip, self._index.dim, datetime.now(UTC)) for clip in new]
        staged: dict[str, Path] = {}
        try:
            with storage_errors(self.folder):
                self._stage(new, staged)  # before the writer's turn: it is the slow part, and several may do it at once
                with self._writing:
                    self._stage(new, staged)  # of what was deleted since
                    return self._commit(prepared, staged)
        finally:
            for file in staged.values():
                file.unlink(missing_ok=True)

    def _stage(self, new: Sequence[NewClip], staged: dict[str, Path]) -> None:
        """Puts on the disk what audio of `new` neither the library nor `staged` (hash → file) has, into `staged`."""
        for clip in new:
            if clip.sha256 not in staged and not (self.find(clip.sha256) and self._audio.has(clip.sha256)):
                staged[clip.sha256] = self._audio.stage(clip.audio, clip.sha256)

    def _commit(self, prepared: list[Prepared], staged: dict[str, Path]) -> list[tuple[Clip, bool]]:
        """The writer's part of `add_many`: names for the audio, one transaction, FAISS."""
        results: list[tuple[Clip, bool]] = []
        added: dict[int, Prepared] = {}
        placed: list[str] = []
        try:
            with self._store.write() as change:
                known = {item.clip.sha256 for item in prepared if store.by_sha256(change, item.clip.sha256)}
                missing = {s: file for s, file in staged.items() if not self._audio.has(s)}
                placed = [sha256 for sha256 in missing if sha256 not in known]  # ours to take back
                self._audio.place(missing)
                for item in prepared:
                    found = store.by_sha256(change, item.clip.sha256)
                    if found:
                        results.append((found[1], False))
                        continue
                    row = store.insert(
                        change,
                        item.clip,
                        item.metadata,
                        metadata_facts(item.clip.metadata),
                        item.embedding.astype("<f4").tobytes(),
                        item.frame_hop,
                        item.codes,
                        item.segments.to_bytes(),
                    )
                    added[row] = item
                    results.append((item.clip, True))
        except BaseException:
            for sha256 in placed:
                self._audio.remove(sha256)
            raise
        if added:
            with self._index_change("a clip that was added"):
                parts = [item.segments.decode() for item in added.values()]
                self._segments.add(np.repeat(list(added), [len(part) for part in parts]), np.concatenate(parts))
                self._index.add(
                    np.fromiter(added, dtype=np.int64), np.stack([item.embedding for item in added.values()])
                )
        return results

    def delete(self, clip_id: str) -> None:
        """Removes a clip with all that belongs to it, for good when this returns. Raises ClipNotFound."""
        with self._writing:
            row, clip, vector = self._row_and_vector(clip_id)
            with self._store.read() as view:
                segments = FrameCodes.from_bytes(store.segments(view, row), self._index.dim).decode()
            self._index.remove(np.array([row]))
            self._segments.remove(row)
            try:
                self._delete_row(row)
            except BaseException:
                with self._index_change("a clip that could not be deleted"):
                    self._segments.add(np.full(len(segments), row), segments)
                    self._index.add(np.array([row]), vector[None])
                raise
            with suppress(OSError):  # the clip is gone; its file then goes with the next start
                self._audio.remove(clip.sha256)
            self._reserve.restore()

    def _delete_row(self, row: int) -> None:
        """Removes a clip's records, with the room that was kept back for it when the disk is full."""
        try:
            with self._store.write() as change:
                store.delete(change, row)
        except StorageFull:
            if not self._reserve.release():
                raise
            with self._store.write() as change:
                store.delete(change, row)

    def _row_and_vector(self, clip_id: str) -> tuple[int, Clip, np.ndarray]:
        with self._store.read() as view:
            row, clip = _found(store.by_id(view, clip_id), clip_id)
            return row, clip, store.vector(view, row)

    @contextmanager
    def _index_change(self, what: str) -> Iterator[None]:
        """A change of FAISS after the database has its own: failing here leaves the two apart until a restart."""
        try:
            yield
        except BaseException as error:
            self._broken = f"the search index lost {what} and needs a restart: {error}"
            raise LibraryError(self._broken) from error

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """Applies a JSON merge patch (RFC 7396: null removes a key) to a clip's metadata; the clip as it is then.

        Raises ClipNotFound, InvalidMetadata when `changes` is not a JSON object, StorageFull.
        """
        if not isinstance(changes, dict):
            raise InvalidMetadata(f"a metadata patch must be a JSON object, not {type(changes).__name__}")
        with self._writing, self._store.write() as change:
            row, clip = _found(store.by_id(change, clip_id), clip_id)
            text = dump_metadata(merge_patch(clip.metadata, changes))
            changed = replace(clip, metadata=json.loads(text))
            store.replace_metadata(change, row, changed, text, metadata_facts(changed.metadata))
            return changed

    # Questions

    def __len__(self) -> int:
        """How many clips can be found."""
        return len(self._index)

    def get(self, clip_id: str) -> Clip:
        """The clip with this id. Raises ClipNotFound."""
        with self._store.read() as view:
            return _found(store.by_id(view, clip_id), clip_id)[1]

    def find(self, sha256: str) -> Clip | None:
        """The clip whose uploaded file has this SHA-256 (hex), if there is one."""
        with self._store.read() as view:
            found = store.by_sha256(view, sha256)
            return found[1] if found else None

    def search(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips most similar to `vector` (D,), best first; fewer when fewer pass the filter.

        Similarity is the inner product, and the filter is applied before the best are taken; what it may ask is in
        index.filters. Every clip that passes is compared while the library is small or few pass; of a large one those
        that their codes make likely, see index/vectors/index.py. Raises InvalidFilter; ValueError for another shape, no
        numbers, or k < 1.
        """
        _check_count(k, "k")
        query = checked_vector(vector, self._index.dim, "query", unit=False)
        conditions = parse_filter(filter)
        with self._index.reading(), self._store.read() as view:
            only = store.rows_passing(view, conditions) if conditions else None
            rows, similarities = self._index.search(query, k, only)
            clips = store.by_rows(view, rows)
        return [Hit(clips[row], float(s)) for row, s in zip(rows.tolist(), similarities, strict=True)]

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips of which some stretch (index.segments) is most similar to `vector` (D,), best first.

        The hits' similarity is that of the stretch. Filter and errors as in `search`.
        """
        _check_count(k, "k")
        query = checked_vector(vector, self._index.dim, "query", unit=False)
        conditions = parse_filter(filter)
        with self._segments.reading(), self._store.read() as view:
            only = store.rows_passing(view, conditions) if conditions else None
            rows, similarities = self._segments.search(query, k, only)
            clips = store.by_rows(view, rows)
        return [Hit(clips[row], float(s)) for row, s in zip(rows.tolist(), similarities, strict=True)]

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """The k clips whose file name, tags or other metadata have words of `query`, best first by BM25.

        The hits' similarity is theirs to `vector` (D,), as in `search`; it has no part in the order. A query without
        any word finds nothing. Raises as `search` does.
        """
        _check_count(k, "k")
        wanted = checked_vector(vector, self._index.dim, "query", unit=False)
        conditions, match = parse_filter(filter), words.match(query)
        if match is None:
            return []
        with self._store.read() as view:
            found = store.rows_matching(view, match, k, conditions)
            rows = np.array([row for row, _ in found], dtype=np.int64)
            clips, vectors = store.by_rows(view, rows), store.vectors(view, rows)
        return [Hit(clips[row], float(vectors[row] @ wanted)) for row, _ in found]

    def clip_vector(self, clip_id: str) -> np.ndarray:
        """The clip's embedding (D,) float32, unit length. Raises ClipNotFound."""
        return self._row_and_vector(clip_id)[2]

    def frames(self, clip_id: str) -> tuple[np.ndarray, float]:
        """The clip's frame embeddings (T, D) float32, as precise as index/quantization.py says, and their hop in seconds."""
        codes, hop = self.frame_codes(clip_id)
        return codes.decode(), hop

    def frame_codes(self, clip_id: str) -> tuple[FrameCodes, float]:
        """`frames`, not decoded yet: for long clips, a stretch at a time. Raises ClipNotFound."""
        with self._store.read() as view:
            row, _ = _found(store.by_id(view, clip_id), clip_id)
            codes, hop = store.frame_codes(view, row)
        return FrameCodes.from_bytes(codes, self._index.dim), hop

    def frame_codes_of(self, clip_ids: Sequence[str]) -> dict[str, tuple[FrameCodes, float]]:
        """`frame_codes` of several clips, by id, of those that are there."""
        with self._store.read() as view:
            found = store.frame_codes_of(view, clip_ids)
        return {clip_id: (FrameCodes.from_bytes(codes, self._index.dim), hop) for clip_id, codes, hop in found}

    def audio_path(self, clip_id: str) -> Path:
        """Where the uploaded file is, to be opened soon: a delete removes it. Raises ClipNotFound, AudioMissing."""
        path = self._audio.path(self.get(clip_id).sha256)
        if not path.is_file():
            raise AudioMissing(clip_id)
        return path

    def check(self) -> None:
        """Raises LibraryError unless the database answers, is the one that was opened, and the index searches."""
        self._store.check()
        if self._broken:
            raise LibraryError(self._broken)
        self._index.check()

    def list(self, limit: int, cursor: str | None = None, filter: Filter | None = None, sort: str = "-created") -> Page:
        """A page of clips and the cursor of the next page (None on the last).

        `sort`: created, filename or duration, with a minus for the reverse; a cursor goes with the sort that it came
        from. Following the cursors meets every clip that passes and stays exactly once, whatever comes and goes
        meanwhile; newest first, clips added after the first page are not among them. Raises InvalidCursor,
        InvalidFilter; ValueError for a limit below 1 and an unknown sort.
        """
        _check_count(limit, "limit")
        by, descending = sort.removeprefix("-"), sort.startswith("-")
        after = None if cursor is None else _read_cursor(cursor, sort)
        conditions = parse_filter(filter)
        with self._store.read() as view:
            found = store.page(view, limit + 1, conditions, by=by, descending=descending, after=after)
        page = found[:limit]
        return [clip for _, clip in page], _make_cursor(*page[-1], sort) if len(found) > limit else None


def _lock_folder(folder: Path) -> int:
    """Takes the folder for this catalog until the descriptor is closed, by us or by the system when we die."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LibraryInUse(f"the library in {folder} is already open, in this process or another") from None
    return descriptor


def _refuse_lost_database(path: Path, audio: AudioFiles) -> None:
    """The database is made before the first audio file: files without it are a library that lost it, not leftovers."""
    if not path.exists() and (path.parent / UNFINISHED).exists():
        raise LibraryError(f"{path.parent} was not restored to the end: run finelap restore again")
    if (not path.exists() or not path.stat().st_size) and any(True for _ in audio.names()):
        raise LibraryError(
            f"{audio.root} has audio files and {path.name} is not there or empty: put the database back, or move the "
            "files away"
        )


def _adopt(database: Store, folder: Path, checkpoint: str, dim: int) -> None:
    """Makes the checkpoint the library's own when it has no clips or all were embedded again, or checks that it is."""
    with database.read() as view:
        found, clips = store.stamp(view), store.count(view)
    if found == (checkpoint, dim):
        remove_side(folder, checkpoint)  # left by a crash right after it was taken over
        return
    if found and clips:
        missing = take_over(database, folder, checkpoint, dim) if side_path(folder, checkpoint).is_file() else None
        if missing == 0:
            return
        raise CheckpointMismatch(
            library=found[0], library_dim=found[1], opened_with=checkpoint, dim=dim, clips=clips, missing=missing
        )
    with database.write() as change:
        store.set_stamp(change, checkpoint, dim)


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
    """(value, row) of the clip that the cursor stands on."""
    refused = InvalidCursor(f"not a cursor of this library, sorted by {sort}: {cursor[:200]!r}")
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        its_sort, value, row = json.loads(text, parse_constant=_no_number)
        check_text(str(value), "a cursor")
    except (ValueError, TypeError, RecursionError, InvalidMetadata) as error:
        raise refused from error
    kind = {"created": int, "filename": str, "duration": float}.get(sort.removeprefix("-"))
    if its_sort != sort or type(row) is not int or not 0 <= row < 2**63 or type(value) is not kind:
        raise refused
    if kind is int and value != row:
        raise refused
    return value, row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")
