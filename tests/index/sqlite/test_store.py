"""The database file: migrations, refusals, snapshots, a disk that is full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from index.records import LibraryError, StorageFull
from index.sqlite.store import MIGRATIONS, Store


def _version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()


def test_a_new_file_has_the_newest_version_and_is_durable(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite3")
    with store.write() as change:
        assert change.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert change.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert change.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    store.close()
    assert _version(tmp_path / "a.sqlite3") == len(MIGRATIONS)


def test_an_older_library_is_brought_forward_once_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    old = Store(path)
    with old.write() as change:
        change.execute("INSERT INTO library VALUES (1, 'x', 8)")
    old.close()
    newer = (*MIGRATIONS, "ALTER TABLE library ADD COLUMN note TEXT; UPDATE library SET note = 'moved';")
    for _ in range(2):  # the second time there is nothing to do
        store = Store(path, newer)
        with store.read() as view:
            assert view.execute("SELECT * FROM library").fetchall() == [(1, "x", 8, "moved")]
        store.close()
    assert _version(path) == len(MIGRATIONS) + 1


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    Store(path).close()
    with pytest.raises(LibraryError):
        Store(path, (*MIGRATIONS, "CREATE TABLE extra (a); INSERT INTO nowhere VALUES (1);"))
    assert _version(path) == len(MIGRATIONS)
    Store(path, (*MIGRATIONS, "CREATE TABLE extra (a);")).close()


def test_a_library_of_a_newer_release_is_rejected_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    Store(path, (*MIGRATIONS, "CREATE TABLE extra (a);")).close()
    before = path.read_bytes()
    with pytest.raises(
        LibraryError, match=f"has format {len(MIGRATIONS) + 1}, but this release reads formats up to {len(MIGRATIONS)}"
    ):
        Store(path)
    assert path.read_bytes() == before


def test_other_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"this is not a database, it is a text " * 100)
    with pytest.raises(LibraryError):
        Store(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(LibraryError, match="not a FineLAP library"):
        Store(tmp_path / "other")


def test_a_reader_sees_one_state_and_a_failed_change_leaves_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite3")
    insert = "INSERT INTO library VALUES (1, 'x', 8)"
    with store.read() as view:
        assert view.execute("SELECT count(*) FROM library").fetchone()[0] == 0
        with store.write() as change:
            change.execute(insert)
        assert view.execute("SELECT count(*) FROM library").fetchone()[0] == 0
    with pytest.raises(RuntimeError), store.write() as change:
        change.execute("DELETE FROM library")
        raise RuntimeError
    with store.read() as view:
        assert view.execute("SELECT count(*) FROM library").fetchone()[0] == 1
        with pytest.raises(sqlite3.OperationalError):
            view.execute("DELETE FROM library")
    store.close()


def test_a_full_database_raises_and_recovers(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite3")
    with store.write() as change:
        change.execute("CREATE TABLE filler (a)")
        pages = change.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(StorageFull), store.write() as change:
        change.execute("INSERT INTO filler VALUES ('small')")
        change.execute("INSERT INTO filler VALUES (randomblob(1000000))")
    with store.read() as view:
        assert view.execute("SELECT count(*) FROM filler").fetchone()[0] == 0
    with store.write() as change:
        change.execute("INSERT INTO filler VALUES ('small')")
    store.close()


def test_closed(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite3")
    with store.read() as view:
        store.close()
        assert view.execute("SELECT 1").fetchone() == (1,)  # a reader at work is not cut off
    for door in (store.read, store.write):
        with pytest.raises(LibraryError, match="closed"), door():
            pass
    with pytest.raises(LibraryError, match="closed"):
        store.check()


def test_check_notices_that_the_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    store = Store(path)
    store.check()
    path.rename(tmp_path / "moved")
    with pytest.raises(LibraryError):
        store.check()
    path.touch()
    with pytest.raises(LibraryError, match="replaced"):
        store.check()
    store.close()
