"""Conditional and range requests by RFC 9110: a table of exchanges, each with its section, and the parser by itself."""

from __future__ import annotations

import hashlib
from email.utils import formatdate, parsedate_to_datetime
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from app.api.conditional import Version, evaluate, parse_ranges
from tests.support import hostile

SIZE = 16_044  # bytes of the clip
OLD, NEW = formatdate(1_000_000_000, usegmt=True), formatdate(4_000_000_000, usegmt=True)


class Exchange(NamedTuple):
    """A request for a clip's audio, and what RFC 9110 asks for. $E: the file's ETag; $M: its Last-Modified.

    body: the bytes that come, as (first, last); None for a body that is not checked.
    """

    section: str
    method: str
    headers: dict[str, str]
    status: int
    body: tuple[int, int] | None = None


WHOLE = (0, SIZE - 1)
NOTHING = (0, -1)
TABLE = [
    Exchange("9.3.1", "GET", {}, 200, WHOLE),
    Exchange("9.3.2", "HEAD", {}, 200, NOTHING),
    # 13.1.1 If-Match, strong comparison
    Exchange("13.1.1", "GET", {"If-Match": "$E"}, 200, WHOLE),
    Exchange("13.1.1", "GET", {"If-Match": "*"}, 200, WHOLE),
    Exchange("13.1.1", "GET", {"If-Match": '"another"'}, 412),
    Exchange("13.1.1", "GET", {"If-Match": '"another", $E'}, 200, WHOLE),
    Exchange("13.1.1, 8.8.3.2", "GET", {"If-Match": "W/$E"}, 412),
    # 13.1.2 If-None-Match, weak comparison
    Exchange("13.1.2", "GET", {"If-None-Match": "$E"}, 304, NOTHING),
    Exchange("13.1.2", "HEAD", {"If-None-Match": "$E"}, 304, NOTHING),
    Exchange("13.1.2, 8.8.3.2", "GET", {"If-None-Match": "W/$E"}, 304, NOTHING),
    Exchange("13.1.2", "GET", {"If-None-Match": "*"}, 304, NOTHING),
    Exchange("13.1.2", "GET", {"If-None-Match": '"a","b" , $E'}, 304, NOTHING),
    Exchange("13.1.2", "GET", {"If-None-Match": '"another"'}, 200, WHOLE),
    # 13.1.3 If-Modified-Since, 13.1.4 If-Unmodified-Since
    Exchange("13.1.3", "GET", {"If-Modified-Since": "$M"}, 304, NOTHING),
    Exchange("13.1.3", "GET", {"If-Modified-Since": NEW}, 304, NOTHING),
    Exchange("13.1.3", "GET", {"If-Modified-Since": OLD}, 200, WHOLE),
    Exchange("13.1.3", "GET", {"If-Modified-Since": "yesterday"}, 200, WHOLE),
    Exchange("13.1.4", "GET", {"If-Unmodified-Since": "$M"}, 200, WHOLE),
    Exchange("13.1.4", "GET", {"If-Unmodified-Since": OLD}, 412),
    Exchange("13.1.4", "GET", {"If-Unmodified-Since": "soon"}, 200, WHOLE),
    # 13.2.2 precedence
    Exchange("13.2.2", "GET", {"If-None-Match": '"another"', "If-Modified-Since": NEW}, 200, WHOLE),
    Exchange("13.2.2", "GET", {"If-Match": "$E", "If-Unmodified-Since": OLD}, 200, WHOLE),
    Exchange("13.2.2", "GET", {"If-Match": '"another"', "If-None-Match": "$E"}, 412),
    Exchange("13.2.2", "GET", {"If-None-Match": "$E", "Range": "bytes=0-9"}, 304, NOTHING),
    # 14.2 Range
    Exchange("14.2", "GET", {"Range": "bytes=0-0"}, 206, (0, 0)),
    Exchange("14.1.2", "GET", {"Range": "bytes=100-199"}, 206, (100, 199)),
    Exchange("14.1.2", "GET", {"Range": "bytes=16000-"}, 206, (16_000, SIZE - 1)),
    Exchange("14.1.2", "GET", {"Range": "bytes=-44"}, 206, (16_000, SIZE - 1)),
    Exchange("14.1.2", "GET", {"Range": "bytes=-99999"}, 206, WHOLE),
    Exchange("14.1.2", "GET", {"Range": "bytes=16000-99999"}, 206, (16_000, SIZE - 1)),
    Exchange("14.1.1", "GET", {"Range": "BYTES=0-9"}, 206, (0, 9)),
    Exchange("14.2", "GET", {"Range": "bytes=9-0"}, 200, WHOLE),
    Exchange("14.2", "GET", {"Range": "seconds=0-9"}, 200, WHOLE),
    Exchange("14.2", "HEAD", {"Range": "bytes=0-9"}, 200, NOTHING),
    Exchange("14.2", "GET", {"Range": "bytes=99999-"}, 416),
    Exchange("14.1.2", "GET", {"Range": "bytes=-0"}, 416),
    Exchange("14.1.2", "GET", {"Range": "bytes=0-9,99999-"}, 206, (0, 9)),
    Exchange("15.5.17", "GET", {"Range": "bytes=99999-,88888-"}, 416),
    # 13.1.5 If-Range
    Exchange("13.1.5", "GET", {"Range": "bytes=0-9", "If-Range": "$E"}, 206, (0, 9)),
    Exchange("13.1.5", "GET", {"Range": "bytes=0-9", "If-Range": '"another"'}, 200, WHOLE),
    Exchange("13.1.5", "GET", {"Range": "bytes=0-9", "If-Range": "W/$E"}, 200, WHOLE),
    Exchange("13.1.5", "GET", {"Range": "bytes=0-9", "If-Range": "$M"}, 206, (0, 9)),
    Exchange("13.1.5", "GET", {"Range": "bytes=0-9", "If-Range": OLD}, 200, WHOLE),
    Exchange("13.1.5", "GET", {"Range": "bytes=99999-", "If-Range": '"another"'}, 200, WHOLE),
    Exchange("13.1.5", "GET", {"If-Range": '"another"'}, 200, WHOLE),
]


