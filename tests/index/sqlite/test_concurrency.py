"""Concurrent searches return the library's state at some moment between the search's start and end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index import NewClip, SqliteLibrary
from index.quantization import encode_frames
from index.segments import cut_segments
from index.vectors.index import Limits
from tests.support.clips import ask_for_hits

ENOUGH = 60  # changes, and searches
SECONDS = float(os.environ.get("FINELAP_CONCURRENCY_SECONDS", "0"))  # at least, of each way; for longer runs by hand


@pytest.mark.parametrize("filter", [None, {"kind": "moving"}])
@pytest.mark.parametrize(
    ("limits", "way"),  # the number of clips goes up and down across 32
    [(None, "search"), (Limits(flat_rows=32), "search"), (None, "search_segments")],
)
def test_searches_while_clips_come_and_go(
    tmp_path: Path, new_clip: Callable[..., NewClip], filter: dict | None, limits: Limits | None, way: str
) -> None:
    news = [new_clip(seed, {"seed": seed, "kind": "moving"}) for seed in range(60)]
    # When each clip was surely there and surely not: times at which changes began and ended.
    log: list[tuple[float, float, str, str]] = []  # (began, ended, "add" or "delete", sha256)
    searches: list[tuple[float, float, np.ndarray, list]] = []
    problems: list[BaseException] = []
    stop = threading.Event()

    with SqliteLibrary.open(tmp_path, dim=16, checkpoint="a", limits=limits) as library:

        def change(mine: list[NewClip]) -> None:
            ids: dict[str, str] = {}
            turn = 0
            while not stop.is_set():
                new = mine[turn % len(mine)]
                turn += 1
                began = time.monotonic()
                if new.sha256 in ids:
                    library.delete(ids.pop(new.sha256))
                    log.append((began, time.monotonic(), "delete", new.sha256))
                else:
                    ids[new.sha256] = library.add(new)[0].id
                    log.append((began, time.monotonic(), "add", new.sha256))

        def ask(seed: int) -> None:
            query = new_clip(1000 + seed).embedding
            while not stop.is_set():
                began = time.monotonic()
                hits = ask_for_hits(library, way, query, 100, filter)
                if hits is not None:
                    searches.append((began, time.monotonic(), query, hits))

        def guarded(work: Callable[..., None], *arguments: object) -> None:
            try:
                work(*arguments)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=guarded, args=(change, news[i::2])) for i in range(2)]
        threads += [threading.Thread(target=guarded, args=(ask, i)) for i in range(2)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        while (len(searches) < ENOUGH or len(log) < ENOUGH or time.monotonic() < until) and not problems:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()

    assert not problems
    vectors = {new.sha256: new.embedding[None] for new in news}
    if way == "search_segments":
        vectors = {new.sha256: cut_segments(encode_frames(new.frames), new.frame_hop).decode() for new in news}
    history: dict[str, list[tuple[float, float, str]]] = {sha256: [] for sha256 in vectors}
    for began, ended, verb, sha256 in sorted(log):
        history[sha256].append((began, ended, verb))
    for began, ended, query, hits in searches[:: max(1, len(searches) // 500)]:  # of a long run every so-manieth
        found = [hit.clip.sha256 for hit in hits]
        assert len(set(found)) == len(found)
        similarities = [hit.similarity for hit in hits]
        assert similarities == sorted(similarities, reverse=True)
        expected = [float((vectors[sha256] @ query).max()) for sha256 in found]
        np.testing.assert_allclose(similarities, expected, atol=1e-5 if way == "search" else 1e-3)
        for sha256, changes in history.items():
            before = [verb for start, end, verb in changes if end < began]
            during = [verb for start, end, verb in changes if end >= began and start <= ended]
            if not during:
                assert (sha256 in found) == (before[-1:] == ["add"])
