"""Adding many files to a library: uploading them side by side, and saying what became of each.

Knows files and the client; does not decode audio: the service judges what is a sound. What a library has is asked of
the library, so an ingest that was killed goes on where it stopped: files are known by their checksums.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tqdm import tqdm

from app.cli.checksums import Checksums
from app.cli.finding import Source, as_text
from app.client import Client, ServerError, Stopped, Unauthorized, Unreachable

# Uploads under way at once, one file in each: enough for the service to fill its batches. Several files in one request
# gain nothing over as many requests side by side.
WORKERS = 32

Outcome = Literal["added", "there", "failed"]


@dataclass
class Summary:
    """What became of an ingest. `unsent`: files not decided on when it was interrupted."""

    added: int = 0
    there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)  # file, reason
    unsent: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def files(self) -> int:
        """Files that something became of."""
        return self.added + self.there + len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "added": self.added,
            "already_there": self.there,
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "unsent": self.unsent,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        lines = [f"{'added':<15}{self.added:>7}", f"{'already there':<15}{self.there:>7}"]
        lines.append(f"{'failed':<15}{len(self.failed):>7}")
        if self.interrupted:
            lines.append(f"{'not looked at':<15}{self.unsent:>7}")
        lines += [f"  {file}: {reason}" for file, reason in self.failed]
        rate = self.files / self.seconds if self.seconds else 0.0
        lines.append(f"{self.files} files in {self.seconds:.1f} s, {rate:.1f} clips/s")
        return "\n".join(lines)


def ingest(
    client: Client,
    sources: Sequence[Source],
    checksums: Checksums,
    workers: int = WORKERS,
    progress: bool = True,
) -> Summary:
    """Uploads the sources that the library does not have, `workers` at a time, and returns what became of all.

    With a client that reconnects, the service may be busy or away for a while: no file is lost by it.

    Ctrl-C ends it with what is known by then and sets `client.stop`, as does setting that from elsewhere. A file on its
    way at that moment may be added without being counted; the next ingest finds it there. Raises ServerError if the
    library cannot be read at all.
    """
    summary = Summary()
    began = time.monotonic()
    run = _Run(client, checksums, sources)
    try:
        run.learn(progress)
        # daemon threads: an interrupted command ends at once instead of waiting for its uploads
        threads = [threading.Thread(target=run.work, daemon=True) for _ in range(min(workers, len(sources)))]
        for thread in threads:
            thread.start()
        _collect(run, len(threads), summary, progress)
    except KeyboardInterrupt:
        client.stop.set()
        summary.interrupted = True
    summary.failed.sort()
    summary.unsent = len(sources) - summary.files
    summary.seconds = time.monotonic() - began
    return summary


def _collect(run: _Run, threads: int, summary: Summary, progress: bool) -> None:
    """Counts results until every thread has ended."""
    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(run.sources),
        unit="clip",
        desc="adding",
        disable=not progress,
        mininterval=0.1 if terminal else 10.0,  # a log wants a line now and then, not ten a second
        dynamic_ncols=terminal,
    ) as bar:
        while threads:
            result = run.results.get()
            if result is None:
                threads -= 1
                continue
            source, outcome, reason = result
            if outcome == "added":
                summary.added += 1
            elif outcome == "there":
                summary.there += 1
            else:
                # the service names the file as well
                said = reason.removeprefix(f"{as_text(source.path.name)}: ")
                summary.failed.append((as_text(str(source.path)), said))
                bar.set_postfix_str(f"{len(summary.failed)} failed", refresh=False)
            bar.update()


class _Run:
    """One ingest as its threads share it: files to do, checksums of the library, results. None ends a thread's."""

    def __init__(self, client: Client, checksums: Checksums, sources: Sequence[Source]) -> None:
        self.client, self.checksums, self.sources = client, checksums, sources
        self.results: queue.SimpleQueue[tuple[Source, Outcome, str] | None] = queue.SimpleQueue()
        self._todo: queue.SimpleQueue[Source] = queue.SimpleQueue()
        for source in sources:
            self._todo.put(source)
        self._known: set[str] = set()
        self._max_bytes = math.inf
        self._over: str | None = None  # why no further file need be tried

    def learn(self, progress: bool) -> None:
        """Asks the service what it takes and what it has."""
        self._max_bytes = self.client.info().limits.get("max_upload_mb", math.inf) * 1e6
        clips = tqdm(self.client.clips(), "reading the library", unit="clip", delay=2.0, disable=not progress)
        self._known = {clip.sha256 for clip in clips}

    def work(self) -> None:
        """Does files until there are none left or the client is stopped."""
        try:
            while not self.client.stop.is_set():
                source = self._todo.get_nowait()
                self.results.put((source, *self._try(source)))
        except (queue.Empty, Stopped):
            pass
        finally:
            self.results.put(None)

    def _try(self, source: Source) -> tuple[Outcome, str]:
        if self._over is not None:
            return "failed", f"not sent: {self._over}"
        try:
            return self._upload(source), ""
        except Stopped:
            raise
        except OSError as error:
            return "failed", error.strerror or str(error)
        except ServerError as error:
            # what holds for the other files too need not be found out with each of them
            if isinstance(error, Unreachable) and not self.client.ready():
                self._over = "the server was gone"
            elif isinstance(error, Unauthorized):
                self._over = "the server wants another API key"
            elif error.status == 507:
                self._over = "the server has no room left"
            return "failed", str(error)
        except Exception as error:  # a thread that dies silently would leave the summary short
            return "failed", str(error) or type(error).__name__

    def _upload(self, source: Source) -> Outcome:
        size = source.path.stat().st_size
        if size > self._max_bytes:
            raise OSError(f"it has {size / 1e6:.0f} MB, more than the server's limit of {self._max_bytes / 1e6:g} MB")
        sha256 = self.checksums.of(source.path)
        if sha256 in self._known:
            return "there"
        answer = self.client.add(source.path, source.metadata)
        self._known.add(sha256)  # a copy need not be sent
        return "added" if answer.new else "there"
