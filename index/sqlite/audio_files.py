"""The uploaded audio files, each named by the SHA-256 of its content: `<root>/ab/ab…`.

A file appears under its name only complete and on disk: written to a temporary name, fsync, rename, fsync of the
folder. One process at a time may write, which the library's lock ensures.

A file that stays where it is has a symbolic link in its place, a reference. The link has the modification time of the
file when it was referenced; a file that changed since, or is outside of `roots`, counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, TypeVar

from index.files import fsync_folder
from index.objects import Objects

T = TypeVar("T")

_INCOMING = ".incoming"
_AUDIO = "audio"  # objects are called audio/SHA-256
_CHUNK = 1 << 20  # bytes copied at a time
_PARALLEL = 8  # files on their way to the disk, where one commit of the file system serves several, or to a bucket
_SAME_TIME = 1_000_000_000  # ns; file systems keep times with different precision
_NAME = re.compile(r"[0-9a-f]{64}")


def path_in(root: Path, sha256: str) -> Path:
    """Returns the path of the file with this hash under `root`, whether or not it exists."""
    return root / sha256[:2] / sha256


class AudioFiles:
    """A folder of audio files; `root` is created if needed. `roots`: folders that references may point into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots: tuple[Path, ...] = ()
        self._incoming = root / _INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)
        fsync_folder(root)
        self._threads = ThreadPoolExecutor(_PARALLEL, "audio-files")  # started when needed

    def path(self, sha256: str) -> Path:
        """Returns the path of the file with this hash, whether or not it exists."""
        return path_in(self.root, sha256)

    def has(self, sha256: str) -> bool:
        return self.find(sha256) is not None

    def is_copy(self, sha256: str) -> bool:
        """Whether the file is here, and not elsewhere."""
        return self.has(sha256) and not self.path(sha256).is_symlink()

    def find(self, sha256: str) -> Path | None:
        """Returns the file with this hash, here or where its reference points; None if it is missing or changed."""
        path = self.path(sha256)
        try:
            own = path.lstat()
            if not stat.S_ISLNK(own.st_mode):
                return path if stat.S_ISREG(own.st_mode) else None
            target = Path(os.path.realpath(path))
            found = target.stat()
        except OSError:
            return None
        same = stat.S_ISREG(found.st_mode) and abs(found.st_mtime_ns - own.st_mtime_ns) < _SAME_TIME
        return target if same and any(target.is_relative_to(root) for root in self.roots) else None

    def stage(self, audio: bytes | BinaryIO, sha256: str) -> Path:
        """Writes audio to a temporary file and fsyncs it; a file object is copied from its start.

        Raises ValueError if the hash differs, OSError if it cannot be written. Neither leaves a file.
        """
        staged = self._incoming / uuid.uuid4().hex
        try:
            with staged.open("x+b") as file:
                if isinstance(audio, bytes):
                    file.write(audio)
                else:
                    audio.seek(0)
                    shutil.copyfileobj(audio, file, _CHUNK)
                file.flush()
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ValueError(f"the audio does not have the SHA-256 {sha256!r}")
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def stage_link(self, file: Path) -> Path:
        """Stages a hard link to a file that is complete, on disk and never modified.

        Raises OSError if the file system cannot link it.
        """
        staged = self._incoming / uuid.uuid4().hex
        os.link(file, staged)
        return staged

    def stage_reference(self, file: Path) -> Path:
        """Stages a reference to a file that stays where it is. Raises OSError."""
        modified = file.stat().st_mtime_ns
        staged = self._incoming / uuid.uuid4().hex
        os.symlink(file, staged)
        os.utime(staged, ns=(modified, modified), follow_symlinks=False)
        return staged

    def side_by_side(self, function: Callable[[T], object], items: Collection[T]) -> None:
        """Calls a function that waits for storage for every item, several at a time.

        Raises what a call raises, once none is running any more; the others may not have been made.
        """
        calls: list[Future[object]] = []
        alone = list(items)
        with contextlib.suppress(RuntimeError):  # closed, or the interpreter is shutting down and starts no threads
            while len(alone) > 1:
                calls.append(self._threads.submit(function, alone[-1]))
                alone.pop()
        try:
            for item in alone:
                function(item)
            for call in calls:
                call.result()
        finally:
            for call in calls:
                call.cancel()
            wait(calls)

    def close(self) -> None:
        """Ends the threads. Idempotent."""
        self._threads.shutdown()

    def place(self, staged: dict[str, Path]) -> None:
        """Renames staged files (hash → file) to their names; they survive a power cut when this returns."""
        folders = {self.path(sha256).parent for sha256 in staged}
        new_folders = [folder for folder in folders if not folder.is_dir()]
        for folder in new_folders:
            folder.mkdir(exist_ok=True)
        for sha256, file in staged.items():
            os.replace(file, self.path(sha256))
        self.side_by_side(fsync_folder, folders)
        if new_folders:
            fsync_folder(self.root)

    def remove(self, sha256: str) -> None:
        """Removes a file, if it exists."""
        self.path(sha256).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Yields the hash of every file."""
        for prefix in self.prefixes():
            yield from _hashes(self._entries(prefix), prefix)

    def prefixes(self) -> list[str]:
        """What the hashes of the files begin with: the names of their folders."""
        return [folder.name for folder in self.root.iterdir() if len(folder.name) == 2 and folder.is_dir()]

    def compare(self, prefix: str, wanted: set[str]) -> tuple[set[str], set[str]]:
        """Compares the files of a prefix with the hashes that begin with it: returns files without, hashes without."""
        entries = self._entries(prefix)
        return set(_hashes(entries - wanted, prefix)), wanted - entries

    def _entries(self, prefix: str) -> set[str]:
        try:
            return set(os.listdir(self.root / prefix))
        except FileNotFoundError:
            return set()

    def clear_incoming(self) -> int:
        """Removes the leftovers of interrupted `stage` calls and returns their number."""
        leftovers = list(self._incoming.iterdir())
        for file in leftovers:
            file.unlink()
        return len(leftovers)

    def check(self) -> None:
        """Raises OSError or LibraryError if storage that is not on this machine does not respond."""

    def remove_unless(self, wanted: Callable[[str], bool]) -> None:
        """Removes every file whose hash is not wanted. Files whose names are not hashes are ignored."""
        for sha256 in list(self.names()):
            if not wanted(sha256):
                self.remove(sha256)


class AudioObjects(AudioFiles):
    """Audio in object storage, such as a bucket. What is in the folder `root` stays there: references, and the files of
    a library that had no bucket. All methods raise OSError if the storage fails.
    """

    def __init__(self, root: Path, objects: Objects) -> None:
        super().__init__(root)
        self._objects = objects

    def has(self, sha256: str) -> bool:
        return super().find(sha256) is not None or self._objects.has(_object(sha256))

    def is_copy(self, sha256: str) -> bool:
        here = super().find(sha256)
        return self._objects.has(_object(sha256)) if here is None else not self.path(sha256).is_symlink()

    def find(self, sha256: str) -> Path | None:
        """Returns the file with this hash, which is fetched if necessary; open it soon. None if it is missing."""
        try:
            return super().find(sha256) or self._objects.local(_object(sha256))
        except FileNotFoundError:
            return None

    def place(self, staged: dict[str, Path]) -> None:
        """Uploads staged files (hash → file), and puts references into the folder; both are durable then."""
        super().place({sha256: file for sha256, file in staged.items() if file.is_symlink()})
        audio = {sha256: file for sha256, file in staged.items() if file.exists() and not file.is_symlink()}
        self.side_by_side(self._put, audio.items())

    def _put(self, named: tuple[str, Path]) -> None:
        sha256, file = named
        with file.open("rb") as content:
            self._objects.put(_object(sha256), content)

    def remove(self, sha256: str) -> None:
        super().remove(sha256)
        self._objects.remove(_object(sha256))

    def prefixes(self) -> list[str]:
        return sorted({*super().prefixes(), *(name for name in self._objects.names(_AUDIO) if len(name) == 2)})

    def _entries(self, prefix: str) -> set[str]:
        return super()._entries(prefix).union(self._objects.names(f"{_AUDIO}/{prefix}"))

    def check(self) -> None:
        self._objects.check()


def _hashes(names: Iterable[str], prefix: str) -> Iterator[str]:
    return (name for name in names if _NAME.fullmatch(name) and name.startswith(prefix))


def _object(sha256: str) -> str:
    return f"{_AUDIO}/{sha256}"
