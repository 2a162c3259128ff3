"""The client for asyncio: as `app.client.sync`, which says what each method does, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
import numpy as np

from app.client import calls, errors, types
from app.client import stream as reading
from app.client.audio import Audio, several
from app.client.calls import Call, DetectOptions, Filter, SearchOptions
from app.client.errors import ServerError
from app.client.retry import DEFAULT_SERVER, Address, Patience

T = TypeVar("T")


class AsyncClient:
    """Calls to one service from one event loop; the methods, their arguments and answers are those of `Client`.

    A cancelled task ends its call, also while it waits for a busy service. Files are read in the loop, 64 KiB at once.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        api_key: str | None = None,
        patience: float = 30.0,
        request_id: str | None = None,
        reconnect: float = 0.0,
    ) -> None:
        address = Address.parse(server)
        self.server = address.url
        self.patience, self.reconnect = patience, reconnect
        self._http = httpx.AsyncClient(**address.options(api_key, request_id))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def add(
        self,
        files: Audio | Sequence[Audio],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    ) -> types.Added:
        """As `Client.add`."""
        return await self._send(calls.add(several(files), metadata))

    async def clips(self, filter: Filter | None = None) -> AsyncIterator[types.Clip]:
        """As `Client.clips`."""
        cursor: str | None = None
        while True:
            page = await self._send(calls.clip_page(filter, cursor))
            for clip in page.clips:
                yield clip
            cursor = page.next_cursor
            if cursor is None:
                return

    async def clip(self, clip_id: str) -> types.Clip:
        """As `Client.clip`."""
        return await self._send(calls.clip(clip_id))

    async def update(self, clip_id: str, metadata: Mapping[str, Any]) -> types.Clip:
        """As `Client.update`."""
        return await self._send(calls.update(clip_id, metadata))

    async def delete(self, clip_id: str) -> None:
        """As `Client.delete`."""
        await self._send(calls.delete(clip_id))

    async def audio(self, clip_id: str) -> bytes:
        """As `Client.audio`."""
        return await self._send(calls.audio(clip_id))

    async def save_audio(self, clip_id: str, path: str | os.PathLike[str]) -> None:
        """As `Client.save_audio`."""
        with reading.whole_file(path) as file:
            async with self._stream(calls.audio(clip_id)) as chunks:
                async for chunk in chunks:
                    file.write(chunk)

    async def peaks(self, clip_id: str, n: int | None = None) -> types.Peaks:
        """As `Client.peaks`."""
        return await self._send(calls.peaks(clip_id, n))

    async def search(
        self, query: str | None = None, *, file: Audio | None = None, **options: Unpack[SearchOptions]
    ) -> types.SearchResult:
        """As `Client.search`."""
        return await self._send(calls.search(query, file, options))

    async def search_moments(
        self,
        query: str | None = None,
        *,
        sequence: Sequence[str] | None = None,
        max_gap: float | None = None,
        k: int | None = None,
        filter: Filter | None = None,
    ) -> types.MomentResult:
        """As `Client.search_moments`."""
        return await self._send(calls.search_moments(query, sequence, max_gap, k, filter))

    async def similar(self, clip_id: str, k: int | None = None) -> types.SearchResult:
        """As `Client.similar`."""
        return await self._send(calls.similar(clip_id, k))

    async def classify(
        self,
        labels: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        template: str | None = None,
    ) -> tuple[types.Label, ...]:
        """As `Client.classify`."""
        return await self._send(calls.classify(labels, file, clip_id, template))

    async def detect(
        self,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        frames: bool = False,
        **options: Unpack[DetectOptions],
    ) -> types.Detection:
        """As `Client.detect`."""
        return await self._send(calls.detect(phrases, file, clip_id, frames, options))

    async def detect_as(
        self,
        format: str,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> bytes:
        """As `Client.detect_as`."""
        return await self._send(calls.detect_as(format, phrases, file, clip_id, options))

    async def detect_stream(
        self,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        frames: bool = False,
        **options: Unpack[DetectOptions],
    ) -> AsyncIterator[types.DetectionMessage]:
        """As `Client.detect_stream`."""
        messages = reading.DetectionMessages(self.server)
        async with self._stream(calls.detect_stream(phrases, file, clip_id, frames, options)) as chunks:
            async for chunk in chunks:
                for message in messages.push(chunk):
                    yield message
        for message in messages.finish():
            yield message

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """As `Client.embed_texts`."""
        return await self._send(calls.embed_texts(texts))

    async def embed_files(self, files: Audio | Sequence[Audio], frames: bool = False) -> types.Embedded:
        """As `Client.embed_files`."""
        return await self._send(calls.embed_files(several(files), frames))

    async def info(self) -> types.Info:
        """As `Client.info`."""
        return await self._send(calls.info())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            return (await self._answer(calls.ready(), Patience(0.0, 0.0), stream=False)).status_code == 200
        except ServerError:
            return False

    async def _send(self, call: Call[T]) -> T:
        response = await self._answer(call, Patience(self.patience, self.reconnect), stream=False)
        return reading.read(call, response, self.server)

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        response = await self._answer(call, Patience(self.patience, self.reconnect), stream=True)
        try:
            yield response.aiter_bytes()
        except httpx.RequestError as error:
            raise errors.unreachable(self.server, error) from error
        finally:
            await response.aclose()

    async def _answer(self, call: Call[Any], patience: Patience, stream: bool) -> httpx.Response:
        """A response below 400; with `stream` its body is still to come."""
        while True:
            try:
                with call.request(self._http) as request:
                    response = await self._http.send(request, stream=stream)
                if response.status_code < 400:
                    return response
                await response.aread()
                await response.aclose()
                failure = errors.from_response(response)
            except httpx.RequestError as error:
                failure = errors.unreachable(self.server, error)
            await asyncio.sleep(patience.wait_after(failure))
