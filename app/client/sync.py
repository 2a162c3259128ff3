"""The client for ordinary code: sends calls, waits where the service asks for it, hands back what was read."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
import numpy as np

from app.client import calls, errors, types
from app.client import stream as reading
from app.client.audio import Audio, several
from app.client.calls import Call, DetectOptions, Filter, SearchOptions
from app.client.errors import ServerError, Stopped
from app.client.retry import DEFAULT_SERVER, Address, Patience

T = TypeVar("T")


class Client:
    """Calls to one service. May be shared by threads; a `with` block closes its connections.

    `patience` is for how many seconds on end a call goes on trying while the service is busy (429, 503), waiting as
    long as `Retry-After` asks; `reconnect` is the same for a service that cannot be reached; 0 tries once. Setting
    `stop` ends every wait with `Stopped`. `request_id` marks every call in the service's log. A call raises
    ServerError, ValueError for arguments that make no sense together, and OSError for a file that cannot be read.

    Sounds are paths, `(name, bytes)`, `(name, file)` or open binary files that can seek; they are read as they are
    sent, so a recording need not fit into memory.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        api_key: str | None = None,
        patience: float = 30.0,
        stop: threading.Event | None = None,
        request_id: str | None = None,
        reconnect: float = 0.0,
    ) -> None:
        address = Address.parse(server)
        self.server = address.url
        self.patience, self.reconnect = patience, reconnect
        self.stop = stop or threading.Event()
        self._http = httpx.Client(**address.options(api_key, request_id))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # The library

    def add(
        self,
        files: Audio | Sequence[Audio],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    ) -> types.Added:
        """Adds sounds, with metadata for all of them or one object for each.

        What is there already, by its bytes, gives the clip that is there. Files that fail are named in `failed`; where
        every file fails, the error is that of the first and its `files` names them all.
        """
        return self._send(calls.add(several(files), metadata))

    def clips(self, filter: Filter | None = None) -> Iterator[types.Clip]:
        """Every clip of the library that the filter lets through, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._send(calls.clip_page(filter, cursor))
            yield from page.clips
            cursor = page.next_cursor
            if cursor is None:
                return

    def clip(self, clip_id: str) -> types.Clip:
        """One clip."""
        return self._send(calls.clip(clip_id))

    def update(self, clip_id: str, metadata: Mapping[str, Any]) -> types.Clip:
        """Merges metadata into the clip's: keys are set, None removes one. Returns the clip as it is now."""
        return self._send(calls.update(clip_id, metadata))

    def delete(self, clip_id: str) -> None:
        """Deletes a clip and its audio."""
        self._send(calls.delete(clip_id))

    def audio(self, clip_id: str) -> bytes:
        """The clip's file, as it was uploaded."""
        return self._send(calls.audio(clip_id))

    def save_audio(self, clip_id: str, path: str | os.PathLike[str]) -> None:
        """Writes the clip's file to `path`, as it comes; there is no half a file if it breaks."""
        with reading.whole_file(path) as file, self._stream(calls.audio(clip_id)) as chunks:
            for chunk in chunks:
                file.write(chunk)

    def peaks(self, clip_id: str, n: int | None = None) -> types.Peaks:
        """The clip's waveform as lowest and highest sample in each of `n` stretches."""
        return self._send(calls.peaks(clip_id, n))

    # Searching

    def search(
        self, query: str | None = None, *, file: Audio | None = None, **options: Unpack[SearchOptions]
    ) -> types.SearchResult:
        """Clips that a text describes, or that sound like `file`. `options`: see SearchOptions."""
        return self._send(calls.search(query, file, options))

    def search_moments(
        self,
        query: str | None = None,
        *,
        sequence: Sequence[str] | None = None,
        max_gap: float | None = None,
        k: int | None = None,
        filter: Filter | None = None,
    ) -> types.MomentResult:
        """The best moments of the whole library for a text, or for one sound after another.

        With a sequence, each next sound begins at most `max_gap` seconds after the one before it.
        """
        return self._send(calls.search_moments(query, sequence, max_gap, k, filter))

    def similar(self, clip_id: str, k: int | None = None) -> types.SearchResult:
        """Clips that sound like this one."""
        return self._send(calls.similar(clip_id, k))

    # Listening

    def classify(
        self,
        labels: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        template: str | None = None,
    ) -> tuple[types.Label, ...]:
        """The labels, best first, for a file or for a clip. `template` has {} where the label goes."""
        return self._send(calls.classify(labels, file, clip_id, template))

    def detect(
        self,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        frames: bool = False,
        **options: Unpack[DetectOptions],
    ) -> types.Detection:
        """When each phrase is heard in a file or a clip; `frames` adds every frame's score. See DetectOptions."""
        return self._send(calls.detect(phrases, file, clip_id, frames, options))

    def detect_as(
        self,
        format: str,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> bytes:
        """The same as a file: "csv", "audacity", "raven", "png"."""
        return self._send(calls.detect_as(format, phrases, file, clip_id, options))

    def detect_stream(
        self,
        phrases: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        frames: bool = False,
        **options: Unpack[DetectOptions],
    ) -> Iterator[types.DetectionMessage]:
        """The same while it is found: a start, progress and events as they become certain, at last the whole."""
        messages = reading.DetectionMessages(self.server)
        with self._stream(calls.detect_stream(phrases, file, clip_id, frames, options)) as chunks:
            for chunk in chunks:
                yield from messages.push(chunk)
        yield from messages.finish()

    # Embeddings and the service itself

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) float32 of unit length."""
        return self._send(calls.embed_texts(texts))

    def embed_files(self, files: Audio | Sequence[Audio], frames: bool = False) -> types.Embedded:
        """Embeddings of recordings, without adding them to the library; failing files are treated as in `add`."""
        return self._send(calls.embed_files(several(files), frames))

    def info(self) -> types.Info:
        """Version, model, size of the library, limits."""
        return self._send(calls.info())

    def ready(self) -> bool:
        """Whether the service answers and says that it can work. Does not wait."""
        try:
            return self._answer(calls.ready(), Patience(0.0, 0.0), stream=False).status_code == 200
        except ServerError:
            return False

    # Sending

    def _send(self, call: Call[T]) -> T:
        response = self._answer(call, Patience(self.patience, self.reconnect), stream=False)
        return reading.read(call, response, self.server)

    @contextlib.contextmanager
    def _stream(self, call: Call[Any]) -> Iterator[Iterator[bytes]]:
        response = self._answer(call, Patience(self.patience, self.reconnect), stream=True)
        try:
            yield response.iter_bytes()
        except httpx.RequestError as error:
            raise errors.unreachable(self.server, error) from error
        finally:
            response.close()

    def _answer(self, call: Call[Any], patience: Patience, stream: bool) -> httpx.Response:
        """A response below 400; with `stream` its body is still to come."""
        while True:
            try:
                with call.request(self._http) as request:
                    response = self._http.send(request, stream=stream)
                if response.status_code < 400:
                    return response
                response.read()
                response.close()
                failure = errors.from_response(response)
            except httpx.RequestError as error:
                failure = errors.unreachable(self.server, error)
            if self.stop.wait(patience.wait_after(failure)):
                raise Stopped
