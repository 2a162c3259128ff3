"""Objects in an S3 bucket: a real server on this machine, and what it does wrong."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.objects import Objects, open_objects

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from tests.support.s3 import BUCKET, S3  # noqa: E402

CONTENT = os.urandom(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"audio/{SHA256}"


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Callable[[], Objects]:
    """Opens the bucket as another process would: without what this one remembers."""

    def open_it(fetched: str = "fetched") -> Objects:
        s3fs.S3FileSystem.clear_instance_cache()
        return open_objects(f"s3://{BUCKET}/library", tmp_path / fetched)

    return open_it


def test_objects_are_shared_and_cached(s3: S3, bucket: Callable[..., Objects]) -> None:
    ours, theirs = bucket(), bucket("other")
    ours.check()
    assert not ours.has(NAME)
    assert ours.put(NAME, io.BytesIO(CONTENT)) == SHA256
    assert theirs.has(NAME) and theirs.local(NAME).read_bytes() == CONTENT
    reads = sum(method == "GET" for method, path in s3.calls if path.endswith(SHA256))
    assert theirs.local(NAME).read_bytes() == CONTENT  # from the local copy
    assert sum(method == "GET" for method, path in s3.calls if path.endswith(SHA256)) == reads
    ours.remove(NAME)
    assert not theirs.has(NAME)
    with pytest.raises(FileNotFoundError):
        theirs.local(NAME)
    ours.remove(NAME)  # again


def test_large_objects_are_uploaded_in_parts(s3: S3, bucket: Callable[..., Objects]) -> None:
    content = np.random.default_rng(0).bytes(60_000_000)
    assert bucket().put("audio/large", io.BytesIO(content)) == hashlib.sha256(content).hexdigest()
    assert sum(method == "PUT" for method, path in s3.calls) > 1
    assert bucket("other").local("audio/large").read_bytes() == content


@pytest.mark.parametrize("fault", ["503", "drop", 1.0])
def test_brief_faults_are_not_noticed(s3: S3, bucket: Callable[..., Objects], fault: str | float) -> None:
    """Busy, broken connections and slow answers: the client tries again."""
    remaining = iter([fault] * 2)
    s3.fault = lambda method, path: next(remaining, None)
    objects = bucket()
    assert objects.put(NAME, CONTENT) == SHA256
    remaining = iter([fault] * 2)
    assert objects.local(NAME).read_bytes() == CONTENT
    assert next(remaining, None) is None  # it was met


def test_a_download_that_breaks_leaves_nothing(s3: S3, bucket: Callable[..., Objects], tmp_path: Path) -> None:
    bucket().put(NAME, CONTENT)
    s3.fault = lambda method, path: "cut" if method == "GET" and path.endswith(SHA256) else None
    objects = bucket()
    with pytest.raises(OSError):
        objects.local(NAME)
    assert not list((tmp_path / "fetched").iterdir())
    s3.fault = lambda method, path: None
    assert objects.local(NAME).read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "drop", "expired"])
def test_lasting_faults_are_errors_in_bounded_time(s3: S3, bucket: Callable[..., Objects], fault: str) -> None:
    objects = bucket()
    objects.put(NAME, CONTENT)
    s3.fault = lambda method, path: fault
    calls = (lambda: objects.put("audio/other", CONTENT), lambda: objects.local(NAME), lambda: objects.has(NAME))
    for call in (*calls, objects.check):
        began = time.monotonic()
        with pytest.raises(OSError):
            call()
        assert time.monotonic() - began < 60
    s3.fault = lambda method, path: None
    objects.check()
    assert objects.has(NAME) and not objects.has("audio/other")


def test_wrong_keys_are_errors(s3: S3, bucket: Callable[..., Objects], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket().put(NAME, CONTENT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    objects = bucket("other")
    for call in (objects.check, lambda: objects.put("audio/other", CONTENT), lambda: objects.local(NAME)):
        with pytest.raises(OSError):
            call()


def test_a_missing_bucket_is_an_error(s3: S3, tmp_path: Path) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError):
        open_objects("s3://finelap-nowhere/library", tmp_path).check()


def test_the_check_asks_the_server(s3: S3, bucket: Callable[..., Objects]) -> None:
    """Readiness must not come from what the client remembers."""
    objects = bucket()
    objects.put(NAME, CONTENT)
    objects.check()
    before = len(s3.calls)
    objects.check()
    assert len(s3.calls) > before
