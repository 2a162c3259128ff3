"""Media types and truncation, detected from content."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audio.containers import media_type, missing_bytes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("WAV", "audio/wav"),
        ("FLAC", "audio/flac"),
        ("OGG", "audio/ogg"),
        ("MP3", "audio/mpeg"),
        ("AIFF", "audio/aiff"),
        ("AU", "audio/basic"),
        ("CAF", "audio/x-caf"),
    ],
)
def test_media_type_is_detected_from_content(sounds: SimpleNamespace, kind: str, expected: str) -> None:
    data = sounds.encode(sounds.tone(440, 0.5), kind)
    assert media_type(data[:16]) == expected
    assert missing_bytes(data) is None


def test_media_type_of_other_content() -> None:
    assert media_type(b"") == media_type(b"hello") == "application/octet-stream"


@given(st.binary(max_size=200))
def test_arbitrary_headers_do_not_raise(data: bytes) -> None:
    for start in (b"", b"RIFF\0\0\0\0WAVE", b"FORM\0\0\0\0AIFF", b"OggS"):
        media_type((start + data)[:16])
        missing_bytes(start + data)
