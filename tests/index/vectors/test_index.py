"""Tests of the vector index: exact where it promises to be, high recall where it is approximate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from index import GpuMissing
from index.vectors import ivf_rabitq, snapshot
from index.vectors.index import Limits, VectorIndex
from index.vectors.ivf_rabitq import BuildCancelled, Codes, HelperThread, cluster_count, sample_size, usable_cores
from index.vectors.row_set import RowSet
from tests.support.stored_vectors import FakeStoredVectors

DIM = 24
SMALL = Limits(flat_rows=200, exact_rows=30, spare=60)
Make = Callable[..., VectorIndex]


def clustered(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Unit vectors (N, D) around 20 centres."""
    centres = np.random.default_rng(99).standard_normal((20, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(20, size=count)] + 0.6 * rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Library:
    """An index with its stored vectors, changed in the order in which the library does it."""

    def __init__(
        self,
        folder: Path | None = None,
        limits: Limits = SMALL,
        stored: FakeStoredVectors | None = None,
        gpu: bool = False,
    ) -> None:
        self.stored = stored or FakeStoredVectors(DIM)
        self.index = VectorIndex(DIM, self.stored, stamp="a", folder=folder, limits=limits, gpu=gpu)
        self.report = self.index.fill()

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        self.stored.commit(rows, vectors)
        self.index.add(rows, vectors)

    def delete(self, rows: np.ndarray) -> None:
        assert self.index.remove(rows) == len(rows)
        self.stored.delete(rows)

    def search(self, query: np.ndarray, k: int, only: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        with self.index.reading():
            return self.index.search(query, k, only)

    def exact(self, query: np.ndarray, k: int, only: np.ndarray | None = None) -> list[int]:
        rows = [row for row in self.stored.by_row if only is None or row in only]
        return sorted(rows, key=lambda row: (-float(self.stored.by_row[row] @ query), row))[:k]

    def recall(self, queries: np.ndarray, k: int = 10, only: np.ndarray | None = None) -> float:
        """Share of the best k found, after checking all that must hold of any answer."""
        shares = []
        for query in queries:
            rows, similarities = self.search(query, k, only)
            expected = self.exact(query, k, only)
            assert len(set(rows.tolist())) == len(rows) == len(expected)
            assert only is None or set(rows.tolist()) <= set(only.tolist())
            own = [float(self.stored.by_row[row] @ query) for row in rows.tolist()]
            np.testing.assert_allclose(similarities, own, atol=1e-5)
            assert (np.diff(similarities) <= 0).all()
            shares.append(len(set(rows.tolist()) & set(expected)) / len(expected))
        return float(np.mean(shares))


@pytest.fixture
def make() -> Iterator[Callable[..., Library]]:
    made: list[Library] = []

    def make_it(*arguments: object, **keywords: object) -> Library:
        made.append(Library(*arguments, **keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make_it
    for library in made:
        library.index.close()


def _large(make: Callable[..., Library], count: int = 1500, **keywords: object) -> Library:
    library = make(**keywords)
    library.add(np.arange(count) * 2 + 5, clustered(count))
    library.index.wait()
    assert library.index.state == "codes"
    return library


def test_small_libraries_are_exact(make: Callable[..., Library]) -> None:
    library = make()
    library.add(np.arange(200), clustered(200))
    library.index.wait()
    assert library.index.state == "flat" and library.recall(clustered(20, 1)) == 1


def test_large_libraries_have_high_recall_and_exact_similarities(make: Callable[..., Library]) -> None:
    library = _large(make)
    assert library.recall(clustered(50, 1)) >= 0.97
    library.stored.reads = 0
    library.search(clustered(1)[0], 10)
    assert library.stored.reads <= SMALL.spare + 20  # and not the whole library


def test_whole_vectors_are_read_from_copies(make: Callable[..., Library], tmp_path: Path) -> None:
    """After a build, an addition, a start from a snapshot and another build; and from the database without copies."""
    plain, library = _large(make), _large(make, folder=tmp_path / "index")

    def check() -> None:
        library.index.wait()
        plain.index.wait()
        library.stored.reads = 0
        for query in clustered(20, 3):
            for only in (None, np.arange(0, 3000, 2), np.arange(40)):
                rows, similarities = library.search(query, 10, only)
                expected = plain.search(query, 10, only)
                assert rows.tolist() == expected[0].tolist()
                np.testing.assert_array_equal(similarities, expected[1])
        assert library.stored.reads == 0

    check()
    for own in (plain, library):
        own.add(np.arange(4000, 4050), clustered(50, 5))
        own.delete(np.arange(4000, 4020))
    check()
    library = _reopened(make, library, tmp_path / "index")
    check()
    for own in (plain, library):
        own.add(np.arange(5000, 5700), clustered(700, 6))
    check()
    assert library.index._copies is not None and len(library.index._copies) == 1500 + 30 + 700, "without deleted rows"


def test_only_candidates_that_can_make_the_top_k_are_reranked(make: Callable[..., Library]) -> None:
    """With estimates that are off by 0.3 in the mean and 0.1 around it, the best are not all among the first 50."""
    library = _large(make)
    rng = np.random.default_rng(0)
    rows = np.array(list(library.stored.by_row))
    vectors = np.stack(list(library.stored.by_row.values()))
    behind = 0
    for query in clustered(30, 4):
        estimates = (vectors @ query - 0.3 + 0.1 * rng.standard_normal(len(rows))).astype(np.float32)
        order = np.argsort(-estimates)
        exact = library.exact(query, 5)
        behind += not set(exact) <= set(rows[order[:50]].tolist())
        library.stored.reads = 0
        found, similarities = library.index._rerank(query, 5, rows[order], estimates[order])
        assert found.tolist() == exact
        np.testing.assert_allclose(similarities, [library.stored.by_row[row] @ query for row in exact], atol=1e-5)
        assert library.stored.reads < len(rows)
    assert behind > 0


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_filters(make: Callable[..., Library], share: float) -> None:
    library = _large(make)
    rows = np.array(list(library.stored.by_row))
    only = np.random.default_rng(3).choice(rows, int(share * len(rows)), replace=False)
    with_strangers = np.concatenate([only, [10**6, 4]])
    recall = library.recall(clustered(30, 2), only=with_strangers)
    assert recall == 1 if len(only) <= SMALL.exact_rows else recall >= 0.95
    assert library.search(clustered(1)[0], 3, np.array([4, 10**6]))[0].tolist() == []


def test_k_larger_than_the_library(make: Callable[..., Library]) -> None:
    library = _large(make, count=500)
    assert library.recall(clustered(3, 1), k=500) == 1
    assert library.recall(clustered(3, 1), k=10_000) == 1


def test_a_shrinking_library_becomes_flat_again(make: Callable[..., Library], tmp_path: Path) -> None:
    library = _large(make, folder=tmp_path / "index")
    assert (tmp_path / "index" / "manifest.json").exists()
    library.delete(np.array(list(library.stored.by_row))[:1450])
    library.index.wait()
    assert library.index.state == "flat" and len(library.index) == 50
    assert library.recall(clustered(10, 1)) == 1
    assert not list((tmp_path / "index").iterdir())


def test_codes_are_rebuilt_after_many_removals(make: Callable[..., Library]) -> None:
    library = _large(make)
    before = library.index._codes
    gone = np.array(list(library.stored.by_row))[::3]
    library.delete(gone)
    library.index.wait()
    assert library.index._codes is not before and len(library.index._codes or ()) == len(library.index) == 1000
    assert library.recall(clustered(20, 1)) >= 0.97


def test_a_removed_row_can_be_added_again(make: Callable[..., Library]) -> None:
    library = _large(make)
    vector = library.stored.by_row[5]
    library.index.remove(np.array([5]))
    assert 5 not in library.search(vector, 3)[0]
    library.index.add(np.array([5]), vector[None])
    assert library.search(vector, 1)[0].tolist() == [5]
    assert library.index._codes is not None and len(library.index._codes) == 1500  # and has one code


def test_searches_are_exact_while_an_index_is_built(
    make: Callable[..., Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened without a snapshot, it answers exactly from what is stored, changes included, until there are codes."""
    stored = FakeStoredVectors(DIM)
    stored.commit(np.arange(600), clustered(600))
    go = threading.Event()
    learn = Codes.train
    monkeypatch.setattr(Codes, "train", lambda *a, **k: (go.wait(20), learn(*a, **k))[1])
    library = make(stored=stored)
    assert library.index.state == "stored" and len(library.index) == 600
    library.add(np.arange(600, 640), clustered(40, 5))
    library.delete(np.arange(20))
    library.index.remove(np.array([20]))  # not committed yet: must not be found all the same
    library.index.check()
    assert 20 not in library.search(stored.by_row[20], 5)[0]
    stored.delete(np.array([20]))
    stored.commit(np.array([700]), clustered(1, 6))  # not added yet
    assert 700 not in library.search(stored.by_row[700], 5)[0]
    library.index.add(np.array([700]), stored.by_row[700][None])
    assert library.recall(clustered(20, 1)) == 1
    go.set()
    library.index.wait()
    assert library.index.state == "codes" and library.recall(clustered(20, 1)) >= 0.97
    assert library.recall(stored.by_row[700][None], k=1) == 1


def test_close_cancels_a_build(make: Callable[..., Library]) -> None:
    stored = FakeStoredVectors(DIM)
    stored.commit(np.arange(600), clustered(600))
    library = make(stored=stored)
    library.index.close()
    assert library.index._builder is None
    with pytest.raises(BuildCancelled):
        Codes.train(clustered(100), 100, lambda: False)


def test_a_failed_build_keeps_the_current_index(
    make: Callable[..., Library], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("no room for codes")

    monkeypatch.setattr(Codes, "train", fails)
    library = make()
    library.add(np.arange(300), clustered(300))
    library.index.wait()
    assert "no room for codes" in caplog.text
    assert library.index.state == "flat" and library.recall(clustered(10, 1)) == 1


# Snapshots


def _reopened(make: Callable[..., Library], library: Library, folder: Path) -> Library:
    library.index.close()
    again = make(folder, stored=library.stored)
    return again


def test_a_snapshot_avoids_a_build(
    make: Callable[..., Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = _large(make, folder=tmp_path / "index")
    rows = np.array(list(library.stored.by_row))
    library.add(np.arange(10_000, 10_100), clustered(100, 7))
    library.delete(rows[:100])
    expected = [library.search(query, 10)[0].tolist() for query in clustered(10, 1)]
    monkeypatch.setattr(Codes, "train", lambda *_, **__: pytest.fail("a build"))
    again = _reopened(make, library, tmp_path / "index")
    assert again.report == [] and again.index.state == "codes"
    assert [again.search(query, 10)[0].tolist() for query in clustered(10, 1)] == expected
    again.index.wait()
    assert again.index._copies is not None and len(again.index._copies) == 1500 and not caplog.records


def test_changes_after_the_snapshot_are_applied(make: Callable[..., Library], tmp_path: Path) -> None:
    """As after a crash: the database went on, the snapshot did not."""
    library = _large(make, folder=tmp_path / "index")
    rows = np.array(list(library.stored.by_row))
    library.stored.commit(np.arange(10_000, 10_100), clustered(100, 7))
    library.stored.delete(rows[:100])
    again = make(tmp_path / "index", stored=library.stored)
    assert again.report == [] and again.index.state == "codes"
    assert again.recall(clustered(100, 7), k=1) >= 0.99
    assert again.recall(clustered(30, 1)) >= 0.97


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _other_clips(library: Library) -> None:
    row = next(iter(library.stored.by_row))
    library.stored.by_row[row] = clustered(1, 8)[0]  # as if an older database had been put back and had gone on


def _many_more(library: Library) -> None:
    library.stored.commit(np.arange(10_000, 10_500), clustered(500, 8))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder, library: _damage(next(folder.glob("*.faiss"))), "damaged"),
        (lambda folder, library: _damage(next(folder.glob("*.npy"))), "damaged"),
        (lambda folder, library: next(folder.glob("*.faiss")).unlink(), "No such file"),
        (lambda folder, library: (folder / "manifest.json").write_text("{"), "manifest"),
        (lambda folder, library: (folder / "manifest.json").write_text("[1]"), "manifest"),
        (lambda folder, library: (folder / "manifest.json").write_text("{}"), "manifest"),
        (lambda folder, library: _change(folder, format=1), "format 1"),
        (lambda folder, library: _change(folder, checkpoint="b"), "another checkpoint"),
        (lambda folder, library: _change(folder, dim=DIM * 2), "another checkpoint"),
        (lambda folder, library: _change(folder, count=3), "rows"),
        (lambda folder, library: _other_clips(library), "another library"),
        (lambda folder, library: _many_more(library), "500 clips were added"),
    ],
)
def test_an_invalid_snapshot_is_rebuilt(
    make: Callable[..., Library], tmp_path: Path, harm: Callable[[Path, Library], object], reason: str
) -> None:
    library = _large(make, folder=tmp_path / "index")
    library.index.close()
    harm(tmp_path / "index", library)
    again = make(tmp_path / "index", stored=library.stored)
    assert len(again.report) == 1 and reason in again.report[0]
    assert again.recall(clustered(5, 1)) >= 0.9  # at once, from what is stored
    again.index.wait()
    assert again.index.state == "codes" and again.recall(clustered(20, 1)) >= 0.97
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert snapshot.read(tmp_path / "index", "a", DIM) is not None


def _change(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_failed_snapshot_keeps_the_previous_one(
    make: Callable[..., Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    library = _large(make, folder=folder)
    before = sorted(path.name for path in folder.iterdir())
    library.add(np.arange(10_000, 10_100), clustered(100, 7))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Codes, "save", full)
    library.index.close()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert make(folder, stored=library.stored).index.state == "codes"


# While it changes


def test_searches_during_changes_and_rebuilds(make: Callable[..., Library]) -> None:
    """Rows 0–299 stay. Others come and go in such numbers that the index is made anew again and again.

    Each search finds the row that it asks for, whatever the state, and ten different rows with their own similarities.
    """
    vectors = clustered(2000)
    library = make(limits=Limits(flat_rows=400, exact_rows=30, spare=60, drift=0.1))
    library.add(np.arange(300), vectors[:300])
    stop, problems, states = threading.Event(), list[str](), set[str]()
    vector_of: dict[int, np.ndarray] = dict(enumerate(vectors[:300]))
    searches = 0
    numbers = iter(range(300, 10**9, 50))
    lock = threading.Lock()
    asked = threading.Barrier(4)  # once each has asked, all begin: what is flat at first does not come back

    def change(seed: int) -> None:
        rng = np.random.default_rng(seed)
        mine: list[np.ndarray] = []
        asked.wait(60)
        while not stop.is_set():
            if len(mine) < 2 or (len(mine) < 12 and rng.random() < 0.6):
                with lock:
                    first = next(numbers)
                rows = np.arange(first, first + 50)
                added = vectors[rng.integers(300, 2000, 50)]
                vector_of.update(zip(rows.tolist(), added, strict=True))
                library.add(rows, added)
                mine.append(rows)
            else:
                library.delete(mine.pop(rng.integers(len(mine))))

    def ask(seed: int) -> None:
        nonlocal searches
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            wanted = int(rng.integers(300))
            rows, similarities = library.search(vectors[wanted], 10)
            states.add(library.index.state)
            searches += 1
            if asked.n_waiting:
                asked.wait(60)
            if wanted not in rows:
                problems.append(f"lost {wanted} in {library.index.state}")
            if len(set(rows.tolist())) != 10:
                problems.append(f"{len(rows)} rows")
            own = np.array([vector_of[row] @ vectors[wanted] for row in rows.tolist()])
            if not np.allclose(own, similarities, atol=1e-5):
                problems.append("a similarity of another row")

    def guarded(work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            problems.append(repr(error))

    threads = [
        threading.Thread(target=guarded, args=(work, seed)) for seed, work in enumerate([change, change, ask, ask])
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while time.monotonic() < end and not problems and not (states == {"flat", "codes"} and searches > 2000):
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems, problems[:3]
    assert states == {"flat", "codes"} and searches > 100
    library.index.wait()
    assert len(library.index) == library.stored.count()
    assert library.recall(clustered(20, 1)) >= 0.95


# Parts


def test_rows_as_a_set() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = RowSet(), set[int]()
    for _ in range(200):
        rows = rng.integers(0, 300, rng.integers(0, 8))
        if rng.random() < 0.6:
            ours.add(rows)
            theirs |= set(rows.tolist())
        else:
            assert ours.remove(rows) == len(theirs & set(rows.tolist()))
            theirs -= set(rows.tolist())
        assert len(ours) == len(theirs) and ours.rows().tolist() == sorted(theirs)
        asked = np.arange(400)
        assert ours.has(asked).tolist() == [row in theirs for row in range(400)]
        bits = np.unpackbits(ours.packed(), bitorder="little")
        assert np.flatnonzero(bits).tolist() == sorted(theirs)
    assert RowSet(np.array([1, 5, 9])).minus(RowSet(np.array([5, 70]))).tolist() == [1, 9]


def test_cluster_counts_and_sample_sizes() -> None:
    assert cluster_count(1_000_000, 10**6) == 2048 and sample_size(1_000_000) == 65_536
    assert [cluster_count(n, n) for n in (1, 32, 1000, 30_000)] == [1, 8, 64, 256]
    assert sample_size(100) == 100


@pytest.mark.parametrize("dim", [1, 3, 6, 384])
def test_any_dim(dim: int) -> None:
    vectors = clustered(600, dim=dim)
    codes = Codes.train(vectors, 600)
    codes.add(np.arange(600), vectors)
    query = clustered(1, 5, dim)[0]
    found, _ = codes.candidates(query, 100, codes.rows)
    best = np.sort(vectors @ query)[-10:]
    assert len(found) == 100 and np.sort(vectors[found] @ query)[-1] == pytest.approx(best[-1], abs=0.02)


def test_limits() -> None:
    assert Limits.of(1024).flat_rows == 24_414 and Limits.of(10**8).flat_rows == 32
    with pytest.raises(ValueError):
        Limits(flat_rows=10)


def test_wide_clusters_are_read_before_narrow_ones() -> None:
    """What is far from every centroid, as texts are from sounds, is nearest to members of the widest group."""
    rng = np.random.default_rng(0)
    of = np.arange(400) % 2
    vectors = np.eye(2, 64)[of] + np.array([0.02, 0.2])[of, None] * rng.standard_normal((400, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    codes = Codes.train(vectors, 2)  # 2.8 √2: two groups
    codes.add(np.arange(400), vectors)
    assert codes._sizes.tolist() == [200, 200] and (codes.radii > 0).all()
    for sign in (1, -1):
        query = np.eye(1, 64, 7, dtype=np.float32)[0] * sign  # at right angles to both centres
        _, nearness, order = codes._rank_clusters(query)
        assert np.ptp(nearness) < 0.1 < np.ptp(codes.radii)
        nearest = int((vectors @ query).argmax())
        assert of[nearest] == 1 and order[0] == codes.radii.argmax()


def test_results_are_the_same_with_a_helper_thread() -> None:
    vectors = clustered(30_000)
    codes = Codes.train(vectors[:5000], 30_000)
    codes.add(np.arange(30_000), vectors)
    helper = HelperThread(2)
    some = RowSet(np.arange(0, 30_000, 10))
    for query in clustered(10, 3):
        for allowed in (codes.rows, some):
            alone = codes.candidates(query, 100, allowed)
            both = codes.candidates(query, 100, allowed, helper)
            assert len(alone[0]) == 100 and [x.tolist() for x in both] == [x.tolist() for x in alone]
    helper.close()


def test_a_slow_helper_does_not_delay_the_caller() -> None:
    helper = HelperThread(2)
    together = threading.Barrier(2)
    assert helper.run([lambda: together.wait(20) >= 0] * 2) == [True, True]  # at the same time
    busy, go = threading.Event(), threading.Event()
    other = threading.Thread(target=helper.run, args=([lambda: busy.set() or go.wait(20), lambda: go.wait(20)],))
    other.start()
    assert busy.wait(20)
    mine = threading.get_ident()
    assert helper.run([threading.get_ident] * 5) == [mine] * 5  # while it helps another: alone
    go.set()
    other.join()
    with pytest.raises(ZeroDivisionError):
        helper.run([lambda: 1 // 0] * 3)
    assert helper.run([lambda: 3, lambda: 4]) == [3, 4]
    helper.close()
    assert helper.run([threading.get_ident] * 2) == [mine] * 2 and not helper.available
    assert HelperThread(1).run([threading.get_ident] * 2) == [mine] * 2


def test_work_is_not_split_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf_rabitq, "_MIN_SHARED_CODES", 0)
    codes = Codes.train(clustered(1000), 1000)
    codes.add(np.arange(1000), clustered(1000))
    counts: list[int] = []
    for cores in (1, 2):
        helper = HelperThread(cores)
        monkeypatch.setattr(helper, "run", lambda parts: counts.append(len(parts)) or [part() for part in parts])
        codes.candidates(clustered(1, 3)[0], 10, codes.rows, helper)
        helper.close()
    assert counts == [1, 4]


def test_run_works_when_no_thread_can_start() -> None:
    """As while the interpreter ends, and in a process that was forked and has not the helper's thread."""
    helper = HelperThread(2)
    mine = threading.get_ident()
    assert helper._pool is not None
    helper._pool.shutdown()
    assert helper.run([threading.get_ident] * 3) == [mine] * 3
    code = """
import os
from index.vectors.ivf_rabitq import HelperThread
helper = HelperThread(2)
helper.run([lambda: 1] * 2)  # its thread has begun
child = os.fork()
if child == 0:
    os._exit(0 if helper.run([lambda: 3, lambda: 4]) == [3, 4] else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    helper.close()


def test_usable_cores_on_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert usable_cores() == os.cpu_count()


def test_a_set_of_rows_is_a_set() -> None:
    rng = np.random.default_rng(0)
    rows, there = RowSet(), set()
    for _ in range(200):
        some = rng.integers(0, 300, rng.integers(0, 40))  # with repetitions
        if rng.random() < 0.5:
            rows.add(some)
            there |= set(some.tolist())
        else:
            assert rows.remove(some) == len(there & set(some.tolist()))
            there -= set(some.tolist())
        both = rows.among(some)
        assert both.rows().tolist() == sorted(there & set(some.tolist())) and len(both) == len(both.rows())
        assert rows.rows().tolist() == sorted(there) and len(rows) == len(there)
        assert np.flatnonzero(np.unpackbits(rows.packed(), bitorder="little")).tolist() == sorted(there)


# GPU


def test_a_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(GpuMissing, match="without GPU support: install faiss-gpu"):
        VectorIndex(DIM, FakeStoredVectors(DIM), gpu=True)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(GpuMissing, match="finds no GPU"):
        VectorIndex(DIM, FakeStoredVectors(DIM), gpu=True)


@pytest.mark.parametrize("gpu", [True, False])
def test_clustering_on_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Library]) -> None:
    """A FAISS that says that it has one, and notes where it was to work."""
    asked: list[object] = []
    real = faiss.Kmeans

    def kmeans(*arguments: object, gpu: object, **keywords: object) -> object:
        asked.append(gpu)
        return real(*arguments, **keywords)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "Kmeans", kmeans)
    library = make(gpu=gpu)
    library.add(np.arange(300), clustered(300))
    library.index.wait()
    assert library.index.state == "codes" and set(asked) == {gpu}
