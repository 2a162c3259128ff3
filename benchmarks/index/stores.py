"""Compares the latency of each library call in SQLite with FAISS and in Milvus, on the same clips.

    python -m benchmarks.index.stores milvus://127.0.0.1:19530 --clips 2000

The address is that of a running Milvus; the collection `stores_<dim>` must not exist and is dropped at the end. Calls
are sequential. Clips are synthetic: unit vectors around 64 centres, ten seconds of frames, three metadata keys, 100 kB
of audio.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import REPO, Latency, machine, revision, section, table
from index import Library, MilvusLibrary, NewClip, SqliteLibrary, parse_milvus_url
from index.milvus.client import connect, segments_of

_ASKED = 100
_BATCH = 50


def unit(values: np.ndarray) -> np.ndarray:
    """The rows normalised, float32."""
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def make(number: int, centres: np.ndarray) -> NewClip:
    """Creates a clip, deterministic for its number."""
    rng = np.random.default_rng(number)
    centre = centres[rng.integers(len(centres))]
    dim = len(centre)
    audio = rng.bytes(100_000)
    return NewClip(
        filename=f"sound {number}.wav",
        sha256=hashlib.sha256(audio).hexdigest(),
        duration=10.0,
        sample_rate=48_000,
        channels=2,
        metadata={"take": number, "tags": [f"tag{number % 50}", "made up"], "place": f"place {number % 7}"},
        embedding=unit(centre + 0.5 * rng.standard_normal(dim) / np.sqrt(dim)),
        frames=unit(centre + rng.standard_normal((63, dim)) / np.sqrt(dim)),
        frame_hop=0.16,
        audio=audio,
    )


def each(call: Callable[[int], object], count: int) -> list[float]:
    """The seconds of each of `count` calls."""
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - began)
    return seconds


def measure(library: Library, clips: int, dim: int) -> dict[str, list[float]]:
    """The seconds of every call, by method."""
    centres = unit(np.random.default_rng(7).standard_normal((64, dim)))
    ones = min(clips, _ASKED)
    fresh = [make(number, centres) for number in range(ones)]
    found: dict[str, list[float]] = {"add": each(lambda i: library.add(fresh[i]), ones)}
    batches = [[make(n, centres) for n in range(at, min(at + _BATCH, clips))] for at in range(ones, clips, _BATCH)]
    found[f"add_many of {_BATCH}"] = each(lambda i: library.add_many(batches[i]), len(batches))
    ids = [library.find(clip.sha256).id for clip in fresh]  # type: ignore[union-attr]
    query = unit(np.random.default_rng(8).standard_normal((ones, dim)))
    found["find"] = each(lambda i: library.find(fresh[i].sha256), ones)
    found["nearest, best 10"] = each(lambda i: library.nearest(query[i], 10), ones)
    found["nearest, one tag of 50"] = each(lambda i: library.nearest(query[i], 10, {"tags": f"tag{i % 50}"}), ones)
    found["search_segments, best 10"] = each(lambda i: library.search_segments(query[i], 10), ones)
    found["search_words"] = each(lambda i: library.search_words(f"tag{i % 50}", query[i], 10), ones)
    found["list, newest 50"] = each(lambda i: library.list(50), ones)
    found["list by name"] = each(lambda i: library.list(50, sort="filename"), ones)
    found["frames"] = each(lambda i: library.frames(ids[i]), ones)
    found["update_metadata"] = each(lambda i: library.update_metadata(ids[i], {"seen": i}), ones)
    found["delete"] = each(lambda i: library.delete(ids[i]), ones)
    assert len(library) == clips - ones
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="milvus://host:19530, with options")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=384)
    args = parser.parse_args()
    url = f"{args.url}{'&' if '?' in args.url else '?'}collection=stores_{args.dim}"
    parts = parse_milvus_url(url)
    client = connect(parts)
    if client.has_collection(parts.collection):
        parser.error(f"the collection {parts.collection} already exists")
    with tempfile.TemporaryDirectory() as folder:
        local: Library = SqliteLibrary.open(Path(folder, "sqlite"), dim=args.dim, checkpoint="made up")
        shared: Library = MilvusLibrary.open(url, Path(folder, "milvus"), dim=args.dim, checkpoint="made up")
        try:
            with section("SQLite"):
                ours = measure(local, args.clips, args.dim)
            with section("Milvus"):
                theirs = measure(shared, args.clips, args.dim)
        finally:
            local.close()
            shared.close()
            for name in (parts.collection, segments_of(parts.collection)):
                client.drop_collection(name)
    rows = []
    for what, seconds in ours.items():
        one, other = Latency.of(seconds), Latency.of(theirs[what])
        rows.append([what, *(f"{1000 * value:.1f}" for value in (one.p50, one.p95, other.p50, other.p95))])
    print(f"{args.clips} clips of {args.dim} dimensions, milliseconds; {client.get_server_version()}")
    print(f"{machine()}, {revision(REPO)}\n")
    print(table(["call", "SQLite p50", "p95", "Milvus p50", "p95"], rows))


if __name__ == "__main__":
    main()
