"""WS /stream for both clients: what is sent, and how messages and errors are read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect as connect_sync

from app.client import errors, types
from app.client.calls import DetectOptions
from app.client.retry import Address
from app.client.stream import INVALID_RESPONSE

_END = json.dumps({"type": "end"})
_MAX_MESSAGE = 16 << 20  # bytes; the last message has the latest events of every phrase
_PIECE = 1 << 18  # bytes sent at once; the service takes 1 MiB


def start_message(
    phrases: Sequence[str], sample_rate: int, encoding: str, channels: int, options: DetectOptions
) -> dict[str, Any]:
    """The first message. `sample_rate` in Hz."""
    format = {"sample_rate": sample_rate, "encoding": encoding, "channels": channels}
    given = {name: value for name, value in options.items() if value is not None}
    lists = {name: list(value) for name, value in given.items() if isinstance(value, Sequence) and name != "method"}
    return {"phrases": list(phrases), **format, **given, **lists}


class LiveSocket:
    """An open stream, as JSON messages. Methods raise ServerError."""

    def __init__(self, server: str, socket: ClientConnection) -> None:
        self._server, self._socket = server, socket

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, server: str, api_key: str | None, start: dict[str, Any]) -> AsyncIterator[LiveSocket]:
        """Connects, and sends the first message."""
        with _reported(server):
            socket = await connect_async(**_arguments(server, api_key))
        async with socket:
            live = cls(server, socket)
            await live._send(json.dumps(start, ensure_ascii=False))
            yield live

    async def send(self, audio: bytes) -> None:
        """Sends audio; waits while the service is behind."""
        for at in range(0, len(audio), _PIECE):
            await self._send(audio[at : at + _PIECE])

    async def end(self) -> None:
        """Tells the service that the audio has ended; it sends what is left."""
        await self._send(_END)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """The service's messages up to the last. Raises the error that one of them reports."""
        ended = False
        with _reported(self._server):
            async for line in self._socket:
                message = _read(self._server, line)
                ended = message["type"] == "end"
                yield message
        if not ended:
            raise errors.unreachable(self._server, ConnectionError("the connection was closed"))

    async def _send(self, content: str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # the messages say why
            await self._socket.send(content)


async def stream_async(
    server: str, api_key: str | None, start: dict[str, Any], audio: AsyncIterable[bytes]
) -> AsyncGenerator[types.LiveMessage, None]:
    """The messages of a stream of audio that is sent meanwhile."""
    async with LiveSocket.open(server, api_key, start) as socket:

        async def send() -> None:
            async for piece in audio:
                await socket.send(piece)
            await socket.end()

        sending = asyncio.create_task(send())
        try:
            async for message in socket.messages():
                if (read := types.live_message(message)) is not None:
                    yield read
            await sending  # raises what `audio` raises
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def stream_sync(
    server: str, api_key: str | None, start: dict[str, Any], audio: Iterable[bytes]
) -> Iterator[types.LiveMessage]:
    """`stream_async` for threads: one of its own sends the audio."""
    with _reported(server):
        socket = connect_sync(**_arguments(server, api_key))
    failed: list[BaseException] = []

    def send() -> None:
        try:
            for piece in audio:
                for at in range(0, len(piece), _PIECE):
                    socket.send(piece[at : at + _PIECE])
            socket.send(_END)
        except ConnectionClosed:  # the messages say why
            pass
        except BaseException as error:
            failed.append(error)
            socket.close()

    with socket:
        socket.send(json.dumps(start, ensure_ascii=False))
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        ended = False
        with _reported(server):
            for line in socket:
                message = _read(server, line)
                ended = message["type"] == "end"
                if (read := types.live_message(message)) is not None:
                    yield read
    if failed:
        raise failed[0]
    if not ended:
        raise errors.unreachable(server, ConnectionError("the connection was closed"))


def _arguments(server: str, api_key: str | None) -> dict[str, Any]:
    address = Address.parse(server)
    return {
        "uri": address.url.replace("http", "ws", 1) + "/stream",
        "additional_headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "compression": None,
        "max_size": _MAX_MESSAGE,
        "proxy": None if address.local else True,
        "open_timeout": 10.0,
    }


def _read(server: str, line: str | bytes) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(line)
        failure = errors.from_problem(message["problem"]) if message["type"] == "error" else None
    except INVALID_RESPONSE as error:
        raise errors.unreadable(server, 101) from error
    if failure is not None:
        raise failure
    return message


@contextlib.contextmanager
def _reported(server: str) -> Iterator[None]:
    """Raises what the connection raises as ServerError."""
    try:
        yield
    except ConnectionClosedOK:
        return
    except InvalidStatus as refused:
        response = refused.response
        answer = httpx.Response(
            response.status_code, headers=list(response.headers.raw_items()), content=bytes(response.body or b"")
        )
        raise errors.from_response(answer) from refused
    except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
        raise errors.unreachable(server, error) from error
