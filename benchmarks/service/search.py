"""Measures whole searches over HTTP in a large library of made-up clips, by how many clips match.

    python -m benchmarks.service.search --work /somewhere/with/5/GB [--clips 100000] [--before CHECKOUT]

The library is created once in --work, with the text embeddings of the bundled checkpoint: each clip is drawn from one
of the phrase bank's phrases (of uneven frequency, as words are) at a cosine of 0 to 0.35 to it, around and above the
cutoff of matches, plus noise. Half of the clips have their phrase as a name, the others random words of the bank. One
in twenty lasts a minute and has 20 segments, the others 2.5 s and 4 segments.

Queries are phrases of the bank in any of its spellings; the table groups them by the number of matches that the service
reports. Spaces after a query make it another text each time, so that the service has to embed it. Latency is that of
sequential requests, each over a new connection. Of each query's rounds the best counts, because other programs only
ever slow a search down. With `--before`, a server of another checkout runs beside it, and each query is asked of both,
one after the other, so that their ratio holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPO, Latency, Server, machine, revision, section, table, write_json
from index import Clip, encode_frames
from index.new_clip import EncodedClip
from index.sqlite import queries
from index.sqlite.store import DATABASE_FILE, Store
from model import FineLAP

BANK = REPO / "training" / "data" / "phrase_bank.jsonl"
MODES = ("semantic", "hybrid", "lexical")
MOST = 1000
GROUPS = ((0, 0), (1, 99), (100, 999), (MOST, MOST))  # matches that the service reports
_LONG = 20  # every how many-th clip is long
_COSINES = (0.0, 0.35)  # of a clip to its phrase
_SHARED = 8  # dimensions with most of what texts have in common, which sounds have little of
_BLOCK = 2000
_ROUNDS = 4
_SETTLE = 10.0  # seconds after a start, for work in the background
Found = dict[str, list[dict[str, Any]]]


def phrases() -> list[list[str]]:
    """The spellings of each phrase of the bank."""
    rows = [json.loads(line) for line in BANK.read_text(encoding="utf-8").splitlines()]
    return [[row["phrase"], *row["alternatives"]] for row in rows]


def fill(folder: Path, clips: int) -> None:
    """Writes a library of made-up clips without audio files, deterministically and without fsync."""
    model = FineLAP.from_pretrained(REPO / "checkpoints" / "finelap-small")
    names = [spellings[0] for spellings in phrases()]
    texts = model.encode_text(names).numpy()
    rng = np.random.default_rng(0)
    shares = np.arange(1, len(names) + 1) ** -0.8
    phrase_of = rng.choice(rng.permutation(len(names)), clips, p=shares / shares.sum())
    common = np.linalg.svd(texts, full_matrices=False)[2][:_SHARED]
    words = [name.replace(",", "").split()[0].lower() for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / "part.sqlite3"
    aside.unlink(missing_ok=True)
    Store(aside).close()
    store = Store(aside)
    with store.write() as change:
        queries.set_stamp(change, model.stamp, model.dim)
    for first in range(0, clips, _BLOCK):
        with store.write() as change:
            for number in range(first, min(first + _BLOCK, clips)):
                phrase = int(phrase_of[number])
                name = names[phrase] if rng.random() < 0.5 else " ".join(rng.choice(words, 3))
                segments = 20 if number % _LONG == 0 else 4
                vectors = _around(texts[phrase], common, 1 + segments, rng)
                queries.insert(change, _clip(number, name, vectors))
    store.close()
    aside.rename(folder / DATABASE_FILE)


def _around(text: np.ndarray, common: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (count, D), alike, of a clip and its segments: at one cosine to a text, without what texts share."""
    own = text - text @ common.T @ common
    own /= np.linalg.norm(own)
    noise = rng.standard_normal((1, len(text))) + 0.3 * rng.standard_normal((count, len(text)))
    noise -= noise @ common.T @ common
    noise -= (noise @ own)[:, None] * own
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    share = min(rng.uniform(*_COSINES) / float(own @ text), 0.95)
    return (share * own + np.sqrt(1 - share**2) * noise).astype(np.float32)


