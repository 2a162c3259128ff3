"""How the process learns that it is to stop, from its first moment on, and how it is sure to end.

Knows signals, the listening socket and the clock; knows no application.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from types import FrameType

log = logging.getLogger(__name__)

_AFTERWARDS = 1.5  # seconds that threads which nobody needs have once all is saved
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# a program for the kernel, which reads a TCP segment: drop one that opens a connection (SYN without ACK), take others
_NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26


class Stop:
    """Whether this process is to stop. Takes the signals over when it is made, for good.

    The first SIGINT or SIGTERM is a wish to stop in order; a second SIGTERM changes nothing, a second SIGINT (Ctrl-C
    twice) ends the process at once, whatever still runs: what was acknowledged is on the disk.
    """

    def __init__(self, limit: float) -> None:
        """`limit`: seconds from the signal to the end of the process, whatever hangs."""
        self.asked = threading.Event()
        self.saved = threading.Event()  # set by who has closed everything
        self.code = 0  # of the process's exit, where it has to be ended
        self._limit = limit
        self._end = math.inf
        for number in _SIGNALS:
            signal.signal(number, self.handle)
        threading.Thread(target=self._watch, name="end", daemon=True).start()

    def handle(self, number: int, _: FrameType | None) -> None:
        """A signal's handler."""
        if self.asked.is_set() and number == signal.SIGINT:
            os._exit(130)
        self._end = min(self._end, time.monotonic() + self._limit)
        self.asked.set()

    def over(self) -> None:
        """Nothing is left to stop. A further SIGTERM is ignored also while Python ends, which takes handlers away."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @property
    def seconds_left(self) -> float:
        """Until the process is ended; infinity before the signal."""
        return self._end - time.monotonic()

    def _watch(self) -> None:
        """Ends the process when threads are left which cannot be asked to stop: one that loads a model, for example."""
        self.asked.wait()
        if self.saved.wait(max(0.0, self.seconds_left)):
            time.sleep(_AFTERWARDS)
        else:
            log.error("not everything could be closed within %g s; what was acknowledged is on the disk", self._limit)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code if self.saved.is_set() else 1)


def close_door(listener: socket.socket) -> None:
    """No connection gets to this listener from now on; those that got there can still be taken.

    Closing a listener cuts off callers who are connected already but were not taken yet. Where the system has no such
    filter (it is Linux's) this does nothing, and they are few.
    """
    with contextlib.suppress(OSError):
        program = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
        kept = ctypes.create_string_buffer(program, len(program))
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_NO_SYN), ctypes.addressof(kept))
        )
