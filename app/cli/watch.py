"""`finelap watch`: keeps the library equal to folders. New, changed, moved and deleted files are found by scans.

A scan compares the files of the folders with what is remembered of them (app.cli.folder_state), by size and
modification time, and reads only what differs. Files are told apart by SHA-256, so a moved file is not analysed again.
Events of the file system start a scan at once; a scan every `interval` seconds finds what events do not tell, as on
network shares. A folder that is not there, or empty, is taken for a volume that is not mounted: nothing is deleted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.cli.folder_state import FolderState, Known, state_file
from app.cli.upload import WORKERS, Checksums, LeftOut, as_text, cache_file, left_out_text, walk_folder
from app.client import Client, NotFound, ServerError, Stopped

_SETTLED = 2.0  # seconds since its last change after which a file counts as complete
_TICK = 500  # ms between looks at the clock while nothing happens


@dataclass(frozen=True)
class WatchOptions:
    """reference: clips refer to the files, and nothing is copied. interval: seconds between scheduled scans.

    grace: seconds that a file must be missing before its clip is deleted, so that a slow move is no deletion.
    """

    reference: bool = False
    interval: float = 300.0
    grace: float = 5.0
    once: bool = False
    json: bool = False
    state: Path | None = None
    workers: int = WORKERS


@dataclass
class Report:
    """What one scan did. offline: folders that are not there, with the reason; waiting: files still being written."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    already_there: int = 0
    unchanged: int = 0
    waiting: int = 0
    kept: int = 0
    refused: int = 0  # by earlier scans, and not changed since
    failed: list[tuple[str, str]] = field(default_factory=list)
    offline: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def eventful(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.added or self.changed or self.moved or self.deleted or self.already_there or self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        names = ("added", "changed", "moved", "deleted", "already_there", "unchanged", "waiting", "kept", "refused")
        return {name: getattr(self, name) for name in names} | {
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "offline": [{"folder": folder, "reason": reason} for folder, reason in self.offline],
            "left_out": dict(self.left_out),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        names = ("added", "changed", "moved", "deleted", "already_there", "unchanged", "waiting", "kept", "refused")
        counts = [f"{getattr(self, name)} {name.replace('_', ' ')}" for name in names if getattr(self, name)]
        lines = [", ".join(counts) or "no files", *([left_out_text(self.left_out)] if self.left_out else [])]
        lines += [f"  {folder}: {reason}; nothing of it is deleted" for folder, reason in self.offline]
        if self.kept:
            lines.append(f"  {self.kept} files are on a volume that is not mounted; their clips are kept")
        lines += [f"  {file}: {reason}" for file, reason in self.failed]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Found:
    """A file in a folder."""

    path: Path
    root: Path
    stat: os.stat_result

    @property
    def relative(self) -> str:
        return as_text(self.path.relative_to(self.root).as_posix())

    def known(self, sha256: str, clip_id: str | None, problem: str = "") -> Known:
        stat = self.stat
        return Known(self.path, self.root, stat.st_size, stat.st_mtime_ns, stat.st_dev, sha256, clip_id, problem)


def run_watch(client: Client, folders: list[Path], options: WatchOptions) -> int:
    """Watches until interrupted, or scans once. Returns 1 if the only scan had failures, else 0. Raises ServerError."""
    state = FolderState(options.state or state_file(), client.server)
    roots = [folder.resolve() for folder in folders]
    with Checksums(cache_file()) as checksums, _stopping(client) as stop:
        watcher = Watcher(client, roots, state, checksums, options)
        try:
            watcher.learn()
            report = watcher.scan()
        except Stopped:
            print("interrupted; the next run goes on from here", file=sys.stderr)
            return 130
        finally:
            checksums.save()
        _tell(report, options.json, always=True)
        if not options.once:
            _follow(watcher, roots, options, stop)
    state.close()
    return 1 if options.once and (report.failed or report.refused or report.offline) else 0


def _follow(watcher: Watcher, roots: list[Path], options: WatchOptions, stop: threading.Event) -> None:
    """Scans after events and at intervals until `stop` is set."""
    from watchfiles import watch

    print(f"watching {len(roots)} folders; Ctrl-C stops", file=sys.stderr, flush=True)
    due = time.monotonic() + options.interval
    while not stop.is_set():
        there = [root for root in roots if root.is_dir()]
        try:
            events: Any = watch(
                *there, watch_filter=None, stop_event=stop, rust_timeout=_TICK, yield_on_timeout=True,
                raise_interrupt=False, ignore_permission_denied=True,
            ) if there else _ticks(stop)  # fmt: skip
            watched = False
            for changes in events:
                # the first time there may be files that came after the last scan and before the folders were watched
                if watched and not changes and time.monotonic() < min(due, watcher.due):
                    if [root for root in roots if root.is_dir()] != there:
                        break  # a volume came or went
                    continue
                watched = True
                _scan_and_tell(watcher, options)
                due = time.monotonic() + options.interval
        except (OSError, RuntimeError) as error:  # a folder went, or the system's limit of watches is reached
            print(f"no events: {error}; scanning every {options.interval:g} s", file=sys.stderr, flush=True)
            while not stop.wait(_TICK / 1000) and time.monotonic() < min(due, watcher.due):
                pass
            if not stop.is_set():
                _scan_and_tell(watcher, options)
                due = time.monotonic() + options.interval


def _ticks(stop: threading.Event) -> Iterator[set[Any]]:
    while not stop.wait(_TICK / 1000):
        yield set()


def _scan_and_tell(watcher: Watcher, options: WatchOptions) -> None:
    try:
        _tell(watcher.scan(), options.json)
    except Stopped:
        pass
    except ServerError as error:  # the next scan tries again
        print(f"the scan failed: {error}", file=sys.stderr, flush=True)


def _tell(report: Report, as_json: bool, always: bool = False) -> None:
    if always or report.eventful or report.offline:
        print(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report, flush=True)


@contextmanager
def _stopping(client: Client) -> Iterator[threading.Event]:
    """Sets the client's stop event on SIGINT and SIGTERM, which ends waits and uploads."""

    def stop(*_: object) -> None:
        client.stop.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield client.stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watcher:
    """Scans folders and makes the library equal to them."""

    def __init__(
        self, client: Client, roots: list[Path], state: FolderState, checksums: Checksums, options: WatchOptions
    ) -> None:
        self._client, self._roots, self._state, self._checksums = client, roots, state, checksums
        self._options = options
        self._clips: dict[str, tuple[str, str]] = {}  # SHA-256 → clip id, its path in the metadata
        self.due = float("inf")  # when to scan again because of files that are waiting

    def learn(self) -> None:
        """Reads which clips the library has; files whose clip is gone are added again. Raises ServerError."""
        self._clips = {clip.sha256: (clip.id, str(clip.metadata.get("path", ""))) for clip in self._client.clips()}
        for known in list(self._state.files.values()):
            if known.clip_id is not None and self._clips.get(known.sha256, ("", ""))[0] != known.clip_id:
                self._state.put(replace(known, size=-1))  # differs from every file

    def scan(self) -> Report:
        """Makes the library equal to the folders, as far as they are there. Raises ServerError, Stopped."""
        report, began = Report(), time.monotonic()
        self.due = float("inf")
        found = self._find(report)
        fresh = [file for file in found.values() if self._differs(file, report)]
        self._process(fresh, found, report)
        self._delete_missing(found, report)
        report.failed.sort()
        report.seconds = time.monotonic() - began
        return report

    # Finding files

    def _find(self, report: Report) -> dict[Path, _Found]:
        found: dict[Path, _Found] = {}
        for root in self._roots:
            reason = self._why_offline(root)
            if reason is not None:
                report.offline.append((as_text(str(root)), reason))
                continue
            unreadable: Callable[[OSError], None] = lambda error: report.failed.append(  # noqa: E731
                (as_text(str(error.filename)), error.strerror or str(error))
            )
            for path in walk_folder(root, unreadable, report.left_out):
                try:
                    found.setdefault(path, _Found(path, root, path.stat()))
                except OSError:  # deleted meanwhile
                    continue
        return found

    def _why_offline(self, root: Path) -> str | None:
        """The reason why nothing can be concluded from the folder's content; None if it is there."""
        try:
            with os.scandir(root) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            return f"is not there ({error.strerror})"
        if empty and any(known.root == root for known in self._state.files.values()):
            return "is empty, as if its volume were not mounted"
        return None

    def _differs(self, file: _Found, report: Report) -> bool:
        """Whether a file must be read, because it is new or has changed."""
        known = self._state.files.get(file.path)
        if known is not None and (known.size, known.mtime_ns) == (file.stat.st_size, file.stat.st_mtime_ns):
            if known.missing_since is not None or known.device != file.stat.st_dev:
                self._state.put(replace(known, missing_since=None, device=file.stat.st_dev))
            if known.clip_id is None:
                report.refused += 1
            else:
                report.unchanged += 1
            return False
        age = time.time() - file.stat.st_mtime
        if 0 <= age < _SETTLED and not self._options.once:
            report.waiting += 1
            self.due = min(self.due, time.monotonic() + _SETTLED)
            return False
        return True

    # New, changed and moved files

    def _process(self, fresh: list[_Found], found: dict[Path, _Found], report: Report) -> None:
        """Reads files and calls the service in parallel; decisions and the state are this thread's."""
        adding: set[str] = set()
        later: list[tuple[_Found, str]] = []  # copies of a file that is being added
        with ThreadPoolExecutor(min(self._options.workers, max(1, len(fresh)))) as pool:
            jobs: dict[Future[Any], tuple[_Found, str, str]] = {
                pool.submit(self._checksums.of, file.path): (file, "", "read") for file in fresh
            }

            def link(file: _Found, sha256: str) -> bool:
                call = self._link(file, sha256, found, report)
                if call is not None:
                    jobs[pool.submit(call)] = file, sha256, "link"
                return call is not None

            try:
                while jobs:
                    for done in wait(jobs, return_when=FIRST_COMPLETED)[0]:
                        file, sha256, stage = jobs.pop(done)
                        if stage == "add":
                            self._added(file, sha256, done, report)
                        elif stage == "link":
                            self._linked(file, sha256, done, report)
                        elif (digest := self._digest(file, done, report)) is not None and not link(file, digest):
                            if digest in adding:
                                later.append((file, digest))
                                continue
                            adding.add(digest)
                            jobs[pool.submit(self._add, file)] = file, digest, "add"
                    if not jobs:
                        copies, later = later, []
                        for file, digest in copies:  # not if the file could not be added
                            link(file, digest)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _digest(self, file: _Found, done: Future[str], report: Report) -> str | None:
        try:
            return done.result()
        except FileNotFoundError:  # deleted meanwhile
            return None
        except OSError as error:
            report.failed.append((as_text(str(file.path)), error.strerror or str(error)))
            return None

    def _link(self, file: _Found, sha256: str, found: dict[Path, _Found], report: Report) -> Callable[[], None] | None:
        """What to tell the service of a file whose bytes the library has; None if it does not have them."""
        if sha256 not in self._clips:
            return None
        clip_id, _ = self._clips[sha256]
        known = self._state.files.get(file.path)
        others = [other for other in self._state.paths_of(sha256) if other.path != file.path]
        moved = bool(others) and not any(other.path in found for other in others)
        if known is None and not moved:
            report.already_there += 1
        elif moved:
            report.moved += 1
            self._clips[sha256] = clip_id, file.relative
        elif known is not None and known.sha256 != sha256:
            report.changed += 1
        else:
            report.unchanged += 1  # touched

        def tell() -> None:
            if moved:
                self._move(clip_id, [other.path for other in others], file)
            if self._options.reference:
                self._client.add_reference(file.path)

        return tell

    def _move(self, clip_id: str, before: list[Path], file: _Found) -> None:
        """Gives a clip another path, and the file's name unless it was renamed in the library."""
        clip = self._client.update(clip_id, {"path": file.relative})
        name = as_text(file.path.name)
        if clip.filename != name and clip.filename in [as_text(path.name) for path in before]:
            self._client.rename(clip_id, name)

    def _linked(self, file: _Found, sha256: str, done: Future[None], report: Report) -> None:
        try:
            done.result()
        except Stopped:
            raise
        except ServerError as error:  # the next scan tries again
            report.failed.append((as_text(str(file.path)), str(error)))
            return
        if sha256 in self._clips:
            self._replace(file, sha256, self._clips[sha256][0], report)

    def _add(self, file: _Found) -> tuple[str, bool]:
        """Adds a file to the library: its clip's id, and whether it is new there."""
        metadata = {"path": file.relative}
        if self._options.reference:
            added = self._client.add_reference(file.path, metadata)
        else:
            added = self._client.add(file.path, metadata)
        return added.clips[0].id, added.new

    def _added(self, file: _Found, sha256: str, done: Future[tuple[str, bool]], report: Report) -> None:
        try:
            clip_id, new = done.result()
        except Stopped:
            raise
        except (ServerError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            why = why.removeprefix(f"{as_text(file.path.name)}: ")
            report.failed.append((as_text(str(file.path)), why))
            if isinstance(error, ServerError) and 400 <= (error.status or 0) < 500 and error.status not in (401, 429):
                self._state.put(file.known(sha256, None, why))  # it would be refused again
            return
        self._clips[sha256] = clip_id, file.relative
        known = self._state.files.get(file.path)
        if known is not None and known.clip_id is not None and known.sha256 != sha256:
            report.changed += 1
        elif new:
            report.added += 1
        else:
            report.already_there += 1
        self._replace(file, sha256, clip_id, report)

    def _replace(self, file: _Found, sha256: str, clip_id: str, report: Report) -> None:
        """Remembers a file; the clip of what it was before is deleted if no other file has its bytes."""
        before = self._state.files.get(file.path)
        self._state.put(file.known(sha256, clip_id))
        if before is not None and before.clip_id is not None and before.sha256 != sha256:
            self._drop(before)

    # Deleted files

    def _delete_missing(self, found: dict[Path, _Found], report: Report) -> None:
        offline = {Path(folder) for folder, _ in report.offline}
        unread = [Path(file) for file, _ in report.failed]
        devices = {known.device for path, known in self._state.files.items() if path in found}
        now = time.time()
        for known in [known for path, known in self._state.files.items() if path not in found]:
            if known.root not in self._roots or known.root in offline:
                continue
            if any(known.path.is_relative_to(folder) for folder in unread):
                continue  # in a folder that cannot be read
            if known.device not in devices and _device_of(known.path) != known.device:
                report.kept += 1
                continue
            heir = next((other for other in self._state.paths_of(known.sha256) if other.path in found), None)
            if heir is not None:
                self._state.remove(known.path)
                self._point(known, found[heir.path])
                continue
            since = known.missing_since if known.missing_since is not None else now
            if now - since < self._options.grace and not self._options.once:
                self._state.put(replace(known, missing_since=since))
                self.due = min(self.due, time.monotonic() + self._options.grace - (now - since) + 0.1)
                continue
            self._state.remove(known.path)
            if known.clip_id is not None and self._drop(known):
                report.deleted += 1

    def _point(self, gone: Known, heir: _Found) -> None:
        """Makes the clip of a file that is gone the clip of a file with the same bytes."""
        clip_id, path = self._clips.get(gone.sha256, ("", ""))
        if not clip_id or path != _relative(gone):
            return
        self._move(clip_id, [gone.path], heir)
        if self._options.reference:
            self._client.add_reference(heir.path)
        self._clips[gone.sha256] = clip_id, heir.relative

    def _drop(self, known: Known) -> bool:
        """Deletes the clip of a file that is gone, unless another file has its bytes or it came from elsewhere."""
        if self._state.paths_of(known.sha256):
            return False
        clip_id, path = self._clips.get(known.sha256, ("", ""))
        if clip_id != known.clip_id or path != _relative(known):
            return False
        with suppress(NotFound):
            self._client.delete(clip_id)
        self._clips.pop(known.sha256, None)
        return True


def _relative(known: Known) -> str:
    """The path within the watched folder, as clips' metadata has it."""
    return as_text(known.path.relative_to(known.root).as_posix())


def _device_of(path: Path) -> int | None:
    """The device of the nearest folder above `path` that exists."""
    for folder in path.parents:
        try:
            return folder.stat().st_dev
        except OSError:
            continue
    return None