def _clip(number: int, name: str, vectors: np.ndarray) -> EncodedClip:
    seconds = 60.0 if len(vectors) > 5 else 2.5
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    metadata = {"number": number}
    clip = Clip(digest[:32], f"{name} {number}.wav", digest, seconds, 48_000, 1, created, metadata)
    parts = encode_frames(vectors[1:])
    return EncodedClip(clip, json.dumps(metadata), vectors[0], parts.to_bytes(), seconds / len(parts), parts)


def asked(count: int) -> list[str]:
    """Distinct texts to search for."""
    rng = np.random.default_rng(1)
    spellings = sorted({text.lower() for own in phrases() for text in own})
    return [spellings[i] for i in rng.permutation(len(spellings))[:count]]


def measure(servers: Sequence[Server], count: int) -> list[Found]:
    """For each server and mode the queries, asked of one server after the other; see `summary`."""
    texts = asked(count)
    found: list[Found] = [{mode: [{"query": x, "seconds": np.inf} for x in texts] for mode in MODES} for _ in servers]
    for asked_before in range(_ROUNDS):
        for number, mode in enumerate(MODES):
            spaces = " " * (asked_before * len(MODES) + number)
            for row in range(count):
                for server, own in zip(servers, found, strict=True):
                    _ask(server, mode, spaces, own[mode][row])
    return found


def _ask(server: Server, mode: str, spaces: str, row: dict[str, Any]) -> None:
    began = time.perf_counter()
    answer = server.get("/search", q=row["query"] + spaces, mode=mode, k=10)
    row["seconds"] = min(row["seconds"], time.perf_counter() - began)
    answer.raise_for_status()
    row["matches"] = answer.json()["matches"]
    row["hits"] = [[hit["clip"]["id"], round(hit["score"], 4)] for hit in answer.json()["hits"]]


def summary(found: Sequence[Found]) -> list[list[object]]:
    """Rows of a table: mode, matches that the last server reports, queries, and of each server p50 and p95 in ms."""
    rows: list[list[object]] = []
    for mode in MODES:
        for low, high in (*GROUPS, (0, MOST)):
            chosen = [n for n, row in enumerate(found[-1][mode]) if low <= row["matches"] <= high]
            if chosen:
                matches = "any" if (low, high) == (0, MOST) else str(low) if low == high else f"{low} to {high}"
                times = [Latency.of(own[mode][n]["seconds"] for n in chosen) for own in found]
                rows.append([mode, matches, len(chosen), *(1000 * x for own in times for x in (own.p50, own.p95))])
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the library, kept for later runs")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=140)
    parser.add_argument("--before", type=Path, help="another checkout to compare with, on a copy of the library")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    folder = options.work / f"clips-{options.clips}"
    if not (folder / DATABASE_FILE).exists():
        with section(f"a library of {options.clips} clips"):
            fill(folder, options.clips)
    trees = [REPO]
    with contextlib.ExitStack() as stack:
        servers = []
        if options.before is not None:
            trees.insert(0, options.before)
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.work))) / "data"
            shutil.copytree(folder, copy)
            servers.append(stack.enter_context(_server(copy, options.before)))
        servers.append(stack.enter_context(_server(folder, REPO)))
        with section("searches"):
            found = measure(servers, options.queries)
    names = ["before p50 ms", "p95 ms", "p50 ms", "p95 ms"][-2 * len(trees) :]
    print(table(["mode", "matches", "queries", *names], summary(found)))
    write_json(options.json, {"machine": machine(), "revisions": [revision(tree) for tree in trees], "found": found})
    return 0


@contextlib.contextmanager
def _server(folder: Path, tree: Path) -> Iterator[Server]:
    """A server whose index of the library is built."""
    with section(f"a server of {revision(tree)}"):
        server = Server({"data_dir": folder}, tree=tree, wait=600).__enter__()
    try:
        with section("its index"):
            while server.get("/search", q="dog", mode="semantic").elapsed.total_seconds() > 0.5:
                time.sleep(1)  # before there is an index, a search reads all vectors
            time.sleep(_SETTLE)
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    raise SystemExit(main())
