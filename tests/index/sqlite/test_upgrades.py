"""Libraries of every release before open, are brought forward, and answer as they did; see libraries/make.py."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sqlite3
import sys
import tarfile
import unicodedata
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from index.records import CheckpointMismatch, NewClip
from index.sqlite import backup, queries
from index.sqlite.library import SqliteLibrary
from index.sqlite.store import DATABASE_FILE, MIGRATIONS, Store
from index.text import has_folded_letters, split_words
from tests.support.clips import nearest_hits

LIBRARIES = Path(__file__).with_name("libraries")
MADE = sorted(LIBRARIES.glob("*.tar.xz"))


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_library", LIBRARIES / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_library"] = module
    spec.loader.exec_module(module)
    return module


make = _make()
THERE = [n for n in range(make.CLIPS) if n != make.DELETED]


@pytest.fixture(params=MADE, ids=lambda path: path.name.partition(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    return tmp_path / "data"


def version(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "catalog.sqlite3")) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def metadata(number: int) -> dict:
    about = make.about(number)
    if number == make.PATCHED:
        about["tags"] = ["changed"]
        del about["loud"]
    return about


def check(library: SqliteLibrary, ids: dict[int, str]) -> None:
    clips = {clip.id: clip for clip in library.list(100)[0]}
    assert set(clips) == {ids[n] for n in THERE} and len(library) == len(THERE)
    for n in THERE:
        clip, data = clips[ids[n]], make.audio(n)
        assert (clip.filename, clip.duration) == (f"DogBark_{n:02}-声.wav", 1.5 * (n + 1))
        assert (clip.sample_rate, clip.channels) == (16_000 + n, 1 + n % 2)
        assert clip.metadata == metadata(n) and clip.sha256 == hashlib.sha256(data).hexdigest()
        assert library.audio_path(clip.id).read_bytes() == data
        embedding, frames = make.vectors(n)
        np.testing.assert_array_equal(library.clip_vector(clip.id), embedding)
        kept, hop = library.frames(clip.id)
        assert kept.shape == frames.shape and np.abs(kept - frames).max() < 0.01 and hop == 0.16


def answers(library: SqliteLibrary) -> list[list[tuple[str, float]]]:
    """What searches of every kind find, by file name, with similarities."""
    found = []
    for seed in range(6):
        query = np.random.RandomState(seed).standard_normal(make.DIM).astype(np.float32)
        found += [
            nearest_hits(library, query, 100),
            nearest_hits(library, query, 100, {"tags": "dog", "number": {"gte": 3}}),
        ]
        found += [nearest_hits(library, query, 4, {"loud": True, "level": {"lt": 2.75}, "duration": {"lt": 19}})]
        found += [library.search_segments(query, 100), library.search_segments(query, 2, {"tags": ["rain", "changed"]})]
        found += [
            library.search_words(words, query, 100) for words in ("barking", "犬", "door 11", "changed", "nothing")
        ]
    return [[(hit.clip.filename, round(hit.similarity, 5)) for hit in hits] for hits in found]


def check_searches(library: SqliteLibrary, folder: Path) -> None:
    """Against a library that this release makes of the same clips, and against all inner products."""
    make.fill(folder)
    with SqliteLibrary.open(folder, dim=make.DIM, checkpoint=make.CHECKPOINT) as fresh:
        expected = answers(fresh)
    assert answers(library) == expected and sum(map(bool, expected)) > len(expected) / 2
    query = np.random.RandomState(0).standard_normal(make.DIM).astype(np.float32)
    products = np.stack([make.vectors(n)[0] for n in THERE]) @ query
    np.testing.assert_allclose([s for _, s in expected[0]], np.sort(products)[::-1], atol=1e-5)


def test_every_format_is_among_them(tmp_path: Path) -> None:
    versions = set()
    for number, made in enumerate(MADE):
        with tarfile.open(made) as archive:
            archive.extractall(tmp_path / str(number), filter="data")
        versions.add(version(tmp_path / str(number)))
    assert versions == set(range(1, len(MIGRATIONS) + 1)), "a format was added: make a library of it (make.py)"
    assert sum(made.stat().st_size for made in MADE) < 200_000


def test_it_opens_and_answers(old: Path, tmp_path: Path) -> None:
    ids = {int(n): clip_id for n, clip_id in json.loads((old / "ids.json").read_text()).items()}
    with SqliteLibrary.open(old, dim=make.DIM, checkpoint=make.CHECKPOINT) as library:
        assert not library.recovery_report
        check(library, ids)
        check_searches(library, tmp_path / "fresh")
        library.delete(ids[0])
        library.update_metadata(ids[1], {"new": 1})
        assert library.get(ids[1]).metadata == metadata(1) | {"new": 1}
    assert version(old) == len(MIGRATIONS)
    with SqliteLibrary.open(old, dim=make.DIM, checkpoint=make.CHECKPOINT) as library:
        assert len(library) == len(THERE) - 1 and not library.recovery_report


def test_it_is_backed_up_and_restored(old: Path, tmp_path: Path) -> None:
    ids = {int(n): clip_id for n, clip_id in json.loads((old / "ids.json").read_text()).items()}
    with SqliteLibrary.open(old, dim=make.DIM, checkpoint=make.CHECKPOINT):
        backup.back_up(old, tmp_path / "copies", lambda *_: None)
    backup.restore(tmp_path / "copies", tmp_path / "again", lambda *_: None)
    with SqliteLibrary.open(tmp_path / "again", dim=make.DIM, checkpoint=make.CHECKPOINT) as library:
        check(library, ids)
        check_searches(library, tmp_path / "fresh")


def test_another_checkpoint_is_refused(old: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="reindex"):
        SqliteLibrary.open(old, dim=make.DIM, checkpoint="another")


def test_a_migration_that_is_broken_off(old: Path) -> None:
    """The power goes while it is brought forward: the next start does it again, from where it was."""
    before = version(old)
    (old / "catalog.sqlite3-wal").unlink(missing_ok=True)
    kept = (old / "catalog.sqlite3").read_bytes()
    with closing(sqlite3.connect(old / "catalog.sqlite3", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE half (a)")
        database.execute(f"PRAGMA user_version = {before + 1}")  # and no commit
    assert version(old) == before
    (old / "catalog.sqlite3").write_bytes(kept)
    ids = {int(n): clip_id for n, clip_id in json.loads((old / "ids.json").read_text()).items()}
    with SqliteLibrary.open(old, dim=make.DIM, checkpoint=make.CHECKPOINT) as library:
        check(library, ids)


FOLDING = 5  # the format from which a library has folded words is one later


def test_words_of_existing_clips_are_folded(tmp_path: Path) -> None:
    """Names and metadata that a release before folding indexed with their own letters."""
    names = {"Straße im Regen.wav": "strasse", "Е\u0308лка.wav": "елка", "Łódź_01.wav": "lodz", "Rain.wav": "rain"}
    folder = tmp_path / "data"
    with SqliteLibrary.open(folder, dim=make.DIM, checkpoint="one") as library:
        for number, name in enumerate(names):
            embedding, frames = make.vectors(number)
            data = make.audio(number)
            sha256 = hashlib.sha256(data).hexdigest()
            about = {"tags": ["Smørrebrød"] if number == 3 else []}
            library.add(NewClip(name, sha256, 1.0, 16_000, 1, about, embedding, frames, 0.16, data))
    store = Store(folder / DATABASE_FILE)
    with store.write() as change:
        for row, name, about in change.execute("SELECT row, filename, metadata FROM clips").fetchall():
            texts = (unicodedata.normalize("NFKC", name), " ".join(json.loads(about)["tags"]), "kept")
            change.execute("UPDATE words SET name = ?, tags = ?, others = ? WHERE rowid = ?", (*texts, row))
        change.execute("ALTER TABLE concepts DROP COLUMN threshold")  # which a later format added
        change.execute(f"PRAGMA user_version = {FOLDING}")
    with store.read() as view:
        assert not queries.count_terms(view, ["strasse"])
    store.close()
    query = np.ones(make.DIM, np.float32)
    with SqliteLibrary.open(folder, dim=make.DIM, checkpoint="one") as library:
        found = {word: library.search_words(word, query, 9) for word in (*names.values(), "smorrebrod")}
    assert {hits[0].clip.filename: word for word, hits in list(found.items())[:4]} == names
    assert all(len(hits) == 1 for hits in found.values()) and found["smorrebrod"][0].clip.filename == "Rain.wav"
    assert version(folder) == len(MIGRATIONS)


@pytest.mark.parametrize(
    "text", ["Straße", "Е\u0308лка", "ŁÓDŹ", "SMØRREBRØD", "Rain", "Tür", "犬", "ﬁre", "ŒUVRE", ""]
)
def test_clips_with_folded_letters_are_known(text: str) -> None:
    folds = split_words(text) != unicodedata.normalize("NFKC", text) and "犬" not in text
    assert has_folded_letters(text) == folds
