"""The decoder processes: the fork server's main loop and the workers it forks.

The fork server has loaded the decoders and runs no threads, so that forking takes milliseconds and workers share its
memory. `app.decoding.fork_server` starts `main(…)` in a fresh interpreter. Files arrive as open descriptors, audio is
sent over the worker's socket (app.decoding.protocol).
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
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

import numpy as np

from app.audio import ucs
from app.audio.decode import AudioStream, MediaError, open_audio_file, open_live, open_stream, open_with_ffmpeg
from app.audio.excerpt import ExcerptFile, ExcerptOptions, open_excerpt
from app.audio.tags import read_tags
from app.decoding.protocol import (
    AUDIO,
    CONTROL,
    DATA,
    END,
    ERROR,
    EXCERPT,
    EXITED,
    FORK,
    FORKED,
    HEADER,
    INFO,
    KILL,
    LIVE,
    OUT_OF_MEMORY,
    READY,
    REQUEST,
    UNEXPECTED,
)
from app.decoding.sandbox import confine
from app.server.allocator import keep_freed
from model.config import SAMPLE_RATE

_NICENESS = 5  # the server's event loop and the model have priority
_MAX_BLOCKS = 12  # blocks of a second at 16 kHz in one message; of more samples, fewer
_MAX_PIECE = 1 << 19  # bytes of an excerpt in one message
_MAX_DELAY = 0.02  # seconds that decoded audio waits for more before it is sent
_KEPT = 8 << 20  # bytes of freed memory that a worker keeps: about what decoding one file needs
_MAX_DESCRIPTORS = 24  # a worker needs about six
_ENCODINGS = ("cp1252", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "ascii")  # of tags
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the server decides when decoding ends

Message: TypeAlias = tuple[bytes, *tuple[bytes | memoryview, ...]]  # kind, parts of the payload


def main(control_fd: int, memory_mb: int) -> None:
    """Forks workers until the control socket closes. `memory_mb`: a worker's memory limit beyond its initial size."""
    control = socket.socket(fileno=control_fd)
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    keep_freed(_KEPT)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ucs.categories()  # loaded once for all workers
    _load_lazy_modules()
    gc.collect()
    gc.freeze()  # workers don't collect these objects, so their pages stay shared
    _silence_output()
    children: set[int] = set()
    with contextlib.suppress(OSError):  # the server's end is closed
        control.sendall(CONTROL.pack(READY, 0, _confinement_status()))
        while True:
            readable, _, _ = select.select([control.fileno(), wake_r], [], [])
            if wake_r in readable:
                os.read(wake_r, 4096)
                for pid, status in _reap(children):
                    control.sendall(CONTROL.pack(EXITED, pid, status))
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
                control.sendall(CONTROL.pack(FORKED, pid, 0))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(fd: int, parent_fds: tuple[int, ...], memory_mb: int) -> int:
    """Forks a worker that serves `fd`, and returns its pid; 0 if the system cannot create a process."""
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            _run_worker(fd, parent_fds, memory_mb)
    os.close(fd)
    return pid


