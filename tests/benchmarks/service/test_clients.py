"""The load generator reports outcomes correctly."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from benchmarks.clients import Caller, Outcome, run_callers

_HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nContent-Length: %d\r\n%s\r\n"
_GOOD = (b"200 OK", b"", 10.0)  # status, headers, duration


@pytest.mark.parametrize(
    ("outcomes", "statuses"),
    [
        ([_GOOD] * 3, [200, 200, 200]),
        ([_GOOD, (b"429 Busy", b"Retry-After: 0\r\n", 0.0), _GOOD], [200, 429, 200]),
        ([(b"200 OK", b"Connection: close\r\n", 10.0), (b"200 OK", b"", 4.0)], [200, 200]),
        ([_GOOD, (b"", b"", 0.0), _GOOD], [200, 0, 200]),
    ],
)
def test_callers_report_outcomes(outcomes: list[tuple[bytes, bytes, float]], statuses: list[int]) -> None:
    remaining, bodies = list(outcomes), set[bytes]()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError):
            while remaining:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                bodies.add(await reader.readexactly(size))
                status, more, duration = remaining.pop(0)
                if not status:
                    break
                body = json.dumps({"audio": [{"duration": duration}]}).encode()
                writer.write(_HEAD % (status, len(body), more) + body)
                if b"close" in more:
                    break
        writer.close()

    async def run() -> list[Outcome]:
        server = await asyncio.start_server(respond, "127.0.0.1", 0, limit=1 << 24)
        port = server.sockets[0].getsockname()[1]
        async with server:
            caller = Caller("embed", 10.0, "embed", files=1, rounds=statuses.count(200))
            return await asyncio.to_thread(run_callers, f"http://127.0.0.1:{port}", [caller], 60.0, 60.0)

    reported = asyncio.run(run())
    assert [outcome.status for outcome in reported] == statuses
    good = [status.startswith(b"200") and duration == 10.0 for status, _, duration in outcomes]
    assert [not outcome.error for outcome in reported] == good
    assert len(bodies) == len(outcomes)  # all bodies are distinct
