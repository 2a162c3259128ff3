"""The synchronous client."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
import numpy as np

from app.client import calls, concept_calls, errors, live, stream, types
from app.client.calls import Audio, Call, Cut, DetectOptions, Edit, Filter, SearchOptions, as_list
from app.client.concept_calls import Examples
from app.client.errors import ServerError, Stopped
from app.client.retry import DEFAULT_SERVER, Address, RetryPolicy

T = TypeVar("T")


class Client:
    """A client of one service. Threads may share it; a `with` block closes its connections.

    `patience`: how many seconds a call keeps retrying while the service is busy (429, 503), honouring `Retry-After`.
    `reconnect`: the same while the service is unreachable. 0 disables retries. Setting `stop` ends every wait with
    `Stopped`. `request_id` is sent as X-Request-ID and appears in the service's log.

    Methods raise ServerError, ValueError for invalid combinations of arguments, and OSError for unreadable files.

    Audio is a path, `(name, bytes)`, `(name, file)`, or an open seekable binary file. Files are streamed, so a
    recording need not fit into memory.
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
        self.server, self._api_key = address.url, api_key
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
        track: str | None = None,
    ) -> types.Added:
        """Adds files to the library. `metadata` is one object for all of them, or a list with one per file.

        A file whose bytes are already in the library returns the existing clip. Files that fail are listed in `failed`;
        if every file fails, raises the error of the first, whose `files` lists them all. `track`: of files with several
        audio tracks, the one to read, by number from 0 or language; by default the one that the file marks.
        """
        return self._send(calls.add(as_list(files), metadata, track))

    def add_reference(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> types.Added:
        """Adds a file that stays where it is: an absolute path on the machine of the service, in its reference roots.

        A file whose bytes are already in the library returns the existing clip.
        """
        return self._send(calls.add_reference(os.fspath(path), metadata))

    def clips(self, filter: Filter | None = None) -> Iterator[types.Clip]:
        """Iterates over the clips that match the filter, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._send(calls.clip_page(filter, cursor))
            yield from page.clips
            cursor = page.next_cursor
            if cursor is None:
                return

    def clip(self, clip_id: str) -> types.Clip:
        """Returns one clip."""
        return self._send(calls.clip(clip_id))

    def update(self, clip_id: str, metadata: Mapping[str, Any]) -> types.Clip:
        """Merges `metadata` into the clip's; None removes a key. Returns the updated clip."""
        return self._send(calls.update(clip_id, metadata))

    def rename(self, clip_id: str, filename: str) -> types.Clip:
        """Gives a clip another file name and returns it."""
        return self._send(calls.rename(clip_id, filename))

    def edit(
        self, clip_ids: Sequence[str] | None = None, *, filter: Filter | None = None, **change: Unpack[Edit]
    ) -> int:
        """Changes many clips, up to 1,000 by id or those that pass a filter, and returns their number.

        `change`: see Edit.
        """
        return self._send(calls.edit(clip_ids, filter, change))

    def facets(self, keys: Sequence[str], filter: Filter | None = None, limit: int = 20) -> dict[str, dict[Any, int]]:
        """Returns the most frequent values of each key, with their numbers of clips."""
        return self._send(calls.facets(keys, filter, limit))

    def collections(self) -> dict[str, int]:
        """Returns the collections with their numbers of clips."""
        return self._send(calls.collections())

    def rename_collection(self, name: str, new: str) -> int:
        """Renames a collection, or joins it to another; returns its number of clips."""
        return self._send(calls.rename_collection(name, new))

    def delete_collection(self, name: str) -> None:
        """Deletes a collection; its clips stay."""
        self._send(calls.delete_collection(name))

    def delete(self, clip_id: str) -> None:
        """Deletes a clip and its audio."""
        self._send(calls.delete(clip_id))

    def audio(self, clip_id: str) -> bytes:
        """Returns the clip's file as it was uploaded."""
        return self._send(calls.audio(clip_id))

    def excerpt(self, clip_id: str, **cut: Unpack[Cut]) -> bytes:
        """Returns a stretch of the clip as an audio file with the samples of the clip's file. `cut`: see Cut."""
        return self._send(calls.excerpt(clip_id, cut))

    def save_audio(self, clip_id: str, path: str | os.PathLike[str]) -> None:
        """Streams the clip's file to `path`. A failed download leaves no partial file."""
        with stream.atomic_file(path) as file, self._stream(calls.audio(clip_id)) as chunks:
            for chunk in chunks:
                file.write(chunk)

    def save_archive(self, clip_ids: Sequence[str], path: str | os.PathLike[str]) -> None:
        """Streams up to 1,000 clips' files to `path` as a ZIP archive with a table, sounds.csv.

        A failed download leaves no partial file.
        """
        with stream.atomic_file(path) as file, self._stream(calls.archive(clip_ids)) as chunks:
            for chunk in chunks:
                file.write(chunk)

    def loudness(self, clip_id: str) -> types.Loudness:
        """Returns how loud a clip is (EBU R128)."""
        return self._send(calls.loudness(clip_id))

    def peaks(self, clip_id: str, n: int | None = None) -> types.Peaks:
        """Returns the clip's waveform: lowest and highest sample of each of `n` equal stretches."""
        return self._send(calls.peaks(clip_id, n))

    # Search

    def search(
        self, query: str | None = None, *, file: Audio | None = None, **options: Unpack[SearchOptions]
    ) -> types.SearchResult:
        """Returns the clips that fit a text, or sound like `file` or the examples in `like`, or several of these.

        `options`: see SearchOptions.
        """
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
        """Returns the best moments of the whole library for a text, or for a sequence of sounds.

        In a sequence, each sound begins at most `max_gap` seconds after the previous one ends.
        """
        return self._send(calls.search_moments(query, sequence, max_gap, k, filter))

    def similar(self, clip_id: str, k: int | None = None) -> types.SearchResult:
        """Returns the clips that sound most like this one."""
        return self._send(calls.similar(clip_id, k))

    # Analysis

    def classify(
        self,
        labels: Sequence[str],
        *,
        file: Audio | None = None,
        clip_id: str | None = None,
        template: str | None = None,
    ) -> tuple[types.Label, ...]:
        """Ranks labels for a file or a clip, best first. `template` contains {} in place of the label."""
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
        """Detects when each phrase occurs in a file or a clip. `frames` adds every frame's score. See DetectOptions."""
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
        """Detects, and returns a file in `format`: "csv", "audacity", "raven" or "png"."""
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
        """Detects, and yields messages while the recording is analysed: start, progress, events, and the end."""
        messages = stream.DetectionMessages(self.server)
        with self._stream(calls.detect_stream(phrases, file, clip_id, frames, options)) as chunks:
            for chunk in chunks:
                yield from messages.push(chunk)
        yield from messages.finish()

    def stream(
        self,
        phrases: Sequence[str],
        audio: Iterable[bytes],
        *,
        sample_rate: int,
        encoding: str = "pcm_s16le",
        channels: int = 1,
        **options: Unpack[DetectOptions],
    ) -> Iterator[types.LiveMessage]:
        """Detects in live audio, sent piece by piece from a thread, and yields messages as events begin and end.

        `encoding`: "pcm_s16le" or "pcm_f32le" (interleaved if there are several `channels`), "opus" (an Ogg or WebM
        stream, or a packet a piece) or "flac". Never retries.
        """
        start = live.start_message(phrases, sample_rate, encoding, channels, options)
        yield from live.stream_sync(self.server, self._api_key, start, audio)

    # Jobs over the library

    def start_job(
        self, phrases: Sequence[str], *, filter: Filter | None = None, **options: Unpack[DetectOptions]
    ) -> types.Job:
        """Starts to detect the phrases in all clips, or those that pass `filter`. See DetectOptions.

        The same job again takes over what is scored already.
        """
        return self._send(calls.start_job(phrases, filter, options))

    def jobs(self) -> tuple[types.Job, ...]:
        """Returns all jobs, newest first."""
        return self._send(calls.jobs())

    def job(self, job_id: str) -> types.Job:
        """Returns a job's state and progress."""
        return self._send(calls.job(job_id))

    def wait_for_job(
        self, job_id: str, progress: Callable[[types.Job], object] | None = None, interval: float = 0.5
    ) -> types.Job:
        """Returns the job once it is done, failed or cancelled. Asks every `interval` seconds and calls `progress`."""
        while True:
            job = self.job(job_id)
            if progress is not None:
                progress(job)
            if job.finished:
                return job
            if self.stop.wait(interval):
                raise Stopped

    def delete_job(self, job_id: str) -> types.Job | None:
        """Cancels an unfinished job and returns it; deletes a finished one."""
        return self._send(calls.delete_job(job_id))

    def job_events(self, job_id: str, format: str = "csv") -> bytes:
        """Returns the events as a file in `format`: "csv", "parquet", "raven", "audacity" (ZIP) or "ndjson"."""
        return self._send(calls.job_events(job_id, format))

    def save_job_events(self, job_id: str, path: str | os.PathLike[str], format: str = "csv") -> None:
        """Streams `job_events` to `path`. A failed download leaves no partial file."""
        with stream.atomic_file(path) as file, self._stream(calls.job_events(job_id, format)) as chunks:
            for chunk in chunks:
                file.write(chunk)

    def job_summary(self, job_id: str, by: str = "phrase") -> types.Json:
        """Returns the number of events and their seconds for each "phrase", "clip" or "hour"."""
        return self._send(calls.job_summary(job_id, by))

    def job_summary_as(self, format: str, job_id: str, by: str = "phrase") -> bytes:
        """Returns `job_summary` as a file in `format`: "csv", or for hours "png", a heat map."""
        return self._send(calls.job_summary_as(format, job_id, by))

    # Concepts

    def create_concept(self, name: str, text: str | None = None, **examples: Unpack[Examples]) -> types.Concept:
        """Teaches a concept from a text, from examples, or from both; see Examples. Use it as `concept:NAME`."""
        return self._send(concept_calls.create(name, text, examples))

    def concepts(self) -> tuple[types.Concept, ...]:
        """Returns all concepts, by name."""
        return self._send(concept_calls.list_all())

    def concept(self, key: str) -> types.Concept:
        """Returns a concept by its name or id."""
        return self._send(concept_calls.get(key))

    def update_concept(self, key: str, **changes: str | float | None) -> types.Concept:
        """Changes `name`, `text` or `threshold`; a text of None removes it, a threshold of None is the fitted one."""
        return self._send(concept_calls.update(key, changes))

    def delete_concept(self, key: str) -> None:
        """Deletes a concept and its examples; clips stay."""
        self._send(concept_calls.delete(key))

    def examples(self, key: str) -> tuple[types.ConceptExample, ...]:
        """Returns the examples of a concept, oldest first."""
        return self._send(concept_calls.examples(key))

    def add_examples(self, key: str, **examples: Unpack[Examples]) -> types.TaughtExamples:
        """Adds examples to a concept, which is fitted anew; see Examples."""
        return self._send(concept_calls.add_examples(key, examples))

    def delete_example(self, key: str, example_id: str) -> None:
        """Deletes an example of a concept."""
        self._send(concept_calls.delete_example(key, example_id))

    def import_labels(
        self, key: str, file: Audio, format: str, *, clip_id: str | None = None, label: str | None = None
    ) -> types.TaughtExamples:
        """Adds the examples in a label file: "raven", "audacity" or "csv". `clip_id` is the clip that it describes."""
        return self._send(concept_calls.import_labels(key, file, format, clip_id, label))

    def export_labels(self, key: str, format: str, *, clip_id: str | None = None) -> str:
        """Returns the examples, of all clips or of one, as a label file: "raven", "audacity" or "csv"."""
        return self._send(concept_calls.export_labels(key, format, clip_id))

    def suggestions(self, key: str, k: int | None = None) -> tuple[types.MomentHit, ...]:
        """Returns the moments whose label would teach the concept most."""
        return self._send(concept_calls.suggestions(key, k))

    # Embeddings and the service itself

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns embeddings (N, D) float32, of unit length."""
        return self._send(calls.embed_texts(texts))

    def embed_files(
        self, files: Audio | Sequence[Audio], frames: bool = False, track: str | None = None
    ) -> types.Embedded:
        """Embeds recordings without adding them to the library. Files that fail are handled as in `add`."""
        return self._send(calls.embed_files(as_list(files), frames, track))

    def info(self) -> types.Info:
        """Returns the service's version, model, number of clips, and limits."""
        return self._send(calls.info())

    def ready(self) -> bool:
        """Whether the service is reachable and ready. Never retries."""
        try:
            return self._request(calls.ready(), RetryPolicy(0.0, 0.0), streaming=False).status_code == 200
        except ServerError:
            return False

    # Requests

    def _send(self, call: Call[T]) -> T:
        response = self._request(call, RetryPolicy(self.patience, self.reconnect), streaming=False)
        return stream.read(call, response, self.server)

    @contextlib.contextmanager
    def _stream(self, call: Call[Any]) -> Iterator[Iterator[bytes]]:
        response = self._request(call, RetryPolicy(self.patience, self.reconnect), streaming=True)
        try:
            yield response.iter_bytes()
        except httpx.RequestError as error:
            raise errors.unreachable(self.server, error) from error
        finally:
            response.close()

    def _request(self, call: Call[Any], retry: RetryPolicy, streaming: bool) -> httpx.Response:
        """A response with status below 400, retrying as the policy allows; with `streaming` its body is unread."""
        while True:
            try:
                with call.request(self._http) as request:
                    response = self._http.send(request, stream=streaming)
                if response.status_code < 400:
                    return response
                response.read()
                response.close()
                failure = errors.from_response(response)
            except httpx.RequestError as error:
                failure = errors.unreachable(self.server, error)
            if self.stop.wait(retry.wait_after(failure)):
                raise Stopped
