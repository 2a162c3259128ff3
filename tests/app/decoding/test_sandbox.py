"""System calls of a confined process, tried one by one; decoders work as before."""

from __future__ import annotations

import faulthandler
import io
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from app.audio.decode import decode
from app.audio.tags import read_tags
from app.decoding.pool import DecoderPool
from app.decoding.sandbox import confine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="there is no filter for this"
)


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a confined process that runs `work`; 99 if it raised, the negative signal if it was killed."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        code = 99
        try:
            assert confine() is None
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused(*calls: Callable[[], object]) -> Callable[[], None]:
    def try_all() -> None:
        for call in calls:
            try:
                call()
            except PermissionError:
                continue
            raise AssertionError(f"{call} was not refused")

    return try_all


def test_network_is_blocked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as made_before:
        address = server.getsockname()
        assert (
            in_child(
                refused(
                    lambda: socket.socket(socket.AF_INET),
                    lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
                    lambda: socket.socket(socket.AF_UNIX),
                    lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
                    socket.socketpair,
                    lambda: made_before.connect(address),
                    server.accept,
                )
            )
            == 0
        )


def test_programs_and_other_processes_are_blocked() -> None:
    parent = os.getpid()
    assert (
        in_child(
            refused(
                os.fork,
                lambda: os.execv("/bin/true", ["true"]),
                lambda: subprocess.Popen(["/bin/true"]),
                lambda: os.kill(parent, signal.SIGKILL),
                lambda: os.kill(parent, 0),
            )
        )
        == 0
    )


def test_files_are_blocked(tmp_path: Path) -> None:
    kept = tmp_path / "catalog.sqlite3"
    kept.write_text("kept")
    with kept.open("r+b") as opened:
        assert (
            in_child(
                refused(
                    lambda: os.open(kept, os.O_RDONLY),
                    lambda: os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT),
                    lambda: os.unlink(kept),
                    lambda: os.rename(kept, tmp_path / "gone"),
                    lambda: os.link(kept, tmp_path / "again"),
                    lambda: os.symlink(kept, tmp_path / "again"),
                    lambda: os.mkdir(tmp_path / "folder"),
                    lambda: os.truncate(kept, 0),
                    lambda: os.ftruncate(opened.fileno(), 0),
                    lambda: os.chmod(kept, 0o777),
                    lambda: os.chdir("/"),
                )
            )
            == 0
        )
    assert kept.read_text() == "kept" and sorted(tmp_path.iterdir()) == [kept]


def test_needed_calls_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    ours, theirs = socket.socketpair()

    def work() -> None:
        with theirs, opened:
            theirs.sendall(opened.read())
            assert theirs.recv(1) == b"!"
        done = threading.Event()
        threading.Thread(target=done.set).start()
        assert done.wait(10) and len(bytearray(50 << 20))

    with file.open("rb") as opened, ours:
        ours.sendall(b"!")
        assert in_child(work) == 0
        assert ours.recv(100) == b"content"
    assert in_child(os.abort) == -signal.SIGABRT  # a crash is still reported as one


async def test_workers_are_confined(sounds: SimpleNamespace) -> None:
    """Reads /proc/PID/status: mode 2 is a seccomp filter, and no new privileges can be gained."""
    pool = DecoderPool(workers=1)
    await pool.start()
    try:
        async with pool.open(io.BytesIO(sounds.wav()), "a") as stream:
            assert [block async for block in stream]
        (worker,) = pool._idle
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert "Seccomp:\t2\n" in status and "NoNewPrivs:\t1\n" in status
    finally:
        await pool.close()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF"])
async def test_confined_decoders_return_the_same_results(sounds: SimpleNamespace, kind: str) -> None:
    data = io.BytesIO()
    import soundfile

    with soundfile.SoundFile(data, "w", 44_100, 2, format=kind) as sound:
        if kind != "CAF":
            sound.title, sound.artist = "Café à l'aube", "日本の音"
        sound.write(np.stack([sounds.tone(440, 1.5, 44_100)] * 2, 1))
    pool = DecoderPool(workers=1)
    await pool.start()
    try:
        async with pool.open(io.BytesIO(data.getvalue()), "a") as stream:
            heard = np.concatenate([block async for block in stream])
    finally:
        await pool.close()
    np.testing.assert_array_equal(heard, decode(data.getvalue(), "a").samples)
    assert stream.tags == read_tags(data)
    assert kind == "CAF" or stream.tags["title"] == "Café à l'aube"
