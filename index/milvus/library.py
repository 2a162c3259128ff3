"""The library of clips in Milvus, which any number of processes share; audio and frames are objects beside it.

Fulfils index.library.Library. Knows no model, no audio format and no HTTP. Nothing is remembered here between calls,
so what one process has changed the others see. The order of things is what keeps a crash harmless without any lock
between processes:

- add: audio and frames as objects of their own → segments → row. A crash leaves at most objects and segments that no
  row names, and a search for segments passes over those.
- delete: row → segments and objects → row again, in case somebody who had read it wrote it back. The same leftovers.
- Every object belongs to one row, by its name, so no process removes what another has just written.
- The same audio added by two processes at one moment makes two rows. Each looks after it has written; who sees
  another's row takes its own back and tries again, so at most one of them is told that it added the clip.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from index.filters import parse_filter
from index.milvus import pages as milvus_pages
from index.milvus import words as milvus_words
from index.milvus.claims import Claims, Clock
from index.milvus.client import connect, library_errors, segments_of, take
from index.milvus.collection import MOST, Collection
from index.milvus.filters import expression
from index.milvus.objects import Objects, open_objects
from index.milvus.schema import (
    RECORD,
    SORTED_BY,
    Prepared,
    audio_object,
    describe,
    frames_object,
    prepare,
    read_clip,
    read_vector,
    segment_ids,
)
from index.milvus.url import parse_milvus_url
from index.new_clip import checked_vector
from index.quantization import FrameCodes
from index.records import (
    AudioMissing,
    Clip,
    ClipNotFound,
    Filter,
    Hit,
    InvalidMetadata,
    LibraryError,
    NewClip,
    dump_metadata,
    merge_patch,
)

_ATTEMPTS = 8  # at adding what others add at the same moment
_MOST_EF = 32_768
_FEW = 2000  # clips that a search for segments can be told by name
_PER_CLIP = 4  # segments looked up for each clip that is wanted, at first


class MilvusLibrary:
    """An open library in Milvus. Make one with `MilvusLibrary.open`; `close` it. Methods are told in Library."""

    window = milvus_pages.WINDOW

    def __init__(self, rows: Collection, segments: Collection, objects: Objects, dim: int, index: str) -> None:
        self._rows, self._segments = rows, segments
        self._index = index
        self._objects = objects
        self._dim = dim
        self._claims = Claims()
        self._clock = Clock()

    @classmethod
    def open(cls, url: str, data_dir: Path, *, dim: int, checkpoint: str) -> MilvusLibrary:
        """Opens the library at a milvus:// address (see index.milvus.url), or begins one.

        Audio and frames are in `data_dir`, which all processes must see as the same folder, unless the address names
        another place; then `data_dir` holds copies of what was fetched. Raises CheckpointMismatch when another
        checkpoint made the library (also while it is empty), LibraryError, ValueError for the address.
        """
        if dim < 1 or not checkpoint:
            raise ValueError("a library needs a positive dim and the checkpoint's name")
        parts = parse_milvus_url(url)
        client = connect(parts)
        try:
            with library_errors():
                objects = open_objects(parts.files or str(data_dir), Path(data_dir) / "fetched")
            take(client, parts, dim, checkpoint)
        except BaseException:
            client.close()
            raise
        rows = Collection(client, parts.collection, parts.consistency)
        segments = Collection(client, segments_of(parts.collection), parts.consistency)
        return cls(rows, segments, objects, dim, parts.index)

    def close(self) -> None:
        self._segments.close()
        self._rows.close()

    # Changes

    def add(self, new: NewClip) -> tuple[Clip, bool]:
        return self.add_many([new])[0]

    def add_many(self, new: Sequence[NewClip]) -> list[tuple[Clip, bool]]:
        """See Library. All go in one request, so Milvus' limit of one (64 MB, some thousand clips) is that of `new`."""
        prepared = [prepare(item, self._dim, self._clock.now()) for item in new]
        unique: dict[str, Prepared] = {}
        for item in prepared:
            unique.setdefault(item.clip.sha256, item)
        with library_errors(), self._claims.hold(unique):
            for attempt in range(_ATTEMPTS):
                found = self._try_to_add(unique)
                if found is not None:
                    return [(found[i.clip.sha256], found[i.clip.sha256] is i.clip) for i in prepared]
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise LibraryError("others keep adding the same audio at the same time; try again")

    def _try_to_add(self, items: dict[str, Prepared]) -> dict[str, Clip] | None:
        """The clips that there are then, by hash; None when another process added one of them at the same moment."""
        there = self._rows.by_sha256(items)
        fresh = {sha256: item for sha256, item in items.items() if sha256 not in there}
        try:
            for sha256, item in items.items():
                self._put(item, there.get(sha256, item.clip))
            if fresh:
                self._segments.write([part for item in fresh.values() for part in item.segments])
                self._rows.write([item.row for item in fresh.values()])
            ours = {item.clip.id for item in fresh.values()}
            others = [row for row in self._rows.rows_of(fresh) if row["id"] not in ours]
        except BaseException:
            self._take_back(fresh)
            raise
        if others:
            self._take_back(fresh)
            return None
        return there | {sha256: item.clip for sha256, item in fresh.items()}

    def _put(self, item: Prepared, clip: Clip) -> None:
        """Writes the objects of a clip that are not there."""
        audio, frames = audio_object(clip), frames_object(clip)
        if not self._objects.has(audio) and self._objects.put(audio, item.audio) != clip.sha256:
            self._objects.remove(audio)
            raise ValueError(f"the audio's SHA-256 is not {clip.sha256!r}")
        if not self._objects.has(frames):
            self._objects.put(frames, item.frames)

    def _take_back(self, items: dict[str, Prepared]) -> None:
        """Undoes an addition as far as that can be done now; what is left is a row that is whole, or objects."""
        with suppress(LibraryError, OSError), library_errors():
            self._rows.erase([item.clip.id for item in items.values()])
            for item in items.values():
                self._forget(item.clip, len(item.segments))

    def _forget(self, clip: Clip, segments: int) -> None:
        self._segments.erase(segment_ids(clip.id, segments))
        self._objects.remove(frames_object(clip))
        self._objects.remove(audio_object(clip))

    def delete(self, clip_id: str) -> None:
        with library_errors(), self._claims.hold([clip_id]):
            row = self._rows.row(clip_id, [*RECORD, "segments"])
            self._rows.erase([clip_id])
            self._forget(read_clip(row), int(row["segments"]))
            self._rows.erase([clip_id])

    def update_metadata(self, clip_id: str, changes: dict[str, Any]) -> Clip:
        """See Library. Of two processes that change one clip at the same moment, the later one's metadata stays."""
        if not isinstance(changes, dict):
            raise InvalidMetadata(f"a metadata patch must be a JSON object, not {type(changes).__name__}")
        with library_errors(), self._claims.hold([clip_id]):
            row = self._rows.row(clip_id, ["*"])
            clip = read_clip(row)
            whole = self._objects.has(frames_object(clip))
            changed = replace(clip, metadata=json.loads(dump_metadata(merge_patch(clip.metadata, changes))))
            row.pop("terms", None)  # Milvus makes it of the words
            self._rows.write([{**row, **describe(changed)}])
            if whole and not self._objects.has(frames_object(clip)):  # it was deleted while we had it in hand
                self._rows.erase([clip_id])
                raise ClipNotFound(clip_id)
            return changed

    # Questions

    def __len__(self) -> int:
        return self._rows.count()

    def get(self, clip_id: str) -> Clip:
        return read_clip(self._rows.row(clip_id, RECORD))

    def find(self, sha256: str) -> Clip | None:
        return self._rows.by_sha256([sha256]).get(sha256)

    def search(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """See Library; at most 16,384 hits. As exact as the index is: HNSW, with a list that grows with k."""
        _check_count(k, "k")
        query = checked_vector(vector, self._dim, "query", unit=False)
        where = expression(parse_filter(filter))
        found = self._rows.search("vector", query.tolist(), k, where, RECORD, self._how(k))
        return [Hit(read_clip(hit["entity"]), float(hit["distance"])) for hit in found]

    def _how(self, k: int) -> dict[str, Any]:
        ef = {"ef": min(max(2 * k, 128), _MOST_EF)} if self._index == "HNSW" else {}
        return {"metric_type": "IP", "params": ef}

    def search_segments(self, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """See Library. A filter that more than _FEW clips pass is applied to the clips of the best 16,384 segments."""
        _check_count(k, "k")
        query = checked_vector(vector, self._dim, "query", unit=False).tolist()
        where, within = expression(parse_filter(filter)), ""
        if where:
            few = [row["id"] for row in self._rows.query(where, ["id"], _FEW + 1)]
            if not few:
                return []
            within = "clip in [{}]".format(", ".join(f'"{clip_id}"' for clip_id in few)) if len(few) <= _FEW else ""
        wanted = _PER_CLIP * k
        while True:
            wanted = min(wanted, MOST)
            found = self._segments.search("vector", query, wanted, within, ["clip"], self._how(wanted))
            best: dict[str, float] = {}
            for hit in found:
                best.setdefault(hit["entity"]["clip"], float(hit["distance"]))
            clips = self._rows.by_id(best, where)
            if len(clips) >= k or len(found) < wanted or wanted == MOST:
                return [Hit(clips[clip_id], nearest) for clip_id, nearest in best.items() if clip_id in clips][:k]
            wanted *= 4  # a long recording may have taken many places

    def search_words(self, query: str, vector: np.ndarray, k: int, filter: Filter | None = None) -> list[Hit]:
        """See Library; by Milvus' BM25, over stems as the library in SQLite cuts them."""
        _check_count(k, "k")
        aim = checked_vector(vector, self._dim, "query", unit=False)
        where, wanted = expression(parse_filter(filter)), milvus_words.wanted(query)
        if wanted is None:
            return []
        found = self._rows.search("terms", wanted, k, where, [*RECORD, "vector"], {"metric_type": "BM25"})
        return [Hit(read_clip(hit["entity"]), float(read_vector(hit["entity"]) @ aim)) for hit in found]

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
            with suppress(ClipNotFound):  # deleted since
                found[row["id"]] = self._frame_codes(row)
        return found

    def _frame_codes(self, row: dict[str, Any]) -> tuple[FrameCodes, float]:
        clip = read_clip(row)
        with library_errors():
            try:
                blob = self._objects.local(frames_object(clip)).read_bytes()
            except FileNotFoundError as error:
                self.get(clip.id)  # a delete takes row and objects
                raise LibraryError(f"the frames of clip {clip.id} are missing; add the same file again") from error
        return FrameCodes.from_bytes(blob, self._dim), float(row["hop"])

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
        """See Library. A page has at most half as many clips as Milvus answers at once. By creation: by the clocks of
        the processes that added, so a clip added meanwhile may stand behind the cursor if they differ.
        """
        _check_count(limit, "limit")
        if sort.removeprefix("-") not in SORTED_BY:
            raise ValueError(f"clips are sorted by {', '.join(SORTED_BY)}, not by {sort!r}")
        limit = min(limit, self.window // 2)
        after = None if cursor is None else milvus_pages.read_cursor(cursor, sort)
        where = expression(parse_filter(filter))
        with library_errors():
            found = milvus_pages.page(self._rows.query, limit + 1, where, sort, after, self.window)
            page = found[:limit]
            clips = self._rows.by_id([clip_id for _, _, clip_id in page])
        more = milvus_pages.write_cursor(page[-1], sort) if len(found) > limit else None
        return [clips[clip_id] for _, _, clip_id in page if clip_id in clips], more


def _check_count(count: int, name: str) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
