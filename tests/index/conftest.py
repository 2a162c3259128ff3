"""Fixtures for tests of libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from index import NewClip, SqliteLibrary
from tests.support.clips import DIM, make_clip


@pytest.fixture
def new_clip() -> Callable[..., NewClip]:
    return make_clip


@pytest.fixture
def open_library(tmp_path: Path) -> Iterator[Callable[..., SqliteLibrary]]:
    """Opens the test's library; the one opened before is closed first."""
    opened: list[SqliteLibrary] = []

    def open_it(folder: Path = tmp_path / "library", dim: int = DIM, checkpoint: str = "checkpoint-a") -> SqliteLibrary:
        if opened:
            opened[-1].close()
        opened.append(SqliteLibrary.open(folder, dim=dim, checkpoint=checkpoint))
        return opened[-1]

    yield open_it
    for library in opened:
        library.close()


@pytest.fixture
def library(open_library: Callable[..., SqliteLibrary]) -> SqliteLibrary:
    return open_library()