def _load_lazy_modules() -> None:
    """Loads what decoders and tag readers import on first use: a confined worker cannot open files."""
    for name in _ENCODINGS:
        codecs.lookup(name)
    with wave.open(file := io.BytesIO(), "wb") as sound:
        sound.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        sound.writeframes(bytes(2 * SAMPLE_RATE))
    for opened in (open_audio_file(file, "", 2.0), open_with_ffmpeg(file, "", 2.0)):
        for _ in opened.blocks:
            pass
        opened.close()
    read_tags(file)
    for form in ("wav", "flac", "ogg", "loudness"):
        for preview in {False, form == "wav"}:
            options = ExcerptOptions(SAMPLE_RATE // 4, SAMPLE_RATE // 2, SAMPLE_RATE, form, 0.01, True, preview)
            for _ in open_excerpt(file, options).pieces:
                pass


def _confinement_status() -> int:
    """0 if workers can be confined (app.decoding.sandbox), checked in a short-lived child process."""
    try:
        pid = os.fork()
    except OSError:
        return 1
    if pid == 0:
        os._exit(1 if confine() else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap(children: set[int]) -> list[tuple[int, int]]:
    """(pid, status) of the children that have exited."""
    exited = [(pid, status) for pid, status in (os.waitpid(child, os.WNOHANG) for child in children) if pid]
    children.difference_update(pid for pid, _ in exited)
    return exited


def _silence_output() -> None:
    """Redirects the standard streams to /dev/null: decoder libraries print messages about files."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _run_worker(fd: int, parent_fds: tuple[int, ...], memory_mb: int) -> NoReturn:
    """The main function of a worker."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in parent_fds:
            os.close(other)
        sock = socket.socket(fileno=fd)
        sock.setblocking(True)
        _set_limits(memory_mb)
        confine()
        while _handle_request(sock):
            pass
        status = 0
    except BaseException:
        pass  # the server notices the closed socket
    finally:
        os._exit(status)


def _set_limits(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; other systems don't enforce the limit anyway
        pages = int(statm.read_text().split()[0])
        size = pages * resource.getpagesize() + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _handle_request(sock: socket.socket) -> bool:
    """Decodes one file. False if the socket is closed or this process should not be given another file."""
    message, fds, _, _ = socket.recv_fds(sock, REQUEST.size, 1)
    if len(message) < REQUEST.size or not fds:
        return False
    kind, max_duration, cpu_s, size = REQUEST.unpack(message)
    options = json.loads(sock.recv(size, socket.MSG_WAITALL)) if size else {}
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        with os.fdopen(fds[0], "rb", buffering=0) as file:
            if kind == LIVE:
                _send_live(sock, file)
                return True
            if kind == EXCERPT:
                _send_excerpt(sock, open_excerpt(file, ExcerptOptions.from_json(options)))
                return True
            track, rate = options.get("track"), options.get("rate", SAMPLE_RATE)
            with open_stream(file, "", max_duration, track, rate) as stream:
                _send_all(sock, file, stream)
        return True
    except MediaError as error:
        _send(sock, (ERROR, _json(reason=error.reason, why=error.why, read=getattr(error, "read", None))))
    except MemoryError:
        _send(sock, (ERROR, _json(reason=OUT_OF_MEMORY, why="", read=None)))
    except OSError:
        raise  # usually a socket error
    except Exception as error:
        _send(sock, (ERROR, _json(reason=UNEXPECTED, why=type(error).__name__, read=None)))
    return False


def _send_all(sock: socket.socket, file: BinaryIO, stream: AudioStream) -> None:
    """Sends a file's audio and metadata, in as few messages as _MAX_DELAY allows: each message costs time."""
    pending: list[Message] = [(INFO, _json(**_about(stream)))]
    blocks: list[memoryview] = []
    most = max(1, _MAX_BLOCKS * SAMPLE_RATE // stream.rate)
    since = time.monotonic()
    for block in stream:
        blocks.append(np.ascontiguousarray(block).data.cast("B"))
        if len(blocks) == most or time.monotonic() - since > _MAX_DELAY:
            _send(sock, *pending, (AUDIO, *blocks))
            pending, blocks, since = [], [], time.monotonic()
    if blocks:
        pending.append((AUDIO, *blocks))
    times = {"duration": stream.duration, "decode_s": stream.decode_s, "resample_s": stream.resample_s}
    notes = [asdict(note) for note in stream.notes]
    _send(sock, *pending, (END, _json(**times, tags=read_tags(file), notes=notes)))


def _about(stream: AudioStream) -> dict[str, object]:
    return {"sample_rate": stream.sample_rate, "channels": stream.channels, "track": asdict(stream.track)}


def _send_excerpt(sock: socket.socket, excerpt: ExcerptFile) -> None:
    """Sends the file of an excerpt as it is written."""
    pending: list[Message] = [(INFO, _json(length=excerpt.length, first=excerpt.first, last=excerpt.last))]
    for piece in excerpt.pieces:
        for at in range(0, len(piece), _MAX_PIECE):
            _send(sock, *pending, (DATA, piece[at : at + _MAX_PIECE]))
            pending = []
    _send(sock, *pending, (END, _json()))


def _send_live(sock: socket.socket, file: BinaryIO) -> None:
    """Sends the audio that arrives at a socket, each piece at once."""
    with open_live(file) as stream:
        _send(sock, (INFO, _json(**_about(stream))))
        for piece in stream.pieces():
            if len(piece):
                _send(sock, (AUDIO, np.ascontiguousarray(piece).data.cast("B")))
        times = {"duration": stream.duration, "decode_s": stream.decode_s, "resample_s": stream.resample_s}
        notes = [asdict(note) for note in stream.notes]
    _send(sock, (END, _json(**times, tags={}, notes=notes)))


def _json(**values: object) -> bytes:
    return json.dumps(values).encode()


def _send(sock: socket.socket, *messages: Message) -> None:
    """Sends messages in one system call."""
    parts: list[bytes | memoryview] = []
    for kind, *payload in messages:
        parts += [HEADER.pack(kind, sum(map(len, payload))), *payload]
    sent = sock.sendmsg(parts)
    if sent < sum(map(len, parts)):  # interrupted by a signal
        sock.sendall(b"".join(parts)[sent:])
