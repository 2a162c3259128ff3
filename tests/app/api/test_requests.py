"""Cleaning file names and parsing JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.requests import clean_filename, parse_json
from app.errors import Malformed


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
def test_any_file_name_can_be_stored_after_cleaning(name: str) -> None:
    clean = clean_filename(name)
    assert 0 < len(clean) <= 255 and clean.encode("utf-8")
    assert not set(clean) & set("/\\\0\n\r") and clean not in (".", "..")
    assert clean_filename(clean) == clean


def test_long_names_keep_their_suffix() -> None:
    assert clean_filename("x" * 300 + ".flac") == "x" * 250 + ".flac"


@pytest.mark.parametrize(
    "text", ["abc", "", "{", "NaN", "[Infinity]", "-Infinity", '"\\ud800"', "[" * 100_000, b"\xff\xfe\x00", "9" * 5000]
)
def test_invalid_json_is_rejected(text: str | bytes) -> None:
    with pytest.raises(Malformed, match="the body is not valid JSON"):
        parse_json(text, "the body")


def test_json() -> None:
    assert parse_json(b'{"a": [1, null, "\\u72ac"]}', "the body") == {"a": [1, None, "犬"]}
