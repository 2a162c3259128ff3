"""Media types by content, ranges, and file names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.clips import can_serve
from app.api.requests import clean_filename, parse_json
from app.audio.containers import media_type, missing_bytes
from app.errors import Malformed


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
def test_media_type_is_read_from_the_content(sounds: SimpleNamespace, kind: str, expected: str) -> None:
    data = sounds.encode(sounds.tone(440, 0.5), kind)
    assert media_type(data[:16]) == expected
    assert missing_bytes(data) is None


def test_media_type_of_anything_else() -> None:
    assert media_type(b"") == media_type(b"hello") == "application/octet-stream"


@given(st.binary(max_size=200))
def test_headers_of_any_bytes_can_be_looked_at(data: bytes) -> None:
    for start in (b"", b"RIFF\0\0\0\0WAVE", b"FORM\0\0\0\0AIFF", b"OggS"):
        media_type((start + data)[:16])
        missing_bytes(start + data)


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-10", 100, True),
        ("bytes=99-", 100, True),
        ("bytes=-5", 100, True),
        ("bytes=0-0, 50-60", 100, True),
        ("Bytes=0-10", 100, True),
        ("bytes=100-", 100, False),
        ("bytes=-0", 100, False),
        ("bytes=0-", 0, False),
        ("bytes=0-1,200-", 100, False),
        ("bytes=10-5", 100, None),
        ("items=0-5", 100, None),
        ("bytes=", 100, None),
        ("bytes=a-b", 100, None),
        ("nonsense", 100, None),
    ],
)
def test_ranges(header: str, size: int, expected: bool | None) -> None:
    assert can_serve(header, size) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog.wav", "dog.wav"),
        ("../../etc/passwd", "passwd"),
        ("C:\\sounds\\dog.wav", "dog.wav"),
        ("犬の声.ogg", "犬の声.ogg"),
        ("صوت.mp3", "صوت.mp3"),
        ("a\x00b\r\nc\x1b.wav", "abc.wav"),
        ("cafe\u0301.wav", "café.wav"),
        ("gpj.\u202evaw.exe", "gpj.vaw.exe"),
        ("", "unnamed"),
        (None, "unnamed"),
        ("..", "unnamed"),
        ("dir/", "unnamed"),
        ('say "hi".wav', 'say "hi".wav'),
    ],
)
def test_file_names(name: str | None, expected: str) -> None:
    assert clean_filename(name) == expected


@given(st.text(max_size=400))
def test_any_file_name_becomes_one_that_can_be_stored(name: str) -> None:
    clean = clean_filename(name)
    assert 0 < len(clean) <= 255 and clean.encode("utf-8")
    assert not set(clean) & set("/\\\0\n\r") and clean not in (".", "..")
    assert clean_filename(clean) == clean


def test_long_names_keep_their_suffix() -> None:
    assert clean_filename("x" * 300 + ".flac") == "x" * 250 + ".flac"


@pytest.mark.parametrize(
    "text", ["abc", "", "{", "NaN", "[Infinity]", "-Infinity", '"\\ud800"', "[" * 100_000, b"\xff\xfe\x00", "9" * 5000]
)
def test_what_is_not_json(text: str | bytes) -> None:
    with pytest.raises(Malformed, match="the body is not valid JSON"):
        parse_json(text, "the body")


def test_json() -> None:
    assert parse_json(b'{"a": [1, null, "\\u72ac"]}', "the body") == {"a": [1, None, "犬"]}
