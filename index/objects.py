"""Object storage of a library: uploaded audio, with Milvus frames too, in a shared folder or any fsspec file system.

An object is written once, completely, under a unique name and never changed, so processes need no coordination.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from index.files import fsync_folder
from index.records import LibraryError

FETCHED_BYTES = 10 << 30  # of remote objects cached on the local disk; the least recently used are removed first

_CHUNK = 1 << 20  # bytes copied at a time
_ATTEMPTS = 2
# a request to a bucket that does not answer fails after a minute and a half at most; the defaults would take ten
_S3: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 20,
        "retries": {"total_max_attempts": 3, "mode": "standard"},
    }
}


class Objects(Protocol):
    """Storage for objects named "kind/name". Raises OSError if the storage fails."""

    def put(self, name: str, content: bytes | BinaryIO) -> str:
        """Writes an object durably and returns its SHA-256 in hex. A file object is read from its start."""

    def has(self, name: str) -> bool:
        """Whether the object exists."""

    def local(self, name: str) -> Path:
        """Returns a local file with the object's content; open it soon. Raises FileNotFoundError."""

    def remove(self, name: str) -> None:
        """Removes an object, if it exists."""

    def names(self, folder: str) -> list[str]:
        """Returns the names of what is in a folder, such as "audio/ab"; empty if there is no such folder."""

    def check(self) -> None:
        """Raises LibraryError or OSError if the storage does not respond."""


def open_objects(address: str, fetched: Path) -> Objects:
    """Opens a folder's path or an fsspec address, whose objects are cached in the folder `fetched`."""
    if "://" not in address or address.startswith("file://"):
        return FolderObjects(Path(address.removeprefix("file://")))
    try:
        import fsspec
    except ImportError as error:
        raise LibraryError(f"{address} needs fsspec: pip install 'finelap[s3]'") from error
    try:
        system, root = fsspec.core.url_to_fs(address, **(_S3 if address.startswith(("s3://", "s3a://")) else {}))
    except (ImportError, ValueError) as error:
        raise LibraryError(f"{address} cannot be reached with fsspec: {error}") from error
    if hasattr(system, "retries"):
        system.retries = _ATTEMPTS  # s3fs repeats what botocore has repeated already
    return RemoteObjects(system, root, fetched)


class FolderObjects:
    """Objects in a folder that all processes share: `<root>/<kind>/ab/ab…`. Temporary file, fsync, rename, fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / ".incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / _sharded(name)

    def put(self, name: str, content: bytes | BinaryIO) -> str:
        path, temporary = self._path(name), self._incoming / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                sha256 = _copy(content, file)
                file.flush()
                os.fsync(file.fileno())
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                for folder in (self.root, path.parent.parent):
                    fsync_folder(folder)
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return sha256

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def local(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)
        except FileNotFoundError:
            return []

    def check(self) -> None:
        if not self._incoming.is_dir():
            raise LibraryError(f"the folder of audio files does not exist: {self.root}")


class RemoteObjects:
    """Objects in an fsspec file system, fetched on demand into a local cache."""

    def __init__(self, system: Any, root: str, fetched: Path) -> None:
        self._system, self._root, self._fetched = system, root.rstrip("/"), fetched

    def _address(self, name: str) -> str:
        return f"{self._root}/{_sharded(name)}"

    def put(self, name: str, content: bytes | BinaryIO) -> str:
        address = self._address(name)
        try:
            with _os_errors(), self._create(address) as file:
                return _copy(content, file)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(name)  # some file systems keep partial files
            raise

    def _create(self, address: str) -> Any:
        """Opens a file for writing. Buckets have no folders; with makedirs, s3fs would create the bucket."""
        try:
            return self._system.open(address, "wb")
        except FileNotFoundError:
            self._system.makedirs(address.rpartition("/")[0], exist_ok=True)
            return self._system.open(address, "wb")

    def has(self, name: str) -> bool:
        with _os_errors():
            self._system.invalidate_cache()  # another process may have changed it
            try:  # isfile would take every failure for a missing file
                return bool(self._system.info(self._address(name))["type"] == "file")
            except FileNotFoundError:
                return False

    def local(self, name: str) -> Path:
        path = self._fetched / name.replace("/", "-")
        if path.is_file() and self.has(name):
            os.utime(path)
            return path
        self._fetched.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with _os_errors(), self._system.open(self._address(name), "rb") as remote, temporary.open("xb") as file:
                shutil.copyfileobj(remote, file, _CHUNK)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._evict(path)
        return path

    def _evict(self, newest: Path) -> None:
        files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in self._fetched.iterdir() if f.is_file())
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total <= FETCHED_BYTES:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                total -= size

    def remove(self, name: str) -> None:
        (self._fetched / name.replace("/", "-")).unlink(missing_ok=True)
        if self.has(name):
            with _os_errors():
                self._system.rm_file(self._address(name))

    def names(self, folder: str) -> list[str]:
        with _os_errors():
            try:
                found = self._system.ls(f"{self._root}/{folder}", detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def check(self) -> None:
        with _os_errors():
            self._system.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):  # the library has no objects yet, which is no failure …
                self._system.ls(self._root, refresh=True)
                return
            if (top := self._root.partition("/")[0]) and not self._system.exists(top):  # … but its bucket must exist
                raise FileNotFoundError(errno.ENOENT, "there is no such bucket", top)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns what a client library raises about its connection, botocore's errors for example, into OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _sharded(name: str) -> str:
    """ "audio/abc" → "audio/ab/abc", to limit the files per folder."""
    kind, _, rest = name.rpartition("/")
    return f"{kind}/{rest[:2]}/{rest}"


def _copy(content: bytes | BinaryIO, to: Any) -> str:
    digest = hashlib.sha256()
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    source.seek(0)
    while piece := source.read(_CHUNK):
        digest.update(piece)
        to.write(piece)
    return digest.hexdigest()