@pytest.fixture
async def sound(client: httpx.AsyncClient) -> tuple[str, bytes, str, str]:
    """(address, bytes, ETag, Last-Modified) of a clip's audio."""
    samples = np.random.default_rng(9110).uniform(-0.3, 0.3, 8_000)
    data = hostile.encode(samples, subtype="PCM_16")
    assert len(data) == SIZE
    clip = (await client.post("/clips", files={"files": ("a.wav", data)})).json()["clips"][0]
    address = f"/clips/{clip['id']}/audio"
    head = await client.head(address)
    assert head.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    return address, data, head.headers["etag"], head.headers["last-modified"]


async def test_the_table(client: httpx.AsyncClient, sound: tuple[str, bytes, str, str]) -> None:
    address, data, etag, modified = sound
    wrong = []
    for exchange in TABLE:
        headers = {name: v.replace("$E", etag).replace("$M", modified) for name, v in exchange.headers.items()}
        answer = await client.request(exchange.method, address, headers=headers)
        first, last = exchange.body or (0, 0)
        whole = exchange.method == "HEAD" and answer.status_code == 200
        right = (
            answer.status_code == exchange.status
            and (exchange.body is None or answer.content == data[first : last + 1])
            and (exchange.status in (412, 416) or answer.headers["etag"] == etag)
            and (exchange.status != 206 or answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}")
            and (exchange.status != 416 or answer.headers["content-range"] == f"bytes */{SIZE}")
            and (exchange.status != 200 or answer.headers["accept-ranges"] == "bytes")
            and (not whole or answer.headers["content-length"] == str(SIZE))
            and (exchange.status != 304 or "max-age" in answer.headers["cache-control"])  # 15.4.5
        )
        if not right:
            wrong.append((exchange, answer.status_code, len(answer.content), dict(answer.headers)))
    assert not wrong
    assert len(TABLE) >= 40


async def test_several_ranges(client: httpx.AsyncClient, sound: tuple[str, bytes, str, str]) -> None:
    """14.6: multipart/byteranges, without the range that lies behind the end."""
    address, data, _, _ = sound
    answer = await client.get(address, headers={"Range": "bytes=0-9, 99999-, 100-109"})
    assert answer.status_code == 206
    kind, _, boundary = answer.headers["content-type"].partition("boundary=")
    assert kind.startswith("multipart/byteranges")
    parts = answer.content.split(b"--" + boundary.encode())[1:-1]
    for part, (first, last) in zip(parts, [(0, 9), (100, 109)], strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert f"content-range: bytes {first}-{last}/{SIZE}".encode() in head.lower()
        assert body.removesuffix(b"\r\n") == data[first : last + 1]


async def test_dates_are_those_of_the_file(client: httpx.AsyncClient, sound: tuple[str, bytes, str, str]) -> None:
    """8.8.2.1: not later than now, and an HTTP date in GMT."""
    modified = sound[3]
    assert modified.endswith(" GMT")
    date = parsedate_to_datetime((await client.get("/health/live")).headers.get("date", NEW))
    assert parsedate_to_datetime(modified) <= date


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-10", 100, [(0, 10)]),
        ("bytes=99-", 100, [(99, 99)]),
        ("bytes=-5", 100, [(95, 99)]),
        ("bytes=0-0, 50-60", 100, [(0, 0), (50, 60)]),
        ("bytes=,0-0,,", 100, [(0, 0)]),  # 5.6.1: empty elements of a list
        ("Bytes=0-10", 100, [(0, 10)]),
        ("bytes=100-", 100, []),
        ("bytes=-0", 100, []),
        ("bytes=0-", 0, []),
        ("bytes=-5", 0, []),
        ("bytes=0-1,200-", 100, [(0, 1)]),
        ("bytes=10-5", 100, None),
        ("bytes=0-1,10-5", 100, None),
        ("items=0-5", 100, None),
        ("bytes=", 100, None),
        ("bytes=a-b", 100, None),
        ("bytes=٣-٤", 100, None),
        ("nonsense", 100, None),
        ("bytes=" + ",".join("0-0" for _ in range(100)), 100, None),  # an attack
    ],
)
def test_range_headers(header: str, size: int, expected: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(header, size) == expected


@pytest.mark.parametrize("name", ["if-match", "if-none-match", "if-range", "if-modified-since", "if-unmodified-since"])
@pytest.mark.parametrize("value", ["", ",", '"', "W/", '"a" "b"', "Thu, 99 Xyz 0000 99:99:99 GMT", "\x00", "*,*"])
def test_nonsense_is_answered(name: str, value: str) -> None:
    outcome = evaluate("GET", {name: value, "range": "bytes=0-1"}, Version('"e"', 1_700_000_000.5, 10))
    assert outcome.status in (200, 206, 304, 412)
