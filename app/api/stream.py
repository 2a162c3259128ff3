"""WS /stream: sound event detection in live sound.

Errors before the connection is accepted are HTTP problems, like those of any request; later ones are an `error` message
with the problem, and a close code. If a client stops reading its messages, the service stops reading its audio, and TCP
makes it wait; other callers are not affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from app import errors
from app.api import requests
from app.api.detect import check_count, detection_request
from app.api.schemas import LiveStart
from app.errors import BodyTooLarge, Malformed, TimedOut, UnsupportedType
from app.server.security import SUBPROTOCOL
from app.services.live import LiveDetection
from app.services.live_audio import LiveDecoder, open_decoder
from app.state import AppState

router = APIRouter()

MAX_MESSAGE = 1 << 20  # bytes
_START_TIMEOUT = 10.0  # seconds from the connection to the client's first message
_STOP_TIMEOUT = 5.0  # seconds to tell what is left when the service stops
_GOING_AWAY, _INTERNAL = 1001, 1011
_CLOSE_CODES = {400: 1007, 413: 1009, 415: 1003, 422: 1007, 429: 1013, 503: 1013}  # by an error's status


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """Receives the format of the audio and the phrases, then audio; sends what is detected as it happens."""
    state: AppState = websocket.app.state.service
    async with state.request():
        state.engine  # noqa: B018  # raises NotReady
        with state.stream():
            await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
            try:
                code = await _converse(websocket, state)
            except WebSocketDisconnect:
                return
            except Exception as error:
                problem = errors.describe(error)
                code = _CLOSE_CODES.get(problem["status"], _INTERNAL)
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await _send(websocket, {"type": "error", "problem": problem})
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has gone meanwhile
                await websocket.close(code)


async def _converse(websocket: WebSocket, state: AppState) -> int:
    """One stream from its first message to its last. Returns the close code. Raises what ends it with an error."""
    start = await _read_start(websocket, state)
    live = await LiveDetection.open(state, detection_request(start), start.frames)
    async with open_decoder(state, live.feed, start.encoding, start.sample_rate, start.channels) as decoder:
        await _send(websocket, live.start(start.sample_rate, start.channels))
        receiving = asyncio.create_task(_receive(websocket, live, decoder))
        sending = asyncio.create_task(_report(websocket, live))
        stopping = state.stopping.future()
        try:
            await asyncio.wait({receiving, sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                await receiving
                await sending
            elif sending.done():
                await sending
            else:
                live.end()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sending, _STOP_TIMEOUT)
                return _GOING_AWAY
        finally:
            for task in (receiving, sending):
                task.cancel()
            await asyncio.gather(receiving, sending, return_exceptions=True)
    return 1000


async def _read_start(websocket: WebSocket, state: AppState) -> LiveStart:
    """The client's first message. Raises UnsupportedType, Malformed, Invalid, TimedOut."""
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            message = await websocket.receive()
    except TimeoutError as error:
        raise TimedOut(f"The first message did not arrive within {_START_TIMEOUT:g} s.") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    text = message.get("text")
    if text is None:
        raise UnsupportedType("The first message must be JSON text that describes the audio, not audio itself.")
    _check_size(text)
    value = requests.parse_json(text, "the first message")
    if not isinstance(value, dict):
        raise Malformed("The first message must be a JSON object.")
    start = requests.validate(LiveStart, value)
    check_count(state, start.phrases, "phrases")
    return start


async def _receive(websocket: WebSocket, live: LiveDetection, decoder: LiveDecoder) -> None:
    """Passes the audio on until it has ended. Raises WebSocketDisconnect, and what reading and decoding do."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            _check_size(text)
            if requests.parse_json(text, "the message") != {"type": "end"}:
                raise Malformed('After the first message, the only text message is {"type": "end"}.')
            break
        if not data:
            break
        _check_size(data)
        await decoder.push(data)
    await decoder.finish()
    live.end()


async def _report(websocket: WebSocket, live: LiveDetection) -> None:
    async with contextlib.aclosing(live.messages()) as messages:
        async for message in messages:
            await _send(websocket, message)


async def _send(websocket: WebSocket, message: dict[str, object]) -> None:
    await websocket.send_text(json.dumps(message, ensure_ascii=False) + "\n")


def _check_size(content: str | bytes) -> None:
    if len(content) > MAX_MESSAGE:
        raise BodyTooLarge(f"A message of {len(content)} bytes is larger than the limit of {MAX_MESSAGE} bytes.")
