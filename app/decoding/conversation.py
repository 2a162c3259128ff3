"""What the server says to a decoding worker and hears from it, over the worker's socket (see app.decoding.protocol)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
from typing import Any

import numpy as np

from app.decoding import protocol as wire
from app.decoding.fork_server import Worker

NONSENSE = "sent what makes no sense"
_MAX_MESSAGE = 1 << 20  # bytes; a worker that announces more is not itself any more
_LAST_WORD = 1.0  # seconds in which its parent should tell how a worker ended


class Died(Exception):
    """The worker hung, gave up or sent nonsense while it had a file; the message goes on from "the decoder …".

    Without a message it has ended, and its exit status says why.
    """


def send_request(worker: Worker, file: int, max_duration: float) -> bool:
    """Gives a free worker a file to decode, as a descriptor. `max_duration` in seconds. False if it has ended."""
    cpu_s = 60 + min(max_duration, 86_400.0) / 4  # many times what any format needs; what stalls is seen much earlier
    worker.files += 1
    try:
        socket.send_fds(worker.socket, [wire.REQUEST.pack(max_duration, cpu_s)], [file])
    except OSError:
        return False
    return True


async def read_message(worker: Worker, stall_s: float) -> tuple[bytes, Any]:
    """The worker's next message: AUDIO with an array (n,), any other kind with a dict. Raises Died.

    stall_s: seconds without a sign of life after which it counts as hung.
    """
    header = bytearray(wire.HEADER.size)
    await _fill(worker.socket, memoryview(header), stall_s)
    kind, size = wire.HEADER.unpack(header)
    if size > _MAX_MESSAGE or (kind == wire.AUDIO and size % 4):
        raise Died(NONSENSE)
    if kind == wire.AUDIO:
        samples = np.empty(size // 4, dtype=np.float32)
        await _fill(worker.socket, samples.data.cast("B"), stall_s)
        return kind, samples
    payload = bytearray(size)
    await _fill(worker.socket, memoryview(payload), stall_s)
    try:
        told = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Died(NONSENSE) from error
    if not isinstance(told, dict):
        raise Died(NONSENSE)
    return kind, told


def numbers(told: dict[str, Any], *names: str) -> list[float]:
    """The numbers of these names in a message. Raises Died where they are none, or not finite."""
    try:
        found = [float(told[name]) for name in names]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Died(NONSENSE) from error
    if not all(map(math.isfinite, found)):
        raise Died(NONSENSE)
    return found


async def _fill(sock: socket.socket, target: memoryview, stall_s: float) -> None:
    while target:
        try:
            received = sock.recv_into(target)  # mostly it is there already
        except BlockingIOError:
            received = await _wait_for(sock, target, stall_s)
        except OSError as error:
            raise Died from error
        if not received:
            raise Died
        target = target[received:]


async def _wait_for(sock: socket.socket, target: memoryview, stall_s: float) -> int:
    try:
        async with asyncio.timeout(stall_s):
            return await asyncio.get_running_loop().sock_recv_into(sock, target)
    except TimeoutError as error:
        raise Died(f"gave nothing for {stall_s:g} s") from error
    except OSError as error:
        raise Died from error


async def cause(worker: Worker) -> str:
    """How it ended, as the end of a sentence."""
    try:
        async with asyncio.timeout(_LAST_WORD):
            status = await asyncio.shield(worker.ended)
    except TimeoutError:
        return "broke off"
    if os.WIFSIGNALED(status):
        return f"crashed ({signal.strsignal(os.WTERMSIG(status))})"
    return "ended"
