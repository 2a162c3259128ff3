"""The audio of a live stream: messages of bytes in, mono samples at 16 kHz out.

Raw samples are converted here. Opus and FLAC are decoded like files, in a process of their own (app.decoding), which
reads from a socket what the client sends; single Opus packets are put into Ogg before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import numpy as np

from app.audio.live import STREAM, OggOpusWriter, PcmDecoder, is_container
from app.errors import Invalid
from app.state import AppState

Feed = Callable[[np.ndarray], Awaitable[None]]

_COMPRESSED = ("opus", "flac")


class LiveDecoder(Protocol):
    """Decodes what arrives and passes the samples on. Both methods wait while their consumer is behind."""

    async def push(self, data: bytes) -> None:
        """Takes the next message. Raises Invalid and MediaError."""

    async def finish(self) -> None:
        """Passes on what is left, after the last message. Raises MediaError."""


@asynccontextmanager
async def open_decoder(
    state: AppState, feed: Feed, encoding: str, sample_rate: int, channels: int
) -> AsyncGenerator[LiveDecoder, None]:
    """A decoder for one stream; `sample_rate` (Hz) and `channels` of the audio that arrives. Raises Closed."""
    if encoding not in _COMPRESSED:
        yield _Samples(PcmDecoder(encoding, sample_rate, channels), feed)
        return
    async with _Compressed.open(state, feed, encoding, sample_rate) as decoder:
        yield decoder


class _Samples:
    def __init__(self, decoder: PcmDecoder, feed: Feed) -> None:
        self._decoder, self._feed = decoder, feed

    async def push(self, data: bytes) -> None:
        try:
            samples = self._decoder.push(data)
        except ValueError as error:
            raise Invalid(str(error)) from error
        await self._feed(samples)

    async def finish(self) -> None:
        await self._feed(self._decoder.finish())


class _Compressed:
    """Passes compressed audio to a decoding process, and its samples on."""

    def __init__(self, sender: socket.socket, decoding: asyncio.Task[None], encoding: str) -> None:
        self._sender, self._decoding = sender, decoding
        self._may_be_packets = encoding == "opus"  # the first message tells
        self._packets: OggOpusWriter | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, state: AppState, feed: Feed, encoding: str, sample_rate: int
    ) -> AsyncGenerator[_Compressed, None]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def decode() -> None:
            with theirs:
                async with state.decoders.open_live(theirs, STREAM) as audio:
                    if encoding == "flac" and audio.sample_rate != sample_rate:
                        raise Invalid(f"The sample rate is {audio.sample_rate} Hz, not {sample_rate} Hz as announced.")
                    async for samples in audio:
                        await feed(samples)

        with ours:
            decoding = asyncio.create_task(decode())
            try:
                yield cls(ours, decoding, encoding)
            finally:
                decoding.cancel()
                await asyncio.gather(decoding, return_exceptions=True)

    async def push(self, data: bytes) -> None:
        if self._may_be_packets and not is_container(data):
            self._packets = OggOpusWriter()
        self._may_be_packets = False
        if self._packets is not None:
            try:
                data = self._packets.push(data)
            except ValueError as error:
                raise Invalid(str(error)) from error
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(self._sender, data))
        try:
            await asyncio.wait({sending, self._decoding}, return_when=asyncio.FIRST_COMPLETED)
            if self._decoding.done():
                self._decoding.result()  # raises what ended it
                raise Invalid("The audio has ended, and more arrived.")
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._sender.shutdown(socket.SHUT_WR)
        await self._decoding
