"""The asyncio client: the methods of `app.client.sync.Client`, which documents them, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
import numpy as np

from app.client import calls, concept_calls, errors, live, stream, types
from app.client.calls import Audio, Call, Cut, DetectOptions, Edit, Filter, SearchOptions, as_list
from app.client.concept_calls import Examples
from app.client.errors import ServerError
from app.client.retry import DEFAULT_SERVER, Address, RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """A client of one service for one event loop. Methods, arguments and results are those of `Client`.

    Cancelling a task ends its call, even while it waits for a busy service. Files are read in the event loop, 64 KiB
    at a time.
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
        self.server, self._api_key = address.url, api_key
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
        track: str | None = None,
    ) -> types.Added:
        """As `Client.add`."""
        return await self._send(calls.add(as_list(files), metadata, track))

    async def add_reference(
        self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
    ) -> types.Added:
        """As `Client.add_reference`."""
        return await self._send(calls.add_reference(os.fspath(path), metadata))

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

    async def rename(self, clip_id: str, filename: str) -> types.Clip:
        """As `Client.rename`."""
        return await self._send(calls.rename(clip_id, filename))

    async def edit(
        self, clip_ids: Sequence[str] | None = None, *, filter: Filter | None = None, **change: Unpack[Edit]
    ) -> int:
        """As `Client.edit`."""
        return await self._send(calls.edit(clip_ids, filter, change))

    async def facets(
        self, keys: Sequence[str], filter: Filter | None = None, limit: int = 20
    ) -> dict[str, dict[Any, int]]:
        """As `Client.facets`."""
        return await self._send(calls.facets(keys, filter, limit))

    async def collections(self) -> dict[str, int]:
        """As `Client.collections`."""
        return await self._send(calls.collections())

    async def rename_collection(self, name: str, new: str) -> int:
        """As `Client.rename_collection`."""
        return await self._send(calls.rename_collection(name, new))

    async def delete_collection(self, name: str) -> None:
        """As `Client.delete_collection`."""
        await self._send(calls.delete_collection(name))

    async def delete(self, clip_id: str) -> None:
        """As `Client.delete`."""
        await self._send(calls.delete(clip_id))

    async def audio(self, clip_id: str) -> bytes:
        """As `Client.audio`."""
        return await self._send(calls.audio(clip_id))

    async def excerpt(self, clip_id: str, **cut: Unpack[Cut]) -> bytes:
        """As `Client.excerpt`."""
        return await self._send(calls.excerpt(clip_id, cut))

    async def save_audio(self, clip_id: str, path: str | os.PathLike[str]) -> None:
        """As `Client.save_audio`."""
        with stream.atomic_file(path) as file:
            async with self._stream(calls.audio(clip_id)) as chunks:
                async for chunk in chunks:
                    file.write(chunk)

    async def save_archive(self, clip_ids: Sequence[str], path: str | os.PathLike[str]) -> None:
        """As `Client.save_archive`."""
        with stream.atomic_file(path) as file:
            async with self._stream(calls.archive(clip_ids)) as chunks:
                async for chunk in chunks:
                    file.write(chunk)

    async def loudness(self, clip_id: str) -> types.Loudness:
        """As `Client.loudness`."""
        return await self._send(calls.loudness(clip_id))

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
        messages = stream.DetectionMessages(self.server)
        async with self._stream(calls.detect_stream(phrases, file, clip_id, frames, options)) as chunks:
            async for chunk in chunks:
                for message in messages.push(chunk):
                    yield message
        for message in messages.finish():
            yield message

    async def stream(
        self,
        phrases: Sequence[str],
        audio: AsyncIterable[bytes],
        *,
        sample_rate: int,
        encoding: str = "pcm_s16le",
        channels: int = 1,
        **options: Unpack[DetectOptions],
    ) -> AsyncIterator[types.LiveMessage]:
        """As `Client.stream`; `audio` is an async iterable."""
        start = live.start_message(phrases, sample_rate, encoding, channels, options)
        async with contextlib.aclosing(live.stream_async(self.server, self._api_key, start, audio)) as messages:
            async for message in messages:
                yield message

    async def start_job(
        self, phrases: Sequence[str], *, filter: Filter | None = None, **options: Unpack[DetectOptions]
    ) -> types.Job:
        """As `Client.start_job`."""
        return await self._send(calls.start_job(phrases, filter, options))

    async def jobs(self) -> tuple[types.Job, ...]:
        """As `Client.jobs`."""
        return await self._send(calls.jobs())

    async def job(self, job_id: str) -> types.Job:
        """As `Client.job`."""
        return await self._send(calls.job(job_id))

    async def wait_for_job(
        self, job_id: str, progress: Callable[[types.Job], object] | None = None, interval: float = 0.5
    ) -> types.Job:
        """As `Client.wait_for_job`."""
        while True:
            job = await self.job(job_id)
            if progress is not None:
                progress(job)
            if job.finished:
                return job
            await asyncio.sleep(interval)

    async def delete_job(self, job_id: str) -> types.Job | None:
        """As `Client.delete_job`."""
        return await self._send(calls.delete_job(job_id))

    async def job_events(self, job_id: str, format: str = "csv") -> bytes:
        """As `Client.job_events`."""
        return await self._send(calls.job_events(job_id, format))

    async def save_job_events(self, job_id: str, path: str | os.PathLike[str], format: str = "csv") -> None:
        """As `Client.save_job_events`."""
        with stream.atomic_file(path) as file:
            async with self._stream(calls.job_events(job_id, format)) as chunks:
                async for chunk in chunks:
                    file.write(chunk)

    async def job_summary(self, job_id: str, by: str = "phrase") -> types.Json:
        """As `Client.job_summary`."""
        return await self._send(calls.job_summary(job_id, by))

    async def job_summary_as(self, format: str, job_id: str, by: str = "phrase") -> bytes:
        """As `Client.job_summary_as`."""
        return await self._send(calls.job_summary_as(format, job_id, by))

    async def create_concept(self, name: str, text: str | None = None, **examples: Unpack[Examples]) -> types.Concept:
        """As `Client.create_concept`."""
        return await self._send(concept_calls.create(name, text, examples))

    async def concepts(self) -> tuple[types.Concept, ...]:
        """As `Client.concepts`."""
        return await self._send(concept_calls.list_all())

    async def concept(self, key: str) -> types.Concept:
        """As `Client.concept`."""
        return await self._send(concept_calls.get(key))

    async def update_concept(self, key: str, **changes: str | float | None) -> types.Concept:
        """As `Client.update_concept`."""
        return await self._send(concept_calls.update(key, changes))

    async def delete_concept(self, key: str) -> None:
        """As `Client.delete_concept`."""
        await self._send(concept_calls.delete(key))

    async def examples(self, key: str) -> tuple[types.ConceptExample, ...]:
        """As `Client.examples`."""
        return await self._send(concept_calls.examples(key))

    async def add_examples(self, key: str, **examples: Unpack[Examples]) -> types.TaughtExamples:
        """As `Client.add_examples`."""
        return await self._send(concept_calls.add_examples(key, examples))

    async def delete_example(self, key: str, example_id: str) -> None:
        """As `Client.delete_example`."""
        await self._send(concept_calls.delete_example(key, example_id))

    async def import_labels(
        self, key: str, file: Audio, format: str, *, clip_id: str | None = None, label: str | None = None
    ) -> types.TaughtExamples:
        """As `Client.import_labels`."""
        return await self._send(concept_calls.import_labels(key, file, format, clip_id, label))

    async def export_labels(self, key: str, format: str, *, clip_id: str | None = None) -> str:
        """As `Client.export_labels`."""
        return await self._send(concept_calls.export_labels(key, format, clip_id))

    async def suggestions(self, key: str, k: int | None = None) -> tuple[types.MomentHit, ...]:
        """As `Client.suggestions`."""
        return await self._send(concept_calls.suggestions(key, k))

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """As `Client.embed_texts`."""
        return await self._send(calls.embed_texts(texts))

    async def embed_files(
        self, files: Audio | Sequence[Audio], frames: bool = False, track: str | None = None
    ) -> types.Embedded:
        """As `Client.embed_files`."""
        return await self._send(calls.embed_files(as_list(files), frames, track))

    async def info(self) -> types.Info:
        """As `Client.info`."""
        return await self._send(calls.info())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            return (await self._request(calls.ready(), RetryPolicy(0.0, 0.0), streaming=False)).status_code == 200
        except ServerError:
            return False

    async def _send(self, call: Call[T]) -> T:
        response = await self._request(call, RetryPolicy(self.patience, self.reconnect), streaming=False)
        return stream.read(call, response, self.server)

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        response = await self._request(call, RetryPolicy(self.patience, self.reconnect), streaming=True)
        try:
            yield response.aiter_bytes()
        except httpx.RequestError as error:
            raise errors.unreachable(self.server, error) from error
        finally:
            await response.aclose()

    async def _request(self, call: Call[Any], retry: RetryPolicy, streaming: bool) -> httpx.Response:
        """A response with status below 400, retrying as the policy allows; with `streaming` its body is unread."""
        while True:
            try:
                with call.request(self._http) as request:
                    response = await self._http.send(request, stream=streaming)
                if response.status_code < 400:
                    return response
                await response.aread()
                await response.aclose()
                failure = errors.from_response(response)
            except httpx.RequestError as error:
                failure = errors.unreachable(self.server, error)
            await asyncio.sleep(retry.wait_after(failure))
