"""The decoding processes: one that forks, and the workers it forks, each decoding one file at a time.

The forking process has the decoders loaded and no thread, so that a worker costs milliseconds and shares its memory.
`app.decoding.fork_server` starts it as `main(…)` in a fresh interpreter. Knows no HTTP, no asyncio and no file names: files come as
open descriptors, and sound goes back over the worker's socket; app.decoding.protocol has the messages.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import json
import math
import os
import resource
import select
import signal
import socket
import time
import wave
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

import numpy as np

from app.audio import ucs
from app.audio.decode import MediaError, Stream, open_stream
from app.audio.tags import read_tags
from app.audio.tracks import open_by_ffmpeg, open_source
from app.cli.allocator import keep_freed
from app.decoding.protocol import (
    AUDIO,
    BORN,
    CONTROL,
    DIED,
    END,
    ERROR,
    FORK,
    HEADER,
    INFO,
    KILL,
    OUT_OF_MEMORY,
    READY,
    REQUEST,
    UNEXPECTED,
)
from app.decoding.sandbox import confine
from model.config import SAMPLE_RATE

_NICE = 5  # the server's event loop and the model come first
_TOGETHER = 12  # blocks of a second in one message, at most
_PATIENCE = 0.02  # seconds that what is decoded waits for more, before it is sent
_KEPT = 8 << 20  # bytes that a worker keeps when they are free: what a file takes
_FILES = 24  # descriptors a worker may have; it needs about six
_ENCODINGS = ("cp1252", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "ascii")  # of tags
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the server decides when decoding ends

Message: TypeAlias = tuple[bytes, *tuple[bytes | memoryview, ...]]  # its kind, and parts of its payload


def main(control_fd: int, memory_mb: int) -> None:
    """Forks workers until the control socket's other end closes. `memory_mb`: what each may take beyond its start."""
    control = socket.socket(fileno=control_fd)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    keep_freed(_KEPT)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ucs.categories()  # read once, for all workers
    _rehearse()
    gc.collect()
    gc.freeze()  # what is here is not collected in the workers, so its pages stay shared
    _silence()
    children: set[int] = set()
    with contextlib.suppress(OSError):  # it is the server's end that has closed
        control.sendall(CONTROL.pack(READY, 0, _unconfined()))
        while True:
            readable, _, _ = select.select([control.fileno(), wake_r], [], [])
            if wake_r in readable:
                os.read(wake_r, 4096)
                for pid, status in _ended(children):
                    control.sendall(CONTROL.pack(DIED, pid, status))
            if control.fileno() not in readable:
                continue
            message, fds, _, _ = socket.recv_fds(control, CONTROL.size, 1)
            if len(message) < CONTROL.size:
                break
            kind, pid, _ = CONTROL.unpack(message)
            if kind == KILL and pid in children:
                os.kill(pid, signal.SIGKILL)
            elif kind == FORK:
                pid = _fork(fds[0], (control.fileno(), wake_r, wake_w), memory_mb)
                if pid:
                    children.add(pid)
                control.sendall(CONTROL.pack(BORN, pid, 0))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(fd: int, not_for_it: tuple[int, ...], memory_mb: int) -> int:
    """Its pid; 0 if the system gives no process."""
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            _work(fd, not_for_it, memory_mb)
    os.close(fd)
    return pid


def _rehearse() -> None:
    """Loads what decoders and readers of tags load when they first need it: a worker can open no file any more."""
    for name in _ENCODINGS:
        codecs.lookup(name)
    with wave.open(file := io.BytesIO(), "wb") as sound:
        sound.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        sound.writeframes(bytes(2 * SAMPLE_RATE))
    for opened in (open_source(file, "", 2.0), open_by_ffmpeg(file, "", 2.0)):
        for _ in opened.blocks:
            pass
        opened.close()
    read_tags(file)


def _unconfined() -> int:
    """0 if workers can be confined here (app.decoding.sandbox), another number if not; tried by a process that ends at once."""
    try:
        pid = os.fork()
    except OSError:
        return 1
    if pid == 0:
        os._exit(1 if confine() else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ended(children: set[int]) -> list[tuple[int, int]]:
    ended = [(pid, status) for pid, status in (os.waitpid(child, os.WNOHANG) for child in children) if pid]
    children.difference_update(pid for pid, _ in ended)
    return ended


def _silence() -> None:
    """From here on nothing reaches the terminal: the decoders' libraries print what they think of a file."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _work(fd: int, not_for_it: tuple[int, ...], memory_mb: int) -> NoReturn:
    """A worker's life."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in not_for_it:
            os.close(other)
        sock = socket.socket(fileno=fd)
        sock.setblocking(True)
        _limit(memory_mb)
        confine()
        while _serve(sock):
            pass
        status = 0
    except BaseException:
        pass  # the server sees the socket close
    finally:
        os._exit(status)


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; elsewhere the limit is not kept by the system anyway
        pages = int(statm.read_text().split()[0])
        size = pages * resource.getpagesize() + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _serve(sock: socket.socket) -> bool:
    """Decodes one file; False when there is no other one or none should be given to this process."""
    message, fds, _, _ = socket.recv_fds(sock, REQUEST.size, 1)
    if len(message) < REQUEST.size or not fds:
        return False
    max_duration, cpu_s = REQUEST.unpack(message)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        with os.fdopen(fds[0], "rb", buffering=0) as file, open_stream(file, "", max_duration) as stream:
            _send_all(sock, file, stream)
        return True
    except MediaError as error:
        _send(sock, (ERROR, _json(reason=error.reason, why=error.why, read=getattr(error, "read", None))))
    except MemoryError:
        _send(sock, (ERROR, _json(reason=OUT_OF_MEMORY, why="", read=None)))
    except OSError:
        raise  # the socket's, mostly
    except Exception as error:
        _send(sock, (ERROR, _json(reason=UNEXPECTED, why=type(error).__name__, read=None)))
    return False


def _send_all(sock: socket.socket, file: BinaryIO, stream: Stream) -> None:
    """What a file says and sounds like, in as few messages as its reader's patience allows: each has its price."""
    held: list[Message] = [(INFO, _json(sample_rate=stream.sample_rate, channels=stream.channels))]
    blocks: list[memoryview] = []
    since = time.monotonic()
    for block in stream:
        blocks.append(np.ascontiguousarray(block).data.cast("B"))
        if len(blocks) == _TOGETHER or time.monotonic() - since > _PATIENCE:
            _send(sock, *held, (AUDIO, *blocks))
            held, blocks, since = [], [], time.monotonic()
    if blocks:
        held.append((AUDIO, *blocks))
    times = {"duration": stream.duration, "decode_s": stream.decode_s, "resample_s": stream.resample_s}
    _send(sock, *held, (END, _json(**times, tags=read_tags(file))))


def _json(**values: object) -> bytes:
    return json.dumps(values).encode()


def _send(sock: socket.socket, *messages: Message) -> None:
    """Messages, each its kind and the parts of its payload, in one go."""
    parts: list[bytes | memoryview] = []
    for kind, *payload in messages:
        parts += [HEADER.pack(kind, sum(map(len, payload))), *payload]
    sent = sock.sendmsg(parts)
    if sent < sum(map(len, parts)):  # a signal came in between
        sock.sendall(b"".join(parts)[sent:])
