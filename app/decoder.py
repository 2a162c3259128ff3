"""The decoding processes: one that forks, and the workers it forks, each decoding one file at a time.

The forking process has the decoders loaded and no thread, so that a worker costs milliseconds and shares its memory. started by `app.forking` as `main(…)` in a fresh interpreter. Knows no HTTP, no asyncio and no file names: files come as
open descriptors, and sound goes back over the worker's socket.

With the forking process (5 bytes each, `CONTROL`):
    → FORK 0, with the new worker's end of a socket pair      ← BORN pid
    → KILL pid                                                ← DIED pid, when a worker has ended
                                                              ← READY 0, once at the start
With a worker:
    → `REQUEST` max_duration (seconds, inf for none) and CPU seconds allowed, with the file
    ← messages, each a `HEADER` (kind, bytes that follow): INFO {sample_rate, channels}, any number of AUDIO (float32,
      mono, 16 kHz), END {duration, decode_s, resample_s}; or ERROR {reason, why, read} at any place.
After END the worker waits for its next file; after an ERROR, or when its socket closes, it ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import time
from pathlib import Path
from typing import NoReturn

from app.media import MediaError, open_stream

CONTROL = struct.Struct("<cI")
FORK, KILL, BORN, DIED, READY = b"F", b"K", b"B", b"D", b"R"
REQUEST = struct.Struct("<dd")
HEADER = struct.Struct("<cI")
INFO, AUDIO, END, ERROR = b"i", b"a", b"e", b"x"
OUT_OF_MEMORY, UNEXPECTED = "memory", "unexpected"  # reasons of an ERROR that is no MediaError

_NICE = 5  # the server's event loop and the model come first
_FILES = 24  # descriptors a worker may have; it needs about six
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the server decides when decoding ends


def main(control_fd: int, memory_mb: int) -> None:
    """Forks workers until the other end of the control socket closes. `memory_mb`: what each may take when it decodes."""
    control = socket.socket(fileno=control_fd)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.collect()
    gc.freeze()  # what is here is not collected in the workers, so its pages stay shared
    _silence()
    control.sendall(CONTROL.pack(READY, 0))
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([control.fileno(), wake_r], [], [])
        if wake_r in readable:
            os.read(wake_r, 4096)
            for pid in _ended(children):
                with contextlib.suppress(OSError):
                    control.sendall(CONTROL.pack(DIED, pid))
        if control.fileno() not in readable:
            continue
        message, fds, _, _ = socket.recv_fds(control, CONTROL.size, 1)
        if len(message) < CONTROL.size:  # the server has gone
            break
        kind, pid = CONTROL.unpack(message)
        if kind == KILL and pid in children:
            os.kill(pid, signal.SIGKILL)
        elif kind == FORK:
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (control.detach(), wake_r, wake_w):
                    os.close(fd)
                _work(socket.socket(fileno=fds[0]), memory_mb)
            os.close(fds[0])
            children.add(child)
            control.sendall(CONTROL.pack(BORN, child))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _ended(children: set[int]) -> list[int]:
    ended = []
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)
            ended.append(pid)
    return ended


def _silence() -> None:
    """From here on nothing reaches the terminal: the decoders' libraries print what they think of a file."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _work(sock: socket.socket, memory_mb: int) -> NoReturn:
    """A worker's life."""
    status = 1
    try:
        _limit(memory_mb)
        sock.setblocking(True)
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
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s), hard))
    try:
        with os.fdopen(fds[0], "rb") as file, open_stream(file, "", max_duration) as stream:
            _send(sock, INFO, _json(sample_rate=stream.sample_rate, channels=stream.channels))
            for block in stream:
                _send(sock, AUDIO, block.tobytes())
            end = _json(duration=stream.duration, decode_s=stream.decode_s, resample_s=stream.resample_s)
        _send(sock, END, end)
        return True
    except MediaError as error:
        _send(sock, ERROR, _json(reason=error.reason, why=error.why, read=getattr(error, "read", None)))
    except MemoryError:
        _send(sock, ERROR, _json(reason=OUT_OF_MEMORY, why="", read=None))
    except OSError:
        raise  # the socket's, mostly
    except Exception as error:
        _send(sock, ERROR, _json(reason=UNEXPECTED, why=type(error).__name__, read=None))
    return False


def _json(**values: object) -> bytes:
    return json.dumps(values).encode()


def _send(sock: socket.socket, kind: bytes, payload: bytes) -> None:
    sock.sendall(HEADER.pack(kind, len(payload)) + payload)
