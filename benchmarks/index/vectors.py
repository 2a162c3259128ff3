"""Compares search among a million vectors in the library's index and FAISS: recall, latency, memory and changes.

    python -m benchmarks.index.vectors --work /somewhere/with/20/GB

The data is created once (benchmarks/index/vector_data.py). Each index is measured in its own process and its result is
stored in --work: an interrupted run resumes, and `--again NAME` repeats one measurement. Recall is the share of the
exact best ten that is found. Latency is that of sequential queries on one thread; "computing" is the thread's processor
time. The library's latency includes reading ten records from its database and whole vectors from their copy, files that
are in the page cache if memory allows. Memory is resident memory without that cache. The FAISS indexes hold vectors
only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPO, Latency, machine, revision, section, table, write_json
from benchmarks.index.vector_data import BEST, Data, insert
from index.sqlite import queries
from index.sqlite.queries import SqliteVectors
from index.sqlite.store import Store
from index.vectors.index import VectorIndex
from index.vectors.ivf_rabitq import cluster_count

_FEW = 100  # queries for indexes that take about a second each
_CHANGES = 5000
_CHECKPOINT = 250_000  # vectors added to HNSW between two writes to disk
Search = Callable[[np.ndarray], np.ndarray]


def memory(field: str = "VmRSS") -> float:
    """The memory of this process in GB: now, or at most with VmHWM."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def ask(search: Search, data: Data, few: bool = False) -> dict[str, float]:
    """Recall@10 of sounds and texts, and latencies in seconds after some untimed searches."""
    asked, truth = data.asked(), data.truth()
    chosen = np.linspace(0, len(asked) - 1, _FEW).astype(int) if few else np.arange(len(asked))
    for query in asked[chosen[:: max(1, len(chosen) // 20)]]:
        search(query)
    seconds, busy, shares = [], [], []
    for number in chosen:
        began, worked = time.perf_counter(), time.thread_time()
        rows = search(asked[number])
        seconds.append(time.perf_counter() - began)
        busy.append(time.thread_time() - worked)
        shares.append(len(set(rows.tolist()) & set(truth[number].tolist())) / BEST)
    sounds = chosen < len(asked) // 2
    found, latency, cpu = np.array(shares), Latency.of(seconds), Latency.of(busy)
    return {
        "recall_sounds": float(found[sounds].mean()),
        "recall_texts": float(found[~sounds].mean()),
        "p50": latency.p50,
        "p95": latency.p95,
        "p99": latency.p99,
        "cpu_p50": cpu.p50,
        "cpu_p95": cpu.p95,
    }


# The library's index


@contextmanager
def library(data: Data, folder: Path) -> Iterator[tuple[VectorIndex, Store, Search]]:
    """Opens the index over the database, not filled yet, with a search that reads the records too."""
    database = Store(data.database)
    index = VectorIndex(data.dim, SqliteVectors(database, data.dim), stamp="benchmark", folder=folder)

    def search(query: np.ndarray, only: np.ndarray | None = None) -> np.ndarray:
        with index.reading(), database.read() as view:
            rows, _ = index.search(query, BEST, only)
            queries.by_rows(view, rows)
        return rows

    try:
        yield index, database, search
    finally:
        index.close()
        database.close()


def build(data: Data) -> dict[str, Any]:
    """Builds codes from the database, with searches meanwhile."""
    with library(data, data.work / "index") as (index, _, search):
        index.fill()
        began = time.perf_counter()
        stored = []
        for query in data.asked()[:3]:
            at = time.perf_counter()
            search(query)
            stored.append(time.perf_counter() - at)
        index.wait()
        seconds = time.perf_counter() - began
        return {"state": index.state, "seconds": seconds, "stored_search": max(stored), "most_memory": memory("VmHWM")}


def opened(data: Data) -> dict[str, Any]:
    """Starts from the snapshot and searches."""
    with library(data, data.work / "index") as (index, _, search):
        began = time.perf_counter()
        report = index.fill()
        seconds = time.perf_counter() - began
        assert not report and index.state in ("codes", "flat"), (report, index.state)
        index.wait()
        copied = time.perf_counter() - began - seconds
        found = ask(search, data)
        size = sum(path.stat().st_size for path in (data.work / "index").glob("*")) / 1e9
        return {
            "open_seconds": seconds,
            "copy_seconds": copied,
            **found,
            "memory": memory("RssAnon"),
            "snapshot_gb": size,
        }


def filtered(data: Data) -> dict[str, Any]:
    """Searches subsets of the rows, compared with exact search."""
    vectors, asked, results = data.vectors(), data.asked(), {}
    chosen = asked[:: max(1, len(asked) // _FEW)]
    with library(data, data.work / "index") as (index, _, search):
        index.fill()
        for share in (0.001, 0.01, 0.1):
            count = max(BEST, int(share * data.count))
            only = np.sort(np.random.default_rng(5).choice(data.count, count, replace=False)) + 1
            among = vectors[only - 1]
            seconds, shares = [], []
            for query in chosen:
                began = time.perf_counter()
                rows = search(query, only)
                seconds.append(time.perf_counter() - began)
                best = only[np.argsort(-(among @ query))[:BEST]]
                shares.append(len(set(rows.tolist()) & set(best.tolist())) / BEST)
            results[str(share)] = {
                "rows": count,
                "p50": Latency.of(seconds).p50,
                "p95": Latency.of(seconds).p95,
                "recall": float(np.mean(shares)),
            }
    return results


def changes(data: Data) -> dict[str, Any]:
    """Adds and removes vectors one by one and in bulk, and searches during concurrent changes."""
    more = data.more(3 * _CHANGES)
    with library(data, data.work / "index") as (index, database, search):
        index.fill()
        with database.write() as change:
            first = change.execute("SELECT seq FROM sqlite_sequence WHERE name = 'clips'").fetchone()[0] + 1
            rows = np.arange(first, first + len(more))
            insert(change, rows, more)
        try:
            result = {"add_one": _rate(rows[:_CHANGES], lambda n: index.add(rows[n : n + 1], more[n : n + 1]))}
            began = time.perf_counter()
            index.add(rows[_CHANGES:], more[_CHANGES:])
            result["add_many"] = 2 * _CHANGES / (time.perf_counter() - began)
            result["remove_one"] = _rate(rows[:_CHANGES], lambda n: index.remove(rows[n : n + 1]))
            result |= _mixed(data, index, search, rows, more)
            result["memory"] = memory("RssAnon")
        finally:
            with database.write() as change:
                change.execute("DELETE FROM clips WHERE row >= ?", (int(first),))
    return result


def _rate(rows: np.ndarray, do: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for number in range(len(rows)):
        do(number)
    return len(rows) / (time.perf_counter() - began)


def _mixed(data: Data, index: VectorIndex, search: Search, rows: np.ndarray, more: np.ndarray) -> dict[str, float]:
    """Searches while a thread removes and adds 50 clips per second each."""
    stop, made = threading.Event(), [0]

    def change() -> None:
        while not stop.wait(0.02):
            number = _CHANGES + made[0] % _CHANGES
            index.remove(rows[number : number + 1])
            index.add(rows[number : number + 1], more[number : number + 1])
            made[0] += 1

    thread = threading.Thread(target=change)
    thread.start()
    began = time.perf_counter()
    try:
        found = ask(search, data)
    finally:
        stop.set()
        thread.join()
    rate = made[0] / (time.perf_counter() - began)
    return {"mixed_p95": found["p95"], "mixed_rate": rate}


# FAISS


def _fill(index: Any, data: Data, batch: int = 50_000) -> float:
    vectors, began = data.vectors(), time.perf_counter()
    for first in range(0, data.count, batch):
        index.add(np.ascontiguousarray(vectors[first : first + batch]))
    return time.perf_counter() - began


def _faiss(data: Data, index: Any, seconds: float, few: bool = False, **parameters: object) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(1)
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    found = ask(lambda query: index.search(query[None], BEST)[1][0] + 1, data, few)
    return {"seconds": seconds, **found, "memory": memory("RssAnon"), **parameters}


def flat(data: Data) -> dict[str, Any]:
    """All vectors, float32."""
    import faiss

    index = faiss.IndexFlatIP(data.dim)
    small = {}
    for count in (12_500, 25_000, 50_000, 100_000):
        part = faiss.IndexFlatIP(data.dim)
        part.add(np.ascontiguousarray(data.vectors()[:count]))
        faiss.omp_set_num_threads(1)
        seconds = []
        for query in data.asked()[:_FEW]:
            began = time.perf_counter()
            part.search(query[None], BEST)
            seconds.append(time.perf_counter() - began)
        small[str(min(count, data.count))] = {"p50": Latency.of(seconds).p50, "p95": Latency.of(seconds).p95}
    return {**_faiss(data, index, _fill(index, data), few=True), "small": small}


def hnsw(data: Data) -> dict[str, Any]:
    """HNSW with 32 links, float32; efSearch is the smallest tried value with 99 % recall of both.

    Building takes minutes to hours on all cores. It is written to disk regularly, so an interrupted build resumes, and
    is measured as read from disk.
    """
    import faiss

    file, note, aside = data.work / "hnsw.faiss", data.work / "hnsw.json", data.work / "hnsw.part"
    spent = json.loads(note.read_text()) if note.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    if note.exists():
        index = faiss.read_index(str(file))
    else:
        index = faiss.index_factory(data.dim, "HNSW32", faiss.METRIC_INNER_PRODUCT)
    vectors = data.vectors()
    while index.ntotal < data.count:
        began, worked = time.perf_counter(), time.process_time()
        upto = min(data.count, (index.ntotal // _CHECKPOINT + 1) * _CHECKPOINT)
        for first in range(index.ntotal, upto, 10_000):
            index.add(np.ascontiguousarray(vectors[first : min(first + 10_000, upto)]))
            print(f"{index.ntotal} vectors, {spent['seconds'] + time.perf_counter() - began:.0f} s", flush=True)
        spent["seconds"] += time.perf_counter() - began
        spent["cpu_seconds"] += time.process_time() - worked
        spent["count"] = index.ntotal
        faiss.write_index(index, str(aside))
        aside.rename(file)
        note.write_text(json.dumps(spent))
    del index
    index = faiss.read_index(str(file))
    found = _widen(data, index, spent["seconds"], "efSearch", (64, 128, 256, 512, 1024, 2048))
    return {**found, "cpu_seconds": spent["cpu_seconds"], "efConstruction": index.hnsw.efConstruction}


def sq8(data: Data) -> dict[str, Any]:
    """An inverted file of 8-bit codes with the library's number of groups; nprobe is the smallest with 99 % recall."""
    return _inverted(data, "SQ8")


def sq4(data: Data) -> dict[str, Any]:
    """The same with 4-bit codes, without whole vectors."""
    return _inverted(data, "SQ4")


def _inverted(data: Data, codes: str) -> dict[str, Any]:
    import faiss

    groups = cluster_count(data.count, data.count)
    index = faiss.index_factory(data.dim, f"IVF{groups},{codes}", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 32
    began = time.perf_counter()
    index.train(np.ascontiguousarray(data.vectors()[: 32 * groups]))
    trained = time.perf_counter() - began
    return _widen(data, index, trained + _fill(index, data), "nprobe", (16, 32, 64, 128, 256))


def _widen(data: Data, index: Any, seconds: float, name: str, values: tuple[int, ...]) -> dict[str, Any]:
    tried = []
    for value in values:
        tried.append(_faiss(data, index, seconds, **{name: value}))
        if min(tried[-1]["recall_sounds"], tried[-1]["recall_texts"]) >= 0.99 or tried[-1]["p50"] > 0.05:
            break
    return {**tried[-1], "tried": tried}


STAGES: dict[str, Callable[[Data], dict[str, Any]]] = {
    x.__name__: x for x in (build, opened, changes, filtered, flat, hnsw, sq8, sq4)
}
_NAMES = {"opened": "the library", "flat": "FAISS Flat", "hnsw": "FAISS HNSW32", "sq8": "IVF, SQ8", "sq4": "IVF, SQ4"}


def report(results: dict[str, dict[str, Any]]) -> str:
    """The table of all indexes, then the other measurements as JSON."""
    rows = []
    for stage, name in _NAMES.items():
        if stage in results:
            r = results[stage]
            seconds = results["build"]["seconds"] if stage == "opened" and "build" in results else r.get("seconds")
            setting = " ".join(f"{key} {r[key]}" for key in ("efSearch", "nprobe") if key in r)
            times = [1000 * r.get(key, float("nan")) for key in ("p50", "p95", "cpu_p50", "cpu_p95")]
            recall = [100 * r["recall_sounds"], 100 * r["recall_texts"]]
            rows.append([f"{name} {setting}".strip(), *(f"{x:.1f}" for x in recall), *times, r["memory"], seconds])
    head = [
        "",
        "recall sounds %",
        "texts %",
        "p50 ms",
        "p95 ms",
        "p50 computing",
        "p95 computing",
        "memory GB",
        "build s",
    ]
    rest = {stage: results[stage] for stage in ("build", "opened", "changes", "filtered", "flat") if stage in results}
    return table(head, rows) + "\n\n" + json.dumps(rest, indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results, outside the checkout")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES), help="measure only these")
    parser.add_argument("--again", nargs="*", choices=STAGES, default=[], help="repeat these measurements")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    data = Data(chosen.work, chosen.count, chosen.dim, chosen.queries)
    if chosen.stage:
        write_json(chosen.work / f"result-{chosen.stage}.json", STAGES[chosen.stage](data))
        return 0
    with section("data"):
        data.make()
    results: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        file = chosen.work / f"result-{stage}.json"
        if stage in chosen.only and (stage in chosen.again or not file.exists()):
            with section(stage):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.index.vectors",
                    "--stage",
                    stage,
                    "--work",
                    str(chosen.work),
                ]
                command += ["--count", str(data.count), "--dim", str(data.dim), "--queries", str(data.queries)]
                subprocess.run(command, check=True, cwd=REPO)
        if file.exists():
            results[stage] = json.loads(file.read_text())
    print(report(results))
    write_json(chosen.json, {"machine": machine(), "revision": revision(REPO), "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
